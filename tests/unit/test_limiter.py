"""Limiter on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from headway import (
    CapacityExceededError,
    DeadlineExceededError,
    Limit,
    Limiter,
    ManualClock,
    RateLimiterError,
)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def turn() -> None:
    """Lets the loop see what the clock has admitted, and the tasks act on it."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_resources_are_in_the_order_of_the_limits_each_once() -> None:
    limiter = Limiter(["9 tokens/min", "5 requests/s", "100 requests/min", "3 concurrency"])
    assert limiter.resources == ("tokens", "requests", "concurrency")


def test_missing_amounts_are_one_request_one_of_concurrency_and_nothing_else() -> None:
    limiter = Limiter(["9 tokens/min", "5 requests/min", "3 concurrency"], clock=ManualClock())
    reservation = limiter.try_reserve()
    assert reservation
    used = {state.limit.resource: state.used for state in limiter.explain().limits}
    assert used == {"tokens": 0, "requests": 1, "concurrency": 1}


@pytest.mark.parametrize(
    ("amounts", "error", "says"),
    [
        ((-1,), ValueError, "tokens -1: must be from 0 to 2"),
        ((2**53 + 1,), ValueError, "tokens 9007199254740993"),
        ((2**80,), ValueError, "tokens"),
        ((1.0,), TypeError, "tokens 1.0: must be a whole number"),
        ((True,), TypeError, "whole number"),
        (("1",), TypeError, "tokens '1'"),
        ((1, 2, 3), TypeError, "3 amounts were given, but there are 2 resources"),
    ],
)
def test_bad_amounts_are_named_and_change_nothing(
    amounts: tuple[Any, ...], error: type[Exception], says: str
) -> None:
    limiter = Limiter(["9 tokens/min", "5 requests/min"], clock=ManualClock())
    for verb in (limiter.try_acquire, limiter.try_reserve, limiter.acquire, limiter.acquire_sync):
        with pytest.raises(error) as raised:
            verb(*amounts)
        assert says in str(raised.value)
    assert [state.used for state in limiter.explain().limits] == [0, 0]


def test_bad_options_are_named() -> None:
    limiter = Limiter("5 requests/min", clock=ManualClock())
    with pytest.raises(ValueError, match="timeout -1"):
        limiter.acquire(timeout=-1)
    with pytest.raises(ValueError, match="timeout nan"):
        limiter.acquire(timeout=math.nan)
    with pytest.raises(ValueError, match="priority"):
        limiter.acquire(priority=10**12)
    with pytest.raises(TypeError, match="'urgency'"):
        limiter.acquire(urgency=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="at least 1"):
        Limiter([])
    with pytest.raises(TypeError):
        Limiter([5])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        Limiter("5 requests/min", clock=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend 'redis': must be a RedisBackend or None"):
        Limiter("5 requests/min", backend="redis")  # type: ignore[arg-type]


def test_try_acquire_takes_all_or_nothing() -> None:
    clock = ManualClock()
    limiter = Limiter(["2 requests/min bucket", "100 tokens/min bucket"], clock=clock)
    assert limiter.try_acquire(1, 60)
    assert not limiter.try_acquire(1, 60)
    assert [state.used for state in limiter.explain().limits] == [1, 60]
    clock.advance(12)  # 20 tokens more
    assert limiter.try_acquire(1, 60)


def test_try_acquire_on_a_concurrency_limit_is_refused_in_words() -> None:
    limiter = Limiter(["2 concurrency", "5 requests/min"])
    with pytest.raises(ValueError, match="nothing to give back"):
        limiter.try_acquire()


def test_a_denial_is_falsy_and_says_what_binds_and_for_how_long() -> None:
    clock = ManualClock()
    limiter = Limiter(["10 requests/min bucket", "100 tokens/min bucket"], clock=clock)
    assert limiter.try_acquire(1, 100)
    denial = limiter.try_reserve(1, 10)
    assert not denial
    assert denial.limit == Limit.parse("100 tokens/min bucket")
    # Ten tokens take 6 s, and a burst is allowed to have been counted a second late.
    assert denial.retry_after == pytest.approx(7.0)
    clock.advance(denial.retry_after - 1e-6)
    assert not limiter.try_reserve(1, 10)
    clock.advance(1e-6)
    assert limiter.try_reserve(1, 10)
    never = limiter.try_reserve(1, 101)
    assert not never
    assert never.retry_after == math.inf


def test_what_can_never_fit_fails_at_once_with_the_limit_and_both_numbers() -> None:
    limiter = Limiter(["10 requests/min", "100 tokens/min"], clock=ManualClock())

    async def main() -> None:
        with pytest.raises(CapacityExceededError) as error:
            await limiter.acquire(1, 101)
        for part in ("101", "tokens", "'100 tokens/min'", "admits 100"):
            assert part in str(error.value)
        assert error.value.retry_after is None
        assert isinstance(error.value, RateLimiterError)

    run(main())
    with pytest.raises(CapacityExceededError, match="101"):
        limiter.acquire_sync(1, 101)


def test_a_cost_exactly_as_large_as_the_limit_fits() -> None:
    for shape in ("bucket", "window", "fixed"):
        assert Limiter(Limit(100, "tokens", shape=shape), clock=ManualClock()).try_acquire(100)


def test_a_limit_of_zero_admits_nothing_but_nothing() -> None:
    for shape in ("bucket", "window", "fixed"):
        limiter = Limiter(Limit(0, "tokens", shape=shape), clock=ManualClock())
        assert limiter.try_acquire(0)
        assert limiter.try_reserve(1).retry_after == math.inf


def test_waiters_go_first_in_first_out_and_the_urgent_ones_before() -> None:
    clock = ManualClock()
    limiter = Limiter("60 requests/min bucket burst 1", clock=clock)
    order: list[str] = []

    async def wait(name: str, priority: int) -> None:
        await limiter.acquire(priority=priority)
        order.append(name)

    async def main() -> None:
        assert limiter.try_acquire()
        tasks = [
            asyncio.create_task(wait(name, priority))
            for name, priority in [("a", 0), ("b", 0), ("urgent", 5), ("late", -1), ("c", 0)]
        ]
        await turn()
        assert limiter.explain().waiting == 5
        assert not limiter.try_acquire(), "nobody passes the queue"
        for _ in range(5):
            clock.advance(1)
            await turn()
        await asyncio.gather(*tasks)

    run(main())
    assert order == ["urgent", "a", "b", "c", "late"]


def test_a_wait_that_would_be_longer_than_its_timeout_fails_at_once_and_says_how_long() -> None:
    clock = ManualClock()
    limiter = Limiter("60 requests/min bucket burst 1", clock=clock)

    async def main() -> None:
        assert limiter.try_acquire()
        ahead = [asyncio.create_task(wait()) for _ in range(9)]
        await turn()
        with pytest.raises(DeadlineExceededError, match=r"5\.000 s.*10\.000 s") as error:
            await limiter.acquire(timeout=5)
        assert isinstance(error.value, TimeoutError)
        assert limiter.explain().waiting == 9
        for task in ahead:
            task.cancel()

    async def wait() -> None:
        await limiter.acquire()

    run(main())


def test_a_wait_that_was_let_in_and_not_admitted_in_time_fails_at_its_deadline() -> None:
    clock = ManualClock()
    limiter = Limiter("1 concurrency", clock=clock)

    async def main() -> None:
        held = limiter.try_reserve()
        assert held
        task = asyncio.create_task(asyncio.wait_for(limiter.acquire(timeout=3), 10))
        await turn()
        clock.advance(2.9)
        await turn()
        assert not task.done()
        clock.advance(0.2)
        with pytest.raises(DeadlineExceededError):
            await task
        assert limiter.explain().waiting == 0

    run(main())


def test_leaving_the_block_settles_at_the_estimate_whether_or_not_it_raised() -> None:
    clock = ManualClock()
    limiter = Limiter(["10 requests/min bucket", "1 concurrency"], clock=clock)

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with limiter.acquire() as reservation:
                    assert reservation.state == "held"
                    raise ZeroDivisionError
            assert reservation.state == "ended"
        async with limiter.acquire() as reservation:
            assert reservation.settle(0, 1)
        used = {state.limit.resource: state.used for state in limiter.explain().limits}
        assert used == {"requests": 2, "concurrency": 0}

    run(main())
    with limiter.acquire_sync() as reservation:
        assert reservation.state == "held"
    assert reservation.state == "ended"


def test_a_reservation_ends_exactly_once() -> None:
    limiter = Limiter("10 requests/min bucket", clock=ManualClock())
    reservation = limiter.try_reserve(5)
    assert reservation.sent()
    assert not reservation.sent()
    assert not reservation.cancel(), "sent: the provider has counted it"
    assert reservation.answered()
    assert not reservation.answered()
    assert reservation.settle(2)
    assert not reservation.settle(0)
    assert not reservation.expire()
    assert not reservation.cancel()
    assert limiter.explain().limits[0].used == 2


def test_cancel_gives_everything_back_and_settle_what_was_not_used() -> None:
    for shape in ("bucket", "window", "fixed"):
        limiter = Limiter(
            [Limit(10, shape=shape), Limit(100, "tokens", shape=shape)], clock=ManualClock()
        )
        assert limiter.try_reserve(3, 50).cancel()
        assert [state.used for state in limiter.explain().limits] == [0, 0]
        assert limiter.try_reserve(1, 50).settle(1, 20)
        assert [state.used for state in limiter.explain().limits] == [1, 20]
        assert limiter.try_reserve(1, 50).settle(1, 90)
        assert [state.used for state in limiter.explain().limits] == [2, 110]


def test_a_reservation_that_is_dropped_keeps_its_rate_and_gives_its_concurrency_back() -> None:
    limiter = Limiter(["1 concurrency", "10 requests/min bucket"], clock=ManualClock())
    reservation = limiter.try_reserve(1, 4)
    assert not limiter.try_reserve()
    del reservation
    gc.collect()
    used = {state.limit.resource: state.used for state in limiter.explain().limits}
    assert used == {"requests": 4, "concurrency": 0}


def test_a_denial_that_only_an_answer_can_end_names_its_limit_and_makes_nobody_spin() -> None:
    clock = ManualClock()
    limiter = Limiter(["1000 tokens/s bucket", "1 requests/min window"], clock=clock)
    held = limiter.try_reserve(0, 1)
    denial = limiter.try_reserve(0, 1)
    assert denial.limit == Limit.parse("1 requests/min window")
    assert denial.retry_after == 0.1
    look = limiter.explain(0, 1)
    assert (look.binds, look.ready_in) == (denial.limit, None)
    assert held.settle()
    clock.advance(60)
    assert limiter.try_reserve(0, 1)


def test_the_last_slot_of_a_first_burst_is_kept_for_the_others_but_not_for_ever() -> None:
    clock = ManualClock()
    limiter = Limiter(["1000 tokens/s bucket", "3 requests/min window"], clock=clock)
    held = [limiter.try_reserve(0, 1), limiter.try_reserve(0, 1)]
    denial = limiter.try_reserve(0, 1)
    assert denial.limit == Limit.parse("3 requests/min window")
    assert denial.retry_after == 10.0
    look = limiter.explain(0, 1)
    assert (look.binds, look.ready_in) == (denial.limit, 10.0)
    clock.advance(10)  # the others may be waiting for it
    last = limiter.try_reserve(0, 1)
    assert last.cancel()
    assert all(each.settle() for each in held)

    limiter = Limiter("3 requests/min window", clock=clock)
    held = [limiter.try_reserve(), limiter.try_reserve()]
    assert not limiter.try_reserve()
    assert all(each.settle() for each in held)
    assert limiter.try_reserve()


@pytest.mark.parametrize("limit", ["2 requests/s window", "3 requests/s"])
def test_acquiring_within_what_was_acquired_comes_to_an_end(limit: str) -> None:
    async def nest(limiter: Limiter, depth: int) -> None:
        async with limiter.acquire():
            if depth > 1:
                await nest(limiter, depth - 1)

    asyncio.run(asyncio.wait_for(nest(Limiter(limit), int(limit[0])), 10))


def test_each_acquire_is_for_one_await() -> None:
    limiter = Limiter("10 requests/min", clock=ManualClock())

    async def main() -> None:
        acquire = limiter.acquire()
        await acquire
        with pytest.raises(RuntimeError, match="awaited already"):
            await acquire
        with pytest.warns(RuntimeWarning, match="never awaited"):
            limiter.acquire()  # takes nothing
        assert limiter.explain().limits[0].used == 1

    run(main())


def test_a_limit_is_changed_while_in_use() -> None:
    clock = ManualClock()
    limiter = Limiter(["100 requests/min bucket", "7 requests/s window"], clock=clock)
    assert limiter.try_acquire(7)
    limiter.set_limit("50 requests/min")
    assert limiter.limits[0] == Limit.parse("50 requests/min bucket")
    assert limiter.explain().limits[0].used == 7
    limiter.set_limit("200 requests/min bucket", debt="proportional")
    assert limiter.explain().limits[0].used == 28
    for bad in ("9 tokens/min", "9 requests/hour", "9 requests/min window"):
        with pytest.raises(ValueError):
            limiter.set_limit(bad)
    with pytest.raises(ValueError, match="debt 'relative'"):
        limiter.set_limit("9 requests/min", debt="relative")
    assert limiter.limits[0].amount == 200


def test_raising_a_limit_lets_waiters_go_at_once_and_lowering_it_fails_those_that_never_fit() -> (
    None
):
    clock = ManualClock()
    limiter = Limiter("10 tokens/min bucket", clock=clock)

    async def main() -> None:
        assert limiter.try_acquire(10)
        task = asyncio.create_task(asyncio.wait_for(limiter.acquire(8), 10))
        other = asyncio.create_task(asyncio.wait_for(limiter.acquire(8), 10))
        await turn()
        limiter.set_limit("20 tokens/min")
        await turn()
        assert task.done()
        limiter.set_limit("5 tokens/min")
        await turn()
        with pytest.raises(CapacityExceededError, match=r"needs 8 .* admits 5"):
            await other

    run(main())


def test_explain_says_what_binds_how_full_when_and_what_would_fit_now() -> None:
    clock = ManualClock()
    limiter = Limiter(["10 requests/min bucket", "1000 tokens/min bucket"], clock=clock)
    assert limiter.try_acquire(3, 900)
    look = limiter.explain(1, 200)
    assert look.binds == Limit.parse("1000 tokens/min bucket")
    assert look.ready_in == pytest.approx(7.0)
    assert look.fits_now == {"requests": 7, "tokens": 100}
    text = str(look)
    for part in ("'1000 tokens/min bucket' binds", "fits in 7.000 s", "3 of 10 used", "90%"):
        assert part in text
    assert "fits now" in str(limiter.explain(1, 50))
    assert "never fits" in str(limiter.explain(1, 2000))
    assert limiter.explain(1, 2000).ready_in == math.inf
    held = Limiter("1 concurrency")
    keep = held.try_reserve()
    assert held.explain().ready_in is None
    assert "when an answer comes" in str(held.explain())
    assert keep.cancel()


def test_clocks_that_stand_still_jump_an_hour_or_go_back_are_stood() -> None:
    clock = ManualClock(7200)
    for shape in ("bucket", "window", "fixed"):
        limiter = Limiter(Limit(2, per=60, shape=shape), clock=clock)
        assert limiter.try_acquire()
        clock.advance(-30)
        # Refusing now is right where the debt lies further ahead; admitting two more never is.
        assert limiter.try_acquire() + limiter.try_acquire() <= 1
        clock.advance(3600)
        assert limiter.try_acquire(2)
        assert not limiter.try_acquire()


def test_a_call_that_is_sent_late_and_says_so_holds_its_slot_from_then() -> None:
    clock = ManualClock(1000)
    limiter = Limiter("10 requests/10s window", clock=clock)
    for _ in range(3):  # how long a call takes by itself is known
        reservation = limiter.try_reserve()
        clock.advance(0.1)
        assert reservation.settle()
        clock.advance(1)
    clock.advance(30)
    late = limiter.try_reserve()
    clock.advance(5)
    assert late.sent()
    clock.advance(0.01)
    later = limiter.try_reserve()
    clock.advance(0.1)
    assert later.settle()
    # Nine more fit beside the late one, until ten seconds after it was sent.
    for _ in range(8):
        assert limiter.try_reserve().settle()
    clock.advance(9.8)
    assert not limiter.try_reserve()
    clock.advance(0.5)
    assert limiter.try_reserve()


def test_what_only_the_guard_adds_is_never_more_than_a_burst() -> None:
    clock = ManualClock()
    limiter = Limiter("60 requests/min bucket", clock=clock)
    assert limiter.try_acquire(60)
    for _ in range(10):
        clock.advance(1)
        assert limiter.try_acquire()
        (state,) = limiter.explain().limits
        assert (state.used, state.capacity) == (60, 60)


def test_what_is_no_limit_and_no_number_is_said_by_name() -> None:
    limiter = Limiter("1 requests/min")
    with pytest.raises(TypeError, match="limit 10: must be a Limit or its text"):
        limiter.set_limit(10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout '5': must be a number of seconds"):
        limiter.acquire_sync(timeout="5")  # type: ignore[arg-type]
