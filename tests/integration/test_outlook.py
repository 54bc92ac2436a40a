"""What is told of requests that have not gone out yet: estimates, previews, explanations."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from own_backend import Own
from users import Provider

from headway import (
    TEXT,
    Account,
    CapacityExceededError,
    DeadlineExceededError,
    Limiter,
    ManualClock,
    RateLimiterConfig,
    RequestMetadata,
    create_scheduler,
)
from headway.scheduler import Scheduler


def asks(model: str = "m", **fields: Any) -> RequestMetadata:
    return RequestMetadata("r", model, TEXT, **fields)


async def call() -> int:
    return 42


def make(limits: Any, **options: Any) -> Scheduler:
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
    return create_scheduler(None, config=config, limits=limits, clock=ManualClock(), **options)


# -- several in one step of the loop ---------------------------------------------------------------


def test_those_submitted_in_one_step_stand_behind_each_other() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"]) as scheduler:
            handles = [scheduler.submit(asks(), call) for _ in range(4)]
            assert [each.estimated_start for each in handles] == [0.0, 60.0, 120.0, 180.0]
            other = scheduler.submit(asks("other"), call)  # another bucket
            assert other.estimated_start == 0.0
            await asyncio.sleep(0)
            # By now the queue itself knows of them.
            last = scheduler.submit(asks(), call)
            assert last.estimated_start == 240.0
            for each in (*handles[1:], last):
                each.cancel()
            await asyncio.gather(*handles, last, other, return_exceptions=True)
            assert not any(scheduler._outlook._steps.values())

    asyncio.run(run())


def test_accounts_that_submit_in_one_step_stand_behind_each_other() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"], mode="account") as scheduler:
            # More of them than have lines of their own.
            handles = [scheduler.submit(asks(client_id=f"{i % 40}"), call) for i in range(80)]
            assert [each.estimated_start for each in handles] == [60.0 * i for i in range(80)]
            await scheduler.stop(0)
            await asyncio.gather(*handles, return_exceptions=True)

    asyncio.run(run())


def test_the_urgent_one_does_not_stand_behind_what_it_passes() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"]) as scheduler:
            await scheduler.submit_request(asks(), call)
            starts = [
                scheduler.submit(asks(priority=priority), call).estimated_start
                for priority in (0, 5, 0, 5)
            ]
            assert starts == [60.0, 60.0, 180.0, 120.0]
            await scheduler.stop(0)

    asyncio.run(run())


def test_what_is_wrong_with_one_is_said_behind_others_as_well() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"]) as scheduler:
            first = scheduler.submit(asks(), call)
            with pytest.raises(TypeError, match="priority 'high': must be a whole number"):
                scheduler.submit(asks(priority="high"), call)
            assert await first == 42

    asyncio.run(run())


def test_what_is_wrong_with_one_is_not_said_of_others() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"]) as scheduler:
            first = scheduler.submit(asks(), call)
            with pytest.raises(TypeError, match="estimated_tokens 'x': must be"):
                scheduler.submit(asks(estimated_tokens="x"), call)
            second = scheduler.submit(asks(priority=-1), call)  # looks at all before it
            assert (first.estimated_start, second.estimated_start) == (0.0, 60.0)
            await scheduler.stop(0)
            await asyncio.gather(first, second, return_exceptions=True)

    asyncio.run(run())


def test_tasks_that_submit_in_turn_are_told_what_is_and_not_what_was() -> None:
    """One of them has always not begun yet when the other submits, so no step is ever over."""

    async def run() -> None:
        async with make(["100 tokens/min bucket"]) as scheduler:
            await scheduler.submit_request(asks(estimated_tokens=100), call)
            starts: list[float | None] = []

            async def submits() -> None:
                for _ in range(50):
                    handle = scheduler.submit(asks(estimated_tokens=10), call)
                    starts.append(handle.estimated_start)
                    await asyncio.sleep(0)
                    for step in scheduler._outlook._steps[asyncio.get_running_loop()].values():
                        assert len(step._waiting) <= 4
                    handle.cancel()

            await asyncio.gather(submits(), submits())
            # In front of each are a few of both that have not ended yet; of 100, it was 600 s.
            assert max(starts) <= 6.0 * 6
            await asyncio.sleep(0)
            assert not any(scheduler._outlook._steps.values())

    asyncio.run(run())


def test_one_that_can_never_go_out_is_in_nobodys_way_for_long() -> None:
    async def run() -> None:
        async with make(["10 requests/min bucket", "5 tokens/min bucket"]) as scheduler:
            never = scheduler.submit(asks(estimated_tokens=6), call)
            assert never.estimated_start == math.inf
            with pytest.raises(Exception, match="can never fit"):
                await never
            assert scheduler.submit(asks(estimated_tokens=5), call).estimated_start == 0.0
            await asyncio.sleep(0)

    asyncio.run(run())


# -- requests that are large beside their limit ----------------------------------------------------


@pytest.mark.parametrize("shape", ["window", "fixed"])
def test_what_does_not_fit_into_a_period_is_foretold_for_the_next(shape: str) -> None:
    """Of 1,000 a minute, 600 each: one a minute, where their sum would fit into six."""

    async def run() -> None:
        clock = ManualClock(60_000)
        limits = [f"1_000 tokens/min {shape}" + (" anchor 0" if shape == "fixed" else "")]
        config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
        async with create_scheduler(None, config=config, limits=limits, clock=clock) as scheduler:
            large = asks(estimated_tokens=600)
            preview = scheduler.preview([large] * 10)
            assert preview.admitted_in == pytest.approx(9 * 60)
            began: list[float] = []

            async def goes() -> None:
                began.append(clock.now() - 60_000)

            handles = [scheduler.submit(large, goes) for _ in range(10)]
            foretold = [each.estimated_start for each in handles]
            assert foretold == [pytest.approx(60 * i) for i in range(10)]
            await asyncio.sleep(0)  # else it would stand before them
            with pytest.raises(DeadlineExceededError, match="would have taken 600"):
                await scheduler.submit_request(asks(estimated_tokens=600, deadline=599), goes)
            small = scheduler.submit(asks(estimated_tokens=400, deadline=541), goes)
            assert small.estimated_start == pytest.approx(540)
            for handle in (*handles, small):
                while not handle.done():
                    clock.advance(1)
                    await asyncio.sleep(0.001)
            assert began == [pytest.approx(at, abs=2) for at in [*foretold, 540]]

    asyncio.run(run())


def test_calls_that_are_out_are_foretold_to_leave_as_if_answered_now() -> None:
    """Not to hold their places for ever, which would leave one place for all who wait."""

    async def run() -> None:
        limiter = Limiter("10 requests/min", clock=ManualClock())
        out = [limiter.try_reserve() for _ in range(9)]  # sent, and not answered yet
        assert all(out)
        waiting = [asyncio.ensure_future(limiter.acquire(timeout=90)) for _ in range(11)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert limiter.explain().ready_in == 120.0
        late = asyncio.ensure_future(limiter.acquire(timeout=119))
        with pytest.raises(DeadlineExceededError, match="would have taken 120"):
            await late
        assert not any(each.done() for each in waiting), "they are in time"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_how_long_a_call_that_takes_longer_than_a_period_goes_on_nobody_knows() -> None:
    async def run() -> None:
        clock = ManualClock()
        limiter = Limiter("10 requests/s", clock=clock)
        out = [limiter.try_reserve() for _ in range(9)]
        assert all(out)
        clock.advance(1.5)
        waiting = [asyncio.ensure_future(limiter.acquire(timeout=1)) for _ in range(5)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert limiter.explain().ready_in is None
        assert sum(each.done() for each in waiting) == 1, "only answers can tell of the others"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def test_a_preview_counts_what_an_account_may_take_by_itself() -> None:
    async def run() -> None:
        accounts = {"a": Account(limits=["1 requests/hour bucket"])}
        limits = ["10 requests/min bucket burst 1"]
        async with make(limits, mode="account", accounts=accounts) as scheduler:
            preview = scheduler.preview([asks(client_id="a")] * 3)
            assert preview.admitted_in == pytest.approx(7200)
            assert str(preview.binds) == "1 requests/hour bucket"
            # Others pass whoever is held up so.
            both = [asks(client_id="a")] * 3 + [asks(client_id="b")] * 2
            assert scheduler.preview(both).by_bucket == {"m": pytest.approx(7200)}
            assert scheduler.preview([*both[2:], *both[:2]]).admitted_in == pytest.approx(7200)

    asyncio.run(run())


def test_each_of_a_batch_stands_behind_what_waits_in_front_of_it() -> None:
    async def run() -> None:
        async with make(["1 requests/min bucket"]) as scheduler:
            handles = [scheduler.submit(asks(), call) for _ in range(6)]
            await asyncio.gather(handles[0])
            # The urgent one passes the five that wait, and the other one does not, in any order.
            for batch in ([asks(priority=5), asks()], [asks(), asks(priority=5)]):
                assert scheduler.preview(batch).admitted_in == 420.0
            await scheduler.stop(0)
            await asyncio.gather(*handles, return_exceptions=True)

    asyncio.run(run())


# -- what is not known -----------------------------------------------------------------------------


def test_before_the_provider_has_named_a_bucket_nothing_is_told() -> None:
    async def run() -> None:
        async with make(None, provider=Provider()) as scheduler:
            assert scheduler.estimate(asks("m-1")) is None
            assert scheduler.explain(asks("m-1")) is None
            preview = scheduler.preview([asks("m-1")])
            assert preview.admitted_in is None
            assert preview.by_bucket == {"m-1": None}
            assert preview.reason == (
                "which bucket counts 'm-1', the provider is asked with its first request"
            )
            await scheduler.submit_request(asks("m-1"), call)
            preview = scheduler.preview([asks("m-1")])
            assert preview.by_bucket == {"m": 0.0}
            assert preview.reason is None

    asyncio.run(run())


def test_a_backend_of_ones_own_shows_what_was_given_and_never_an_inner_number() -> None:
    async def run() -> None:
        limits = ["500 requests/min", "7 concurrency"]
        async with create_scheduler(None, backend=Own(), limits=limits) as scheduler:
            explained = scheduler.explain(asks())
            assert str(explained.binds) == "500 requests/min"
            assert [str(each) for each in explained.elsewhere] == ["500 requests/min"]
            assert str(explained) == (
                "1 requests, 0 tokens, 1 concurrency: '500 requests/min' binds, fits when the "
                "backend, or an answer, says so; 0 waiting\n"
                "  7 concurrency: 0 of 7 used (0%), 7 left, fits now\n"
                "  500 requests/min: counted by the backend\n"
                "  fits now: 7 concurrency"
            )
            preview = scheduler.preview([asks()])
            assert preview.admitted_in is None
            assert preview.reason == "only the backend can tell, of bucket 'm'"
        async with create_scheduler(None, backend=Own()) as scheduler:
            explained = scheduler.explain(asks())
            assert explained.binds is None
            assert str(2**53) not in str(explained)
        async with create_scheduler(None, backend=Own(), limits=["50 tokens/min"]) as scheduler:
            explained = scheduler.explain(asks(estimated_tokens=46))
            assert (str(explained.binds), explained.ready_in) == ("50 tokens/min", math.inf)
            preview = scheduler.preview([asks(estimated_tokens=46)])
            assert (str(preview.binds), preview.fits) == ("50 tokens/min", False)

    asyncio.run(run())


# -- accounts --------------------------------------------------------------------------------------


def test_an_accounts_own_limits_are_in_all_that_is_told() -> None:
    async def run() -> None:
        accounts = {"a": Account(limits=["2 requests/hour bucket"]), "b": 1}
        scheduler = make(["60 requests/min bucket"], mode="account", accounts=accounts)
        mine = asks(client_id="a")
        async with scheduler:
            assert [each.account for each in scheduler.explain(mine).limits] == [None, "a"]
            for _ in range(2):
                await scheduler.submit_request(mine, call)
            explained = scheduler.explain(mine)
            assert str(explained.binds) == "2 requests/hour bucket"
            assert explained.ready_in == 1800.0
            assert "  2 requests/hour bucket of account 'a': 2 of 2 used" in str(explained)
            assert scheduler.estimate(mine) == 1800.0
            preview = scheduler.preview([asks(client_id="b"), mine])
            assert (preview.admitted_in, str(preview.binds)) == (1800.0, "2 requests/hour bucket")
            for other in (asks(client_id="b"), asks()):
                explained = scheduler.explain(other)
                assert (explained.binds, len(explained.limits)) == (None, 1)

    asyncio.run(run())


def test_a_preview_names_the_accounts_limit_that_never_fits() -> None:
    async def run() -> None:
        accounts = {"a": Account(limits=["2 tokens/hour"])}
        scheduler = make(["60 requests/min", "9 tokens/min"], mode="account", accounts=accounts)
        async with scheduler:
            mine = asks(client_id="a", estimated_tokens=3)
            assert str(scheduler.preview([mine]).binds) == "2 tokens/hour"
            assert str(scheduler.explain(mine).binds) == "2 tokens/hour"
            theirs = asks(client_id="b", estimated_tokens=10)
            assert str(scheduler.preview([theirs]).binds) == "9 tokens/min"

    asyncio.run(run())


def test_what_never_fits_an_accounts_own_limit_says_which_and_whose() -> None:
    async def run(*others: str) -> str:
        own = Account(limits=["2 tokens/hour", "5 requests/min"])
        accounts = dict.fromkeys(["a", *others], own)
        async with make(["60 requests/min"], mode="account", accounts=accounts) as scheduler:
            with pytest.raises(CapacityExceededError) as raised:
                await scheduler.submit_request(asks(client_id="a", estimated_tokens=3), call)
            return str(raised.value)

    assert asyncio.run(run()) == (
        "can never fit: needs 3 tokens, the account's own limit is 2 "
        "('2 tokens/hour' of account 'a')"
    )
    assert asyncio.run(run("b")) == (
        "can never fit: needs 3 tokens, the account's own limit is 2 ('2 tokens/hour')"
    )


def test_without_limits_an_explanation_says_so() -> None:
    async def run() -> None:
        async with make(None) as scheduler:
            assert str(scheduler.explain(asks())) == (
                "1 requests, 0 tokens: fits now; 0 waiting\n  no limits"
            )

    asyncio.run(run())
