"""A scheduler that was given no limits keeps to what its provider's answers say."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from users import Provider, asks, at_once, make, until

from headway import (
    ConfigurationError,
    Denial,
    Limit,
    ManualClock,
    RateLimiterConfig,
    RateLimitInfo,
)
from headway.backends import MemoryBackend
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate.process import SimulatorProcess

NAMES = {"limit": "Limit", "remaining": "Remaining", "reset": "Reset"}


class Window:
    """A provider that admits so many requests in any minute, and says so."""

    def __init__(self, limit: int, clock: ManualClock, resource: str = "Requests") -> None:
        self.limit = limit
        self.clock = clock
        self.resource = resource
        self.counted: list[float] = []
        self.refused = 0

    def say(self) -> tuple[int, dict[str, str]]:
        now = self.clock.now()
        recent = [at for at in self.counted if at + 60 > now]
        admitted = len(recent) < self.limit
        if admitted:
            self.counted.append(now)
            recent.append(now)
        self.refused += not admitted
        says = {"limit": self.limit, "remaining": max(0, self.limit - len(recent))}
        headers = {f"X-RateLimit-{NAMES[k]}-{self.resource}": str(v) for k, v in says.items()}
        headers[f"X-RateLimit-Reset-{self.resource}"] = f"{recent[0] + 60 - now:.3f}s"
        return (200 if admitted else 429), headers

    async def call(self) -> SimpleNamespace:
        status, headers = self.say()
        return SimpleNamespace(status_code=status, headers=headers)


def ask_for(scheduler: Scheduler, server: Window, count: int) -> list[asyncio.Task[Any]]:
    async def one() -> Any:
        return await scheduler.submit_request(asks(), server.call)

    return [asyncio.ensure_future(one()) for _ in range(count)]


async def settle(clock: ManualClock, until: float) -> None:
    """Lets the clock run on, a little at a time."""
    while clock.now() < until:
        clock.advance(0.5)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("mode", ["intelligent", "account"])
def test_a_limit_is_kept_to_and_followed_when_it_changes(mode: str) -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(20, clock)
        async with make(mode, clock=clock) as scheduler:
            tasks = ask_for(scheduler, server, 400)
            await settle(clock, 1059)
            assert (len(server.counted), server.refused) == (20, 0)
            server.limit = 50
            await settle(clock, 1110)
            # The first of the next minute said so, and the others followed at once.
            assert (len(server.counted), server.refused) == (70, 0)
            explained = scheduler.explain(asks())
            assert explained is not None
            assert [str(each.limit) for each in explained.limits] == ["50 requests/min window"]
            assert explained.limits[0].learnt == "stated as 50, taken for a window so far"
            assert "(stated as 50, taken for a window so far)" in str(explained)
            server.limit = 10
            await settle(clock, 1170)
            refused = server.refused  # of the burst that was out before anybody knew
            await settle(clock, 1500)
            assert server.refused == refused
            assert sum(1 for at in server.counted if 1179 < at < 1479) == 50
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_in_basic_mode_and_without_rate_limiting_nothing_is_learnt() -> None:
    async def run(scheduler: Scheduler, clock: ManualClock) -> None:
        server = Window(5, clock)
        async with scheduler:
            for _ in range(5):
                await scheduler.submit_request(asks(), server.call)
            explained = scheduler.explain(asks())
            assert explained is not None
            assert explained.limits == ()

    clock = ManualClock(1000.0)
    asyncio.run(run(make("basic", clock=clock), clock))
    asyncio.run(run(make("intelligent", clock=clock, enable_rate_limiting=False), clock))


def test_what_is_never_stated_is_found_out_by_refusals() -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(20, clock)

        async def call() -> SimpleNamespace:
            return SimpleNamespace(status_code=server.say()[0], headers={})

        async with make(clock=clock, max_retries=0) as scheduler:
            tasks = [scheduler.submit(asks(), call) for _ in range(400)]
            await settle(clock, 1180)
            refused, admitted = server.refused, len(server.counted)
            assert 50 <= admitted <= 60
            await settle(clock, 1780)
            # Nearly all of ten minutes, and one refusal in each half of one at most.
            assert len(server.counted) - admitted >= 180
            assert server.refused - refused <= 20
            explained = scheduler.explain(asks())
            assert explained is not None
            assert [(each.limit.shape, each.learnt) for each in explained.limits] == [
                ("window", "not stated: found out by refusals"),
                ("bucket", "not stated: found out by refusals"),
            ]
            for task in tasks:
                task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_what_was_learnt_can_be_saved_and_begun_with(ratio: float) -> None:
    async def learn(clock: ManualClock, server: Window) -> str:
        async with make(clock=clock, rate_limit_buffer_ratio=ratio) as scheduler:
            tasks = ask_for(scheduler, server, 30)
            await settle(clock, clock.now() + 240)
            await asyncio.gather(*tasks)
            return json.dumps(scheduler.learnt_limits())

    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(20, clock)
        saved = await learn(clock, server)
        (limits,) = json.loads(saved).values()
        assert limits == ["20 requests/min window"]
        await settle(clock, 2000)
        config = RateLimiterConfig(rate_limit_buffer_ratio=ratio, max_concurrent_executions=500)
        scheduler = create_scheduler(
            None,
            "intelligent",
            config,
            provider="openai",
            clock=clock,
            learnt_limits=json.loads(saved),
        )
        async with scheduler:
            # Somebody else has used a part of it: the first goes ahead, and finds that.
            for _ in range(8):
                server.say()

            async def slow() -> SimpleNamespace:
                answer = await server.call()
                for _ in range(4):
                    await asyncio.sleep(0)  # the others go meanwhile
                return answer

            before = len(server.counted)
            tasks = [scheduler.submit(asks(), slow) for _ in range(40)]
            await settle(clock, clock.now() + 10)
            assert (len(server.counted) - before, server.refused) == (12 if ratio == 1 else 2, 0)
            explained = scheduler.explain(asks())
            assert explained is not None
            assert str(explained.limits[0].limit) == f"{int(20 * ratio)} requests/min window"
            # And follows it as it changes.
            server.limit = 40
            await settle(clock, clock.now() + 120)
            assert next(iter(scheduler.learnt_limits().values())) == ["40 requests/min window"]
            for task in tasks:
                task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("limit", [20, 30, 12])
def test_what_refusals_have_shown_is_saved_and_searched_on(limit: int) -> None:
    """As one that is stated, it would be kept to for ever by a server that says nothing."""

    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(20, clock)

        async def call() -> SimpleNamespace:
            return SimpleNamespace(status_code=server.say()[0], headers={})

        async def last(seconds: float, **options: Any) -> tuple[int, str]:
            async with make(clock=clock, max_retries=0, **options) as scheduler:
                tasks = [scheduler.submit(asks(), call) for _ in range(900)]
                await settle(clock, clock.now() + seconds)
                for task in tasks:
                    task.cancel()
                return server.refused, json.dumps(scheduler.learnt_limits())

        refused, saved = await last(400)
        known = json.loads(saved)["m"][0].split()[0]
        assert 18 <= int(known) <= 25
        assert json.loads(saved) == {"m": [f"{known} requests/min window by refusals"]}
        await settle(clock, clock.now() + 60)
        server.limit = limit
        begun = len(server.counted)
        refused_again, _ = await last(30, learnt_limits=json.loads(saved))
        # Evenly from the beginning on: half of it in half a minute.
        assert int(known) // 2 - 1 <= len(server.counted) - begun <= int(known) // 2 + 1
        assert refused_again == refused
        _, saved = await last(1200, learnt_limits=json.loads(saved))
        (found,) = json.loads(saved)["m"]
        assert 0.85 * limit <= int(found.split()[0]) <= 1.15 * limit
        assert found.endswith(" requests/min window by refusals")

    asyncio.run(run())


def test_learnt_limits_that_are_none_are_refused_by_name() -> None:
    for learnt, what in [
        (["20 requests/min"], "must be a dict"),
        ({"a": ["20 rpm"]}, "learnt_limits 'a'"),
        ({"a": ["20 requests/min by hearsay"]}, "learnt_limits 'a'"),
        ({1: ["20 requests/min"]}, "learnt_limits 1: a bucket id must be a str"),
    ]:
        with pytest.raises(ConfigurationError, match=re.escape(what)):
            create_scheduler(None, learnt_limits=cast(Any, learnt))


def test_a_provider_that_is_down_is_taken_for_no_limit() -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        answers: list[float] = []

        async def call() -> SimpleNamespace:
            down = 1020 <= clock.now() < 1060
            if not down:
                answers.append(clock.now())
            return SimpleNamespace(status_code=429 if down else 200, headers={})

        async with make(clock=clock, max_retries=0) as scheduler:
            tasks = []
            for second in range(200):
                tasks += [scheduler.submit(asks(), call) for _ in range(2)]
                await settle(clock, 1000 + second + 1)
            assert sum(at >= 1120 for at in answers) >= 2 * 80 * 0.9
            for task in tasks:
                task.cancel()

    asyncio.run(run())


def test_the_buffer_ratio_is_of_what_is_learnt_too() -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(100, clock)
        async with make(clock=clock, rate_limit_buffer_ratio=0.9) as scheduler:
            tasks = ask_for(scheduler, server, 120)
            await settle(clock, 1059)
            assert len(server.counted) == 90
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_limit_that_was_given_wins_and_others_are_learnt_beside_it() -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(100, clock)

        async def call() -> SimpleNamespace:
            status, headers = server.say()
            headers |= {"x-ratelimit-limit-tokens": "900", "x-ratelimit-remaining-tokens": "850"}
            return SimpleNamespace(status_code=status, headers=headers)

        limits = ["10 requests/min window"]
        async with make(clock=clock, limits=limits) as scheduler:
            await scheduler.submit_request(asks(estimated_tokens=50), call)
            explained = scheduler.explain(asks())
            assert explained is not None
            assert [str(each.limit) for each in explained.limits] == [
                "10 requests/min window",
                "900 tokens/min window",
            ]
            assert [each.used for each in explained.limits] == [1, 50]
            assert [each.learnt for each in explained.limits] == [
                None,
                "stated as 900, taken for a window so far",
            ]

    asyncio.run(run())


def _openai(limit: int, left: int, reset: str) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(left),
        "x-ratelimit-reset-requests": reset,
    }


@pytest.mark.parametrize(
    ("url", "answers", "limit", "learnt"),
    [
        (
            "https://api.anthropic.com",
            [
                {
                    "anthropic-ratelimit-requests-limit": "1000",
                    "anthropic-ratelimit-requests-remaining": "999",
                    "anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z",
                }
            ],
            "1000 requests/min bucket",
            "stated as 1000, bucket by its provider's table",
        ),
        (
            "https://api.openai.com/v1",
            [_openai(200, 200 - n, "23h59m50s") for n in range(1, 5)],
            "200 requests/day window",
            "stated as 200, period found out by resets, taken for a window so far",
        ),
        (
            "https://api.openai.com/v1",
            [_openai(600, 600 - 100 * n, f"{10 * n}s") for n in range(1, 5)],
            "600 requests/min bucket",
            "stated as 600, bucket by 4 answers",
        ),
        (
            "https://api.groq.com/openai/v1",
            [_openai(200, 200 - n, "23h59m50s") for n in range(1, 3)],
            "200 requests/day window",
            "stated as 200, period as its provider says, taken for a window so far",
        ),
    ],
    ids=["kind", "period-found-out", "kind-found-out", "period"],
)
def test_what_is_known_of_a_limit_is_said_with_what_it_is_known_by(
    url: str, answers: list[dict[str, str]], limit: str, learnt: str
) -> None:
    async def run() -> None:
        left = iter(answers)

        async def call() -> SimpleNamespace:
            return SimpleNamespace(status_code=200, headers=next(left))

        async with make(client=SimpleNamespace(base_url=url)) as scheduler:
            for _ in answers:
                await scheduler.submit_request(asks(), call)
            explained = scheduler.explain(asks())
            assert explained is not None
            (known,) = explained.limits
            said = str(known.learnt).partition(", others use")[0]
            assert (str(known.limit), said) == (limit, learnt)

    asyncio.run(run())


def test_input_tokens_are_what_an_estimate_is_of_where_only_they_are_limited() -> None:
    async def run() -> None:
        async def call() -> SimpleNamespace:
            headers = {
                "anthropic-ratelimit-input-tokens-limit": "1000",
                "anthropic-ratelimit-input-tokens-remaining": "900",
                "anthropic-ratelimit-input-tokens-reset": "2020-01-01T00:00:00Z",
            }
            return SimpleNamespace(status_code=200, headers=headers)

        client = SimpleNamespace(base_url="https://api.anthropic.com")
        async with create_scheduler(client) as scheduler:
            await scheduler.submit_request(asks(estimated_tokens=100), call)
            explained = scheduler.explain(asks(estimated_tokens=300))
            assert explained is not None
            (state,) = explained.limits
            assert str(state.limit) == "900 input_tokens/min bucket"
            assert explained.amounts[explained.resources.index("input_tokens")] == 300
            assert explained.amounts[explained.resources.index("tokens")] == 0

    asyncio.run(run())


def test_who_shares_the_words_knows_what_another_has_learnt() -> None:
    async def run() -> None:
        async def call() -> SimpleNamespace:
            headers = {
                "x-ratelimit-limit-input-tokens": "1000",
                "x-ratelimit-remaining-input-tokens": "900",
            }
            return SimpleNamespace(status_code=200, headers=headers)

        async def nothing() -> None:
            pass

        backend = MemoryBackend()
        async with (
            create_scheduler(None, backend=backend) as first,
            create_scheduler(None, backend=backend) as second,
        ):
            await second.submit_request(asks(estimated_tokens=1), nothing)
            await first.submit_request(asks(estimated_tokens=100), call)
            explained = second.explain(asks(estimated_tokens=300))
            assert explained is not None
            assert explained.amounts[explained.resources.index("input_tokens")] == 300

    asyncio.run(run())


def test_a_provider_of_ones_own_is_believed_instead() -> None:
    class Mine(Provider):
        def parse_rate_limit_response(
            self,
            headers: dict[str, str],
            body: dict[str, Any] | None = None,
            status_code: int | None = None,
        ) -> RateLimitInfo:
            left = int(headers["my-left"])
            return RateLimitInfo(rpm_limit=7, rpm_remaining=left, rpm_reset=time.time() + 60)

    async def run() -> None:
        left = 7

        async def call() -> SimpleNamespace:
            nonlocal left
            left -= 1
            headers = {"my-left": str(left), "x-ratelimit-limit-requests": "1000"}
            return SimpleNamespace(status_code=200, headers=headers)

        provider = Mine()
        async with make(provider=provider) as scheduler:
            for _ in range(3):
                await scheduler.submit_request(asks(), call)

            def left_by_now() -> int:
                explained = scheduler.explain(asks())
                assert explained is not None
                return explained.fits_now["requests"]

            await until(lambda: left_by_now() == 4)

    asyncio.run(run())


def test_threads_and_streams_are_listened_to_as_well() -> None:
    clock = ManualClock(1000.0)
    server = Window(9, clock)

    def call() -> SimpleNamespace:
        status, headers = server.say()
        return SimpleNamespace(status_code=status, headers=headers)

    class Stream:
        def __init__(self, headers: dict[str, str]) -> None:
            self.response = SimpleNamespace(headers=headers, status_code=200)

        def __aiter__(self) -> AsyncIterator[int]:
            return self.pieces()

        async def pieces(self) -> AsyncIterator[int]:
            yield 1

    async def streamed(scheduler: Scheduler) -> None:
        async def stream() -> Stream:
            return Stream(server.say()[1])

        async with scheduler:
            pieces = await scheduler.submit_request(asks(), stream)
            assert [piece async for piece in pieces] == [1]
            explained = scheduler.explain(asks())
            assert explained is not None
            assert explained.fits_now == {"requests": 8}

    asyncio.run(streamed(make(clock=clock)))
    server.counted.clear()
    with make(clock=clock) as scheduler:
        scheduler.submit_sync(asks(), call)
        explained = scheduler.explain(asks())
        assert explained is not None
        assert explained.fits_now == {"requests": 8}


@pytest.mark.parametrize("mode", ["intelligent", "account"])
def test_while_nothing_is_known_one_goes_alone_and_the_rest_when_it_is_back(mode: str) -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        server = Window(5, clock)
        answers = asyncio.Event()

        async def call() -> SimpleNamespace:
            says = await server.call()
            await answers.wait()
            return says

        async with make(mode, clock=clock) as scheduler:
            calls = [scheduler.submit(asks(), call) for _ in range(8)]
            await until(lambda: len(server.counted) == 1)
            await settle(clock, 1003)
            assert len(server.counted) == 1
            explained = scheduler.explain(asks())
            assert explained is not None
            assert "fits when an answer comes in; 7 waiting" in str(explained)
            assert scheduler.estimate(asks()) is None
            answers.set()
            await until(lambda: len(server.counted) == 5)
            await settle(clock, 1070)
            assert len([await each for each in calls]) == 8
            # It is known now: whoever comes does not ask first.
            answers.clear()
            await settle(clock, 1200)
            more = [scheduler.submit(asks(), call) for _ in range(4)]
            await until(lambda: len(server.counted) == 12)
            answers.set()
            assert len([await each for each in more]) == 4
        assert server.refused == 0

    asyncio.run(run())


def test_one_that_goes_alone_is_not_waited_for_for_ever() -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        out: list[float] = []
        all_are_out = asyncio.Event()

        async def call() -> None:
            out.append(clock.now())
            if len(out) == 3:
                all_are_out.set()
            await all_are_out.wait()

        async with make(clock=clock) as scheduler:
            calls = [scheduler.submit(asks(), call) for _ in range(3)]
            await until(lambda: len(out) == 1)
            await settle(clock, 1006)
            for each in calls:
                await each
        assert out[0] == 1000
        assert out[1] == out[2] == 1005.5

    asyncio.run(run())


@pytest.mark.parametrize("how", ["cancelled", "raises", "refused"])
def test_one_that_goes_alone_and_brings_nothing_back_lets_others_go(how: str) -> None:
    async def run() -> None:
        clock = ManualClock(1000.0)
        began: list[float] = []
        goes_on = asyncio.Event()

        async def call() -> SimpleNamespace:
            began.append(clock.now())
            if len(began) > 1:
                return SimpleNamespace(status_code=200, headers={})
            await goes_on.wait()
            if how == "raises":
                raise ValueError("mine")
            return SimpleNamespace(status_code=429, headers={"retry-after": "7"})

        async with make(clock=clock, max_retries=0) as scheduler:
            first = scheduler.submit(asks(), call)
            others = [scheduler.submit(asks(), call) for _ in range(3)]
            await until(lambda: len(began) == 1)
            if how == "cancelled":
                first.cancel()
            goes_on.set()
            if how == "refused":
                assert (await first).status_code == 429
                await settle(clock, 1006.5)
                assert len(began) == 1  # for as long as it was told
                await settle(clock, 1008)  # and up to a tenth more
            for each in others:
                assert (await each).status_code == 200
            if how == "raises":
                with pytest.raises(ValueError, match="mine"):
                    await first
        assert len(began) == 4

    asyncio.run(run())


def test_with_nobody_to_learn_from_all_go_at_once() -> None:
    async def run() -> None:
        out = 0
        all_are_out = asyncio.Event()

        async def call() -> None:
            nonlocal out
            out += 1
            if out == 5:
                all_are_out.set()
            await asyncio.wait_for(all_are_out.wait(), 10)

        for options in ({"client": object()}, {"limits": ["9 requests/min"]}, {"mode": "basic"}):
            out = 0
            all_are_out.clear()
            async with make(**options) as scheduler:
                for each in [scheduler.submit(asks(), call) for _ in range(5)]:
                    await each

    asyncio.run(run())


def test_threads_let_one_of_them_go_first() -> None:
    clock = ManualClock(1000.0)
    server = Window(100, clock)
    first_is_out, answers = threading.Event(), threading.Event()

    def call() -> SimpleNamespace:
        status, headers = server.say()
        first_is_out.set()
        assert answers.wait(20)
        return SimpleNamespace(status_code=status, headers=headers)

    with make(clock=clock) as scheduler, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(scheduler.submit_sync, asks(), call) for _ in range(4)]
        assert first_is_out.wait(20)
        bucket = scheduler._find.known(asks())
        assert bucket is not None
        while bucket.queued < 3:
            time.sleep(0.001)  # nothing tells of a thread that has begun to wait
        assert len(server.counted) == 1
        answers.set()
        assert [each.result(20).status_code for each in calls] == [200] * 4


def test_a_denial_says_that_no_limit_binds_but_an_answer_is_waited_for() -> None:
    async def run() -> None:
        backend = MemoryBackend()
        async with make(limits=["10 requests/min"], backend=backend) as scheduler:
            await scheduler.submit_request(asks(), at_once)
            bucket = scheduler._find.known(asks())
            assert bucket is not None
            bucket.cool(60.0)
            denial = bucket.try_reserve(1)
            assert isinstance(denial, Denial)
            assert denial.cooling
            assert 59 < denial.retry_after <= 60
            assert denial.limit == Limit(10, "requests", 60.0)
            assert "waits for an answer" in repr(denial)
            assert await backend.check_and_reserve_capacity("m", 1, 0) == (False, None)

    asyncio.run(run())


def test_a_real_server_refuses_nothing() -> None:
    async def run() -> None:
        limits = ("--limits", "8 requests/min window", "--latency", "0.01")
        with SimulatorProcess(*limits) as simulator:
            client = SimpleNamespace(base_url=simulator.url)
            async with httpx.AsyncClient() as http, make(client=client) as scheduler:

                async def call() -> httpx.Response:
                    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                    return await http.post(f"{simulator.url}/v1/chat/completions", json=body)

                calls = [scheduler.submit(asks(), call) for _ in range(12)]
                done, waiting = await asyncio.wait(
                    [asyncio.ensure_future(_result(each)) for each in calls], timeout=1.0
                )
                assert (len(done), len(waiting)) == (8, 4)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            assert simulator.stats()["refused"] == 0

    asyncio.run(run())


async def _result(call: Any) -> Any:
    return await call
