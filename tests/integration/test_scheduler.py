"""Scheduler: what it promises to whoever submits, on real event loops and threads."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from users import Provider, asks, at_once, idle, make, until

from headway import (
    CapacityExceededError,
    DeadlineExceededError,
    ManualClock,
    QueueOverflowError,
    RequestMetadata,
    RequestTimeoutError,
    SchedulerStoppedError,
    TooManyFailedRequestsError,
)
from headway._core import WithReservation
from headway.scheduler import Account, Handle, Scheduler

MODES = ["basic", "intelligent", "account"]


class Refused(Exception):
    """An answer as an exception, as SDKs raise it."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = headers or {}


# -- the way of one request ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_what_the_call_returned(mode: str) -> None:
    async def run() -> None:
        async with make(mode) as scheduler:
            for result in (42, None, "text", {"usage": None}, (1, 2), StopIteration(3), [1]):

                async def call(given: Any = result) -> Any:
                    await asyncio.sleep(0)
                    return given

                assert await scheduler.submit_request(asks(), call) is result

    asyncio.run(run())


@pytest.mark.parametrize("mode", MODES)
def test_what_the_call_raises_reaches_its_caller_unchanged(mode: str) -> None:
    error = ValueError("mine")

    async def fails() -> None:
        raise error

    async def run() -> None:
        async with make(mode) as scheduler:
            with pytest.raises(ValueError) as caught:
                await scheduler.submit_request(asks(), fails)
            assert caught.value is error
            assert scheduler.get_metrics()["attempts"] == 1, "it would fail the same way again"

    asyncio.run(run())


def test_a_request_function_that_gives_no_awaitable_is_told_so() -> None:
    async def run() -> None:
        async with make() as scheduler:
            with pytest.raises(TypeError, match="must give an awaitable, not int"):
                await scheduler.submit_request(asks(), lambda: 42)  # type: ignore[arg-type,return-value]
            with pytest.raises(TypeError, match="must be callable"):
                scheduler.submit_request(asks(), 42)  # type: ignore[arg-type]
            assert await scheduler.submit_request(asks(), at_once) == 42

    asyncio.run(run())


def test_each_is_for_one_await() -> None:
    async def run() -> None:
        async with make() as scheduler:
            call = scheduler.submit_request(asks(), at_once)
            assert await call == 42
            with pytest.raises(RuntimeError, match="awaited already"):
                await call

    asyncio.run(run())


def test_one_that_is_never_awaited_warns() -> None:
    scheduler = make()
    with pytest.warns(RuntimeWarning, match="never awaited"):
        scheduler.submit_request(asks(), at_once)


def test_it_can_be_a_task_and_be_waited_for() -> None:
    async def slow() -> int:
        await asyncio.sleep(0.01)
        return 7

    async def run() -> None:
        async with make() as scheduler:
            call: Any = scheduler.submit_request(asks(), slow)
            assert await asyncio.create_task(call) == 7
            assert await asyncio.wait_for(scheduler.submit_request(asks(), slow), 5) == 7
            assert await asyncio.gather(
                *(scheduler.submit_request(asks(), slow) for _ in range(3))
            ) == [7, 7, 7]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("estimated_tokens", -1, "estimated_tokens -1: must be from 0"),
        ("estimated_tokens", 1.5, "estimated_tokens 1.5: must be a whole number"),
        ("estimated_tokens", True, "estimated_tokens True: must be a whole number"),
        ("estimated_tokens", 10**30, "estimated_tokens 1000000000000000000000000000000: must be"),
        ("priority", 1.5, "priority 1.5: must be a whole number"),
        ("priority", 10**10, "priority 10000000000: must be from"),
        ("timeout", -1.0, "timeout -1.0: must be a number of seconds"),
        ("deadline", float("nan"), "deadline nan: must be a number of seconds"),
        ("cost", {"requests": -1}, "requests -1: must be from 0"),
        ("cost", [1], r"cost \[1\]: must be a dict"),
    ],
)
def test_metadata_that_makes_no_sense_is_named(field: str, value: Any, error: str) -> None:
    async def run() -> None:
        async with make(limits=["10 requests/min"]) as scheduler:
            with pytest.raises((ValueError, TypeError), match=error):
                await scheduler.submit_request(asks(**{field: value}), at_once)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].used == 0

    asyncio.run(run())


# -- limits ---------------------------------------------------------------------------------------


def test_the_buffer_ratio_is_what_part_of_the_limit_is_used() -> None:
    async def run() -> None:
        clock = ManualClock()
        scheduler = make(
            limits=["10 requests/min bucket", "3 concurrency"],
            clock=clock,
            rate_limit_buffer_ratio=0.9,
        )
        async with scheduler:
            done = [
                asyncio.ensure_future(scheduler.submit_request(asks(), at_once)) for _ in "x" * 12
            ]
            await asyncio.sleep(0.05)
            assert sum(each.done() for each in done) == 9
            clock.advance(60)
            await asyncio.gather(*done)

    asyncio.run(run())


def test_what_can_never_fit_fails_at_once_with_both_numbers() -> None:
    async def run() -> None:
        scheduler = make(
            limits={"m": ["500 tokens/min"], "exact": "480 tokens/min"}, rate_limit_buffer_ratio=0.9
        )
        async with scheduler:
            with pytest.raises(CapacityExceededError) as caught:
                await scheduler.submit_request(asks(estimated_tokens=480), at_once)
            assert "needs 480 tokens, the limit is 450 (500 at ratio 0.9)" in str(caught.value)
            assert caught.value.bucket_id == "m"
            assert caught.value.retry_after is None
            # As large as the limit fits.
            assert await scheduler.submit_request(asks(estimated_tokens=450), at_once) == 42
            cost = {"tokens": 432, "output_tokens": 10**9}  # which this bucket does not count
            assert await scheduler.submit_request(asks("exact", cost=cost), at_once) == 42

    asyncio.run(run())


def test_usage_that_a_result_tells_settles_the_tokens() -> None:
    class Usage:
        total_tokens = 30

    class Response:
        usage = Usage()

    async def run() -> None:
        async with make(limits=["100 tokens/min"]) as scheduler:

            async def call() -> Response:
                return Response()

            await scheduler.submit_request(asks(estimated_tokens=100), call)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].used == 30

            async def dictionary() -> dict[str, Any]:
                return {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}

            await scheduler.submit_request(asks(estimated_tokens=70), dictionary)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].used == 40

    asyncio.run(run())


def test_where_only_input_is_limited_the_estimate_is_of_input() -> None:
    async def run() -> None:
        limits = ["100 input_tokens/min", "50 output_tokens/min"]
        async with make(limits=limits) as scheduler:
            metadata = asks(estimated_tokens=70, cost={"output_tokens": 20})
            await scheduler.submit_request(metadata, at_once)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert [state.used for state in explanation.limits] == [70, 20]

    asyncio.run(run())


def test_no_more_run_at_once_than_configured_over_all_buckets() -> None:
    running = 0
    most = 0

    async def call() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    async def run() -> None:
        async with make(max_concurrent_executions=7) as scheduler:
            await asyncio.gather(
                *(scheduler.submit_request(asks(f"m{i % 5}"), call) for i in range(100))
            )
            assert scheduler.get_metrics()["active_requests"] == 0

    asyncio.run(run())
    assert most == 7


# -- order ----------------------------------------------------------------------------------------


async def order_of(
    scheduler: Scheduler, clock: ManualClock, requests: list[RequestMetadata]
) -> list[str]:
    """The request ids in the order in which they run, one each second."""
    order: list[str] = []

    def call(request_id: str) -> Callable[[], Awaitable[None]]:
        async def append() -> None:
            order.append(request_id)

        return append

    tasks = []
    for number, metadata in enumerate(requests):
        metadata.request_id = str(number)
        tasks.append(
            asyncio.ensure_future(scheduler.submit_request(metadata, call(metadata.request_id)))
        )
        await asyncio.sleep(0)
    while not all(task.done() for task in tasks):
        clock.advance(1)
        for _ in range(5):
            await asyncio.sleep(0)
    return order


def test_higher_priorities_go_first_and_basic_mode_knows_none() -> None:
    requests = [asks(), asks(priority=0), asks(priority=1), asks(priority=5), asks(priority=1)]

    async def run(mode: str, **options: Any) -> list[str]:
        clock = ManualClock()
        async with make(
            mode, limits=["60 requests/min bucket burst 1"], clock=clock, **options
        ) as scheduler:
            return await order_of(scheduler, clock, requests)

    assert asyncio.run(run("intelligent")) == ["0", "3", "2", "4", "1"]
    assert asyncio.run(run("basic")) == ["0", "1", "2", "3", "4"]
    assert asyncio.run(run("intelligent", enable_priority_scheduling=False)) == [*"01234"]


def test_waiting_raises_the_priority_as_configured() -> None:
    async def run(ageing: float) -> float:
        """After how many seconds one gets through that a more urgent one each second passes."""
        clock = ManualClock()
        limits = ["60 requests/min bucket burst 1"]
        async with make(limits=limits, clock=clock, priority_ageing=ageing) as scheduler:
            await scheduler.submit_request(asks(), at_once)
            patient = asyncio.ensure_future(scheduler.submit_request(asks(), at_once))
            urgent = []
            while not patient.done():
                urgent.append(
                    asyncio.ensure_future(scheduler.submit_request(asks(priority=2), at_once))
                )
                await asyncio.sleep(0.005)
                clock.advance(1)
                await asyncio.sleep(0.005)
            for task in urgent:
                task.cancel()
            return clock.now()

    assert asyncio.run(run(3.0)) == 7.0  # behind the last that came before 6.0
    assert asyncio.run(run(10.0)) == 21.0


def test_accounts_share_by_weight_and_intelligent_mode_does_not_look_at_them() -> None:
    requests = [asks(client_id="flood") for _ in range(9)]
    requests += [asks(client_id="light"), asks(client_id="light"), asks()]

    async def run(mode: str) -> list[str]:
        clock = ManualClock()
        async with make(
            mode,
            limits=["60 requests/min bucket burst 1"],
            clock=clock,
            accounts={"flood": 1, "light": Account(2.0)},
        ) as scheduler:
            return await order_of(scheduler, clock, requests)

    order = asyncio.run(run("account"))
    assert sorted(order[:6], key=int)[-3:] == ["9", "10", "11"], order
    with pytest.warns(
        UserWarning, match=r"no meaning in headway: accounts \(in mode intelligent\)"
    ):
        assert asyncio.run(run("intelligent")) == [str(i) for i in range(12)]


def test_an_accounts_own_limits_hold_it_up_alone() -> None:
    async def run() -> None:
        clock = ManualClock()
        scheduler = make(
            "account", clock=clock, accounts={"small": Account(limits=["2 requests/min"])}
        )
        async with scheduler:
            small = [
                asyncio.ensure_future(
                    scheduler.submit_request(asks(f"m{i % 2}", client_id="small"), at_once)
                )
                for i in range(4)
            ]
            others = [scheduler.submit_request(asks(f"m{i % 2}"), at_once) for i in range(20)]
            assert await asyncio.gather(*others) == [42] * 20
            assert sum(each.done() for each in small) == 2
            with pytest.raises(CapacityExceededError, match="the account's own limit is 2"):
                await scheduler.submit_request(
                    asks(client_id="small", cost={"requests": 3}), at_once
                )
            clock.advance(61)
            assert await asyncio.gather(*small) == [42] * 4

    asyncio.run(run())


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_attempt_that_takes_too_long_is_cancelled_and_tried_again(mode: str) -> None:
    attempts = 0
    cancelled = 0

    async def call() -> int:
        nonlocal attempts, cancelled
        attempts += 1
        if attempts < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                raise
        return attempts

    async def run() -> None:
        async with make(mode, request_timeout=0.02) as scheduler:
            assert await scheduler.submit_request(asks(), call) == 3
            assert cancelled == 2
            assert scheduler.get_metrics()["request_timeouts"] == 2
            task = asyncio.current_task()
            assert task is not None
            if hasattr(task, "cancelling"):
                assert task.cancelling() == 0, "no request to cancel is left behind"

    asyncio.run(run())


def test_the_smaller_of_the_two_timeouts_wins_and_is_named() -> None:
    async def run() -> None:
        async with make(request_timeout=30.0, max_retries=0) as scheduler:
            began = time.monotonic()
            with pytest.raises(RequestTimeoutError, match=r"^Request timed out after 0\.02s$"):
                await scheduler.submit_request(asks(timeout=0.02), lambda: asyncio.sleep(60))
            assert time.monotonic() - began < 5
            with pytest.raises(TimeoutError):
                await scheduler.submit_request(asks(timeout=0.02), lambda: asyncio.sleep(60))

    asyncio.run(run())


def test_the_timeout_bounds_the_attempt_and_not_the_wait() -> None:
    async def run() -> None:
        async with make(
            max_concurrent_executions=1, request_timeout=0.2, max_retries=0
        ) as scheduler:

            async def call() -> int:
                await asyncio.sleep(0.1)
                return 1

            assert (
                await asyncio.gather(*(scheduler.submit_request(asks(), call) for _ in range(5)))
                == [1] * 5
            )

    asyncio.run(run())


def test_a_task_that_is_cancelled_while_its_call_runs_is_cancelled() -> None:
    async def run() -> None:
        async with make() as scheduler:
            began = asyncio.Event()

            async def call() -> None:
                began.set()
                await asyncio.sleep(60)

            task = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scheduler.get_metrics()["active_requests"] == 0
            assert scheduler.get_metrics()["requests_cancelled"] == 1

    asyncio.run(run())


def test_a_cancelled_wait_is_never_executed_and_gives_its_place_back() -> None:
    ran: list[int] = []

    async def run() -> None:
        clock = ManualClock()
        async with make(limits=["60 requests/min bucket burst 1"], clock=clock) as scheduler:

            def call(number: int) -> Callable[[], Awaitable[None]]:
                async def append() -> None:
                    ran.append(number)

                return append

            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), call(i))) for i in range(4)
            ]
            await asyncio.sleep(0.01)
            tasks[1].cancel()
            await asyncio.sleep(0.01)
            clock.advance(1)
            # Between its wake-up and its next step.
            tasks[2].cancel()
            await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            assert ran == [0, 3], "its unit went to the next"
            assert scheduler.get_metrics()["buckets"]["m"]["queue_depth"] == 0

    asyncio.run(run())


def test_a_deadline_that_cannot_be_met_fails_at_submission() -> None:
    async def run() -> None:
        clock = ManualClock()
        async with make(limits=["1 requests/min bucket burst 1"], clock=clock) as scheduler:
            assert await scheduler.submit_request(asks(deadline=0), at_once) == 42
            with pytest.raises(
                DeadlineExceededError, match=r"within 30\.000 s: it would have taken 60"
            ):
                await scheduler.submit_request(asks(deadline=30), at_once)
            waiting = asyncio.ensure_future(scheduler.submit_request(asks(deadline=61), at_once))
            await asyncio.sleep(0.01)
            clock.advance(60)
            assert await waiting == 42

    asyncio.run(run())


def test_a_deadline_bounds_the_wait_for_a_provider_too() -> None:
    class Provider:
        name = "slow"

        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            return {}

        async def get_bucket_for_model(
            self, model_id: str, resource_type: str | None = None
        ) -> str:
            await asyncio.sleep(0.1)
            return model_id

    async def run() -> None:
        async with make(provider=Provider()) as scheduler:
            with pytest.raises(DeadlineExceededError):
                await scheduler.submit_request(asks(deadline=0.02), at_once)
            assert await scheduler.submit_request(asks(deadline=0.02), at_once) == 42

    asyncio.run(run())


@pytest.mark.parametrize("status", [503, 429])
@pytest.mark.parametrize("mode", MODES)
def test_a_retry_that_would_begin_after_the_deadline_is_not_waited_for(
    mode: str, status: int
) -> None:
    async def run() -> None:
        failures: list[Refused] = []

        async def call() -> None:
            failures.append(Refused(status, {"Retry-After": "100"}))
            raise failures[-1]

        async with make(mode) as scheduler:
            with pytest.raises(
                DeadlineExceededError, match=r"within 50\.000 s: .* taken 10"
            ) as told:
                await asyncio.wait_for(scheduler.submit_request(asks(deadline=50), call), 20)
            assert [told.value.__cause__] == failures
            assert scheduler.get_metrics()["retries"] == (1 if status == 429 else 0)
            assert idle(scheduler)

    asyncio.run(run())


@pytest.mark.parametrize("wait", [5, 0.01])
def test_a_deadline_counts_from_submission_for_a_retry_too(wait: float) -> None:
    async def run() -> None:
        clock = ManualClock()
        attempts = 0

        async def call() -> int:
            nonlocal attempts
            attempts += 1
            if attempts > 1:
                return 42
            clock.advance(4)
            raise Refused(503, {"Retry-After": str(wait)})

        async with make(limits=["60 requests/min bucket burst 1"], clock=clock) as scheduler:
            before = outcomes(scheduler)
            assert await scheduler.submit_request(asks(), at_once) == 42
            handle = scheduler.submit(asks(deadline=8), call)
            await asyncio.sleep(0)
            clock.advance(1)
            if wait < 1:
                assert await asyncio.wait_for(handle, 20) == 42
                return
            # It has waited for 1 s and was under way for 4.
            with pytest.raises(DeadlineExceededError, match=r"it would have taken 10\."):
                await asyncio.wait_for(handle, 20)
            assert outcomes(scheduler) - before == {"succeeded": 1, "deadline": 1}

    asyncio.run(run())


def test_a_threads_retry_that_comes_too_late_is_counted_as_such() -> None:
    def call() -> int:
        raise Refused(503, {"Retry-After": "60"})

    with make(limits=["60 requests/min"], client=None) as scheduler:
        before = outcomes(scheduler)
        with pytest.raises(DeadlineExceededError, match="it would have taken"):
            scheduler.submit_sync(asks(deadline=30), call)
        assert outcomes(scheduler) - before == {"deadline": 1}


def outcomes(scheduler: Scheduler) -> Counter[str]:
    """How many requests have ended in each way, of all schedulers that nobody has named."""
    series = scheduler.get_metrics()["series"].get("headway_requests_total", [])
    counts: Counter[str] = Counter()
    for each in series:
        counts[each["outcome"]] += each["value"]
    return counts


def test_what_is_told_to_stop_between_two_steps_does_not_begin() -> None:
    async def run() -> None:
        named, ran = asyncio.Event(), []

        class Slow(Provider):
            async def get_bucket_for_model(self, *_: Any) -> str:
                await named.wait()
                return "m"

        async def call() -> None:
            ran.append(1)

        async with make(provider=Slow()) as scheduler:
            loop = asyncio.get_running_loop()
            request = scheduler.submit_request(asks(), call)
            request._enlist()
            task = loop.create_task(request)
            await until(lambda: task._fut_waiter is not None)  # type: ignore[attr-defined]
            answer, told = task._fut_waiter, loop.create_future()  # type: ignore[attr-defined]

            def look() -> None:
                """Stops it when its answer is there, and before it goes on with that."""
                if answer.done():
                    request._stop()
                    told.set_result(None)
                else:
                    loop.call_soon(look)

            look()
            named.set()
            await told
            assert ran == []
            with pytest.raises(SchedulerStoppedError):
                await asyncio.wait_for(task, 20)
            assert ran == []

    asyncio.run(run())


def test_estimates_know_of_accounts_own_limits_and_of_a_full_gate() -> None:
    async def run() -> None:
        clock = ManualClock()
        scheduler = make(
            "account",
            clock=clock,
            max_concurrent_executions=1,
            accounts={"small": Account(limits=["1 requests/min"])},
        )
        async with scheduler:
            small = asks(client_id="small")
            assert await scheduler.submit_request(small, at_once) == 42
            assert scheduler.estimate(small) == pytest.approx(60.0)
            assert scheduler.estimate(asks()) == 0.0
            with pytest.raises(DeadlineExceededError, match="would have taken 60"):
                await scheduler.submit_request(asks(client_id="small", deadline=30), at_once)
            hold = asyncio.Event()
            running = asyncio.ensure_future(scheduler.submit_request(asks(), hold.wait))
            await asyncio.sleep(0)
            assert scheduler.estimate(asks()) is None
            hold.set()
            await running

    asyncio.run(run())


# -- retries, cooling, breaker --------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "error",
    [
        Refused(500),
        Refused(503),
        Refused(529),
        Refused(408),
        ConnectionResetError("gone"),
        TimeoutError("late"),
        asyncio.TimeoutError(),
    ],
)
def test_failures_that_may_pass_are_tried_again(mode: str, error: Exception) -> None:
    attempts = 0

    async def call() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise error
        return attempts

    async def run() -> None:
        async with make(mode) as scheduler:
            assert await scheduler.submit_request(asks(), call) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    "error",
    [
        Refused(400),
        Refused(401),
        Refused(404),
        Refused(409),
        Refused(500, {"x-should-retry": "false"}),
        ValueError("wrong"),
        FileNotFoundError("prompt.txt"),
        KeyError("x"),
    ],
)
def test_others_are_not(error: Exception) -> None:
    attempts = 0

    async def call() -> None:
        nonlocal attempts
        attempts += 1
        raise error

    async def run() -> None:
        async with make() as scheduler:
            with pytest.raises(type(error)) as caught:
                await scheduler.submit_request(asks(), call)
            assert caught.value is error

    asyncio.run(run())
    assert attempts == 1


def test_retry_on_names_further_exceptions() -> None:
    class Flaky(Exception):
        pass

    attempts = 0

    async def call() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise Flaky
        return attempts

    async def run() -> None:
        async with make(retry_on=[Flaky]) as scheduler:
            assert await scheduler.submit_request(asks(), call) == 2

    asyncio.run(run())


def test_the_last_error_is_the_callers_after_max_retries() -> None:
    errors = [Refused(500) for _ in range(5)]
    raised: list[Refused] = []

    async def call() -> None:
        raised.append(errors[len(raised)])
        raise raised[-1]

    async def run() -> None:
        async with make(max_retries=2) as scheduler:
            with pytest.raises(Refused) as caught:
                await scheduler.submit_request(asks(), call)
            assert caught.value is errors[2]

    asyncio.run(run())
    assert len(raised) == 3


def test_a_deadline_of_nothing_is_now_or_never() -> None:
    """By the real clock, which goes on between the submission and the first look."""

    async def run() -> None:
        async with make(limits=["2 requests/hour bucket"]) as scheduler:
            assert await scheduler.submit_request(asks(deadline=0), at_once) == 42
            assert await asyncio.to_thread(scheduler.submit_sync, asks(deadline=0), int) == 0
            for submit in (
                lambda: scheduler.submit_request(asks(deadline=0), at_once),
                lambda: asyncio.to_thread(scheduler.submit_sync, asks(deadline=0), int),
            ):
                with pytest.raises(DeadlineExceededError, match=r"within 0\.000 s"):
                    await submit()

    asyncio.run(run())


def test_the_retry_budget_is_of_the_whole_scheduler() -> None:
    attempts = 0

    async def call() -> None:
        nonlocal attempts
        attempts += 1
        raise Refused(500)

    async def run() -> None:
        async with make(max_failures=100_000) as scheduler:
            results = await asyncio.gather(
                *(scheduler.submit_request(asks(f"m{i % 9}"), call) for i in range(100)),
                return_exceptions=True,
            )
            assert all(isinstance(each, Refused) for each in results)

    asyncio.run(run())
    assert attempts == 100 + 10 + 20


def test_the_retry_budget_grows_though_buckets_are_forgotten() -> None:
    clock = ManualClock()

    async def run() -> None:
        async with make(clock=clock) as scheduler:
            for number in range(300):
                failures = [Refused(500)] if number % 6 == 0 else []  # below one in five

                async def call(failures: list[Refused] = failures) -> int:
                    if failures:
                        raise failures.pop()
                    return 42

                assert await scheduler.submit_request(asks(f"m{number}"), call) == 42
                if number % 10 == 9:
                    clock.advance(100)
                    scheduler._buckets._forget()
                    assert len(scheduler._buckets) == 0
            metrics = scheduler.get_metrics()
            assert (metrics["retries"], metrics["retry_budget_used_up"]) == (50, 0)

    asyncio.run(run())


def test_the_retry_budget_grows_by_the_requests_of_threads_as_well() -> None:
    with make(clock=ManualClock()) as scheduler:
        failures: list[Refused] = []

        def call() -> int:
            if failures:
                raise failures.pop()
            return 42

        # Twenty in a hundred, of which the ten spare ones are half.
        for number in range(100):
            failures[:] = [Refused(500)] if number % 5 == 4 else []
            assert scheduler.submit_sync(asks(), call) == 42
        metrics = scheduler.get_metrics()
        assert (metrics["retries"], metrics["retry_budget_used_up"]) == (20, 0)


def test_a_result_that_is_a_refusal_is_tried_again_and_given_in_the_end() -> None:
    class Response:
        status_code = 503
        headers: dict[str, str] = {}  # noqa: RUF012

    attempts = 0

    async def call() -> Response:
        nonlocal attempts
        attempts += 1
        return Response()

    async def run() -> None:
        async with make(max_retries=2) as scheduler:
            assert isinstance(await scheduler.submit_request(asks(), call), Response)

    asyncio.run(run())
    assert attempts == 3


def test_a_refusal_cools_its_bucket_down_for_as_long_as_told_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[float] = []
    # A tenth more at most, by chance, or all who were told the same would come back at once.
    monkeypatch.setattr("random.random", lambda: 0.5)

    async def run() -> None:
        clock = ManualClock()
        async with make(clock=clock) as scheduler:

            async def call() -> str:
                sent.append(clock.now())
                if len(sent) == 1:
                    raise Refused(429, {"Retry-After": "7"})
                return "good"

            first = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await until(lambda: scheduler.get_metrics()["cool_downs"] == 1)
            second = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            assert await scheduler.submit_request(asks("other"), at_once) == 42
            await asyncio.sleep(0.02)
            assert sent == [0.0]
            clock.advance(7.3)
            await asyncio.sleep(0.02)
            assert sent == [0.0]
            clock.advance(0.1)
            assert await asyncio.gather(first, second) == ["good", "good"]
            assert sent == pytest.approx([0.0, 7.4, 7.4])
            assert scheduler.get_metrics()["cool_downs"] == 1

    asyncio.run(run())


def test_many_refusals_of_one_burst_wait_for_one_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def draw() -> float:
        drawn.append(0.2 + 0.1 * len(drawn))
        return drawn[-1]

    async def run() -> None:
        clock = ManualClock()
        async with make(clock=clock, limits=["1_000 requests/min"]) as scheduler:
            for turn in (1, 2):
                gate = asyncio.Event()
                refused = begun = 0

                async def call() -> str:
                    nonlocal begun, refused
                    begun += 1
                    await gate.wait()  # noqa: B023 - of this turn
                    if refused < 5:
                        refused += 1
                        raise Refused(429, {"Retry-After": "20"})
                    return "good"

                tasks = [
                    asyncio.ensure_future(scheduler.submit_request(asks(), call)) for _ in range(5)
                ]
                await until(lambda: begun == 5)  # noqa: B023
                monkeypatch.setattr("random.random", draw)
                gate.set()
                await until(lambda: scheduler.get_metrics()["refusals"] == 5 * turn)  # noqa: B023
                monkeypatch.undo()
                cooled = scheduler.get_metrics()["buckets"]["m"]["cooled_for"]
                assert cooled == pytest.approx(20 + drawn[-1])
                clock.advance(cooled + 0.001)
                assert await asyncio.gather(*tasks) == ["good"] * 5

    asyncio.run(asyncio.wait_for(run(), 20))
    assert drawn == pytest.approx([0.2, 0.3])


def test_spent_credit_is_not_waited_for() -> None:
    error = Refused(429)
    error.body = {"error": {"code": "insufficient_quota"}}  # type: ignore[attr-defined]

    async def fails() -> None:
        raise error

    async def run() -> None:
        async with make() as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(asks(), fails)
            assert scheduler.get_metrics()["attempts"] == 1

    asyncio.run(run())


@pytest.mark.parametrize("raises", [True, False])
def test_of_spent_credit_it_says_so(raises: bool, caplog: pytest.LogCaptureFixture) -> None:
    spent = b'{"error": {"message": "You exceeded it", "code": "insufficient_quota"}}'
    response = httpx.Response(429, content=spent, request=httpx.Request("POST", "http://h"))

    async def call() -> httpx.Response:
        return response.raise_for_status() if raises else response

    async def run() -> None:
        async with make() as scheduler:
            for _ in range(2):
                try:
                    assert (await scheduler.submit_request(asks(), call)).status_code == 429
                except httpx.HTTPStatusError as error:
                    if sys.version_info >= (3, 11):
                        said = [note for note in error.__notes__ if "credit is spent" in note]
                        assert len(said) == 1
            metrics = scheduler.get_metrics()
            assert (metrics["attempts"], metrics["retries"]) == (2, 0)

    asyncio.run(run())
    assert sum("credit is spent" in each.message for each in caplog.records) == 1


def test_of_a_used_up_budget_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    same = Refused(500)

    async def call() -> None:
        raise same

    async def run() -> None:
        async with make(max_failures=100_000, max_retries=0) as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(asks(), call)
            assert not hasattr(same, "__notes__"), "it was not for want of budget"
        async with make(max_failures=100_000) as scheduler:
            calls = (scheduler.submit_request(asks(), call) for _ in range(20))
            await asyncio.gather(*calls, return_exceptions=True)
            assert scheduler.get_metrics()["retry_budget_used_up"] > 1
        if sys.version_info >= (3, 11):
            assert len(same.__notes__) == 1
            assert "the budget for retries is used up" in same.__notes__[0]

    asyncio.run(run())
    assert sum("budget for retries is used up" in each.message for each in caplog.records) == 1


def test_the_breaker_opens_lets_one_probe_through_and_closes() -> None:
    good = False
    attempts = 0

    async def call() -> str:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0.001)
        if not good:
            raise Refused(500)
        return "good"

    async def run() -> None:
        nonlocal good
        clock = ManualClock()
        async with make(
            max_retries=0, max_failures=5, failure_window=10.0, clock=clock
        ) as scheduler:
            for _ in range(5):
                with pytest.raises(Refused):
                    await scheduler.submit_request(asks(), call)
            with pytest.raises(TooManyFailedRequestsError) as caught:
                await scheduler.submit_request(asks(), call)
            assert (caught.value.failure_count, caught.value.window_seconds) == (5, 10.0)
            assert caught.value.threshold == 5
            assert attempts == 5
            assert await scheduler.submit_request(asks("other"), at_once) == 42
            # A probe that fails keeps it open for another window.
            clock.advance(10)
            results = await asyncio.gather(
                *(scheduler.submit_request(asks(), call) for _ in range(4)), return_exceptions=True
            )
            assert sorted(type(each).__name__ for each in results) == [
                "Refused",
                *["TooManyFailedRequestsError"] * 3,
            ]
            clock.advance(10)
            good = True
            # One that is cancelled does not keep the next one waiting.
            probe = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await asyncio.sleep(0)
            probe.cancel()
            await asyncio.sleep(0.01)
            assert await scheduler.submit_request(asks(), call) == "good"
            assert (
                await asyncio.gather(*(scheduler.submit_request(asks(), call) for _ in range(4)))
                == ["good"] * 4
            )

    asyncio.run(run())


def test_a_users_own_breaker_is_asked() -> None:
    class Breaker:
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def can_execute(self, model_id: str) -> bool:
            self.asked.append(model_id)
            return model_id != "shut"

    async def run() -> None:
        async with make() as scheduler:
            scheduler.circuit_breaker = breaker = Breaker()
            assert await scheduler.submit_request(asks(), at_once) == 42
            with pytest.raises(TooManyFailedRequestsError, match="Circuit breaker active"):
                await scheduler.submit_request(asks("shut"), at_once)
            assert breaker.asked == ["m", "shut"]

    asyncio.run(run())


# -- overflow -------------------------------------------------------------------------------------


def test_a_full_queue_rejects() -> None:
    async def run() -> None:
        clock = ManualClock()
        limits = ["60 requests/min bucket burst 1"]
        async with make(limits=limits, clock=clock, max_queue_size=3) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), at_once)) for _ in range(6)
            ]
            await asyncio.sleep(0.01)
            failed = [task.exception() for task in tasks if task.done() and task.exception()]
            assert len(failed) == 2
            assert isinstance(failed[0], QueueOverflowError)
            assert str(failed[0]) == "Queue m is full"
            assert failed[0].queue_key == "m"
            for _ in range(3):
                clock.advance(1)
                await asyncio.sleep(0.01)
            assert all(task.done() for task in tasks)

    asyncio.run(run())


def test_a_full_queue_drops_the_oldest() -> None:
    async def run() -> None:
        clock = ManualClock()
        limits = ["60 requests/min bucket burst 1"]
        async with make(
            limits=limits, clock=clock, max_queue_size=2, overflow_policy="drop_oldest"
        ) as scheduler:
            tasks = []
            for _ in range(5):
                tasks.append(asyncio.ensure_future(scheduler.submit_request(asks(), at_once)))
                await asyncio.sleep(0.01)
            assert [task.done() for task in tasks] == [True, True, True, False, False]
            for dropped in tasks[1:3]:
                assert isinstance(dropped.exception(), QueueOverflowError)
                assert str(dropped.exception()) == "Request dropped due to queue overflow"
            for _ in range(2):
                clock.advance(1)
                await asyncio.sleep(0.01)
            assert [await task for task in tasks[3:]] == [42, 42]

    asyncio.run(run())


def test_a_queue_is_not_full_of_those_who_have_been_admitted_and_not_gone_on() -> None:
    async def run() -> None:
        limits = ["20 requests/s bucket burst 1"]
        async with make(limits=limits, max_queue_size=1) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), at_once)) for _ in range(2)
            ]
            await until(lambda: bool(scheduler._buckets) and tasks[0].done())
            time.sleep(0.2)  # noqa: ASYNC251 - a loop that somebody blocks
            tasks.append(asyncio.ensure_future(scheduler.submit_request(asks(), at_once)))
            assert await asyncio.gather(*tasks) == [42] * 3

    asyncio.run(run())


def test_a_full_queue_drops_nobody_who_has_had_an_attempt() -> None:
    class Unavailable(Exception):
        status_code = 503

    async def run() -> None:
        clock = ManualClock()
        attempts = 0

        async def unavailable_once() -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise Unavailable
            return 1

        async with make(
            limits=["60 requests/min bucket burst 1"],
            clock=clock,
            max_queue_size=1,
            overflow_policy="drop_oldest",
        ) as scheduler:
            first = asyncio.ensure_future(scheduler.submit_request(asks(), unavailable_once))
            await until(
                lambda: (
                    attempts == 1 and scheduler.get_metrics()["buckets"]["m"]["queue_depth"] == 1
                )
            )
            late = asyncio.ensure_future(scheduler.submit_request(asks(), at_once))
            await asyncio.sleep(0.01)
            assert not first.done()
            for _ in range(2):
                clock.advance(1)
                await asyncio.sleep(0.01)
            assert await first == 1
            assert await late == 42

    asyncio.run(run())


async def _awaited(handle: Awaitable[Any]) -> Any:
    return await handle


@pytest.mark.parametrize("how", ["submit_request", "submit", "submit_sync"])
def test_a_full_queue_may_take_more_in_the_one_order_of_waiting(how: str) -> None:
    async def run() -> None:
        clock = ManualClock()
        order: list[int] = []
        limits = ["60 requests/min bucket burst 1"]
        async with make(
            limits=limits, clock=clock, max_queue_size=2, overflow_policy="wait"
        ) as scheduler:

            def call(number: int) -> Callable[[], Awaitable[None]]:
                async def append() -> None:
                    order.append(number)

                return append

            def depth() -> int:
                return int(scheduler.get_metrics()["buckets"]["m"]["queue_depth"])

            def send(number: int, priority: int = 0) -> asyncio.Future[Any]:
                request = asks(priority=priority)
                if how == "submit_request":
                    return asyncio.ensure_future(scheduler.submit_request(request, call(number)))
                if how == "submit":
                    return asyncio.ensure_future(_awaited(scheduler.submit(request, call(number))))
                return asyncio.ensure_future(
                    asyncio.to_thread(scheduler.submit_sync, request, lambda: order.append(number))
                )

            tasks = [send(0)]
            await until(lambda: order == [0])
            for number in range(1, 6):
                tasks.append(send(number, priority=number // 5))
                await until(lambda number=number: depth() == number)  # type: ignore[misc]
            if how != "submit_sync":
                tasks[2].cancel()
                await until(lambda: depth() == 4)
            for count in range(2, 7 if how == "submit_sync" else 6):
                clock.advance(1)
                await until(lambda count=count: len(order) == count)  # type: ignore[misc]
            assert order == [0, 5, 1, 2, 3, 4] if how == "submit_sync" else [0, 5, 1, 3, 4]
            assert depth() == 0
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


# -- life -----------------------------------------------------------------------------------------


def test_before_start_and_after_stop_it_takes_nothing() -> None:
    async def run() -> None:
        scheduler = make()
        for _ in range(2):
            with pytest.raises(SchedulerStoppedError, match="Scheduler is not running"):
                await scheduler.submit_request(asks(), at_once)
            async with scheduler:
                assert scheduler.is_running()
                await scheduler.start()
                assert await scheduler.submit_request(asks(), at_once) == 42
            assert not scheduler.is_running()
            await scheduler.stop()

    asyncio.run(run())


def test_stop_drains_what_it_can_and_then_ends_the_rest_with_a_clear_error() -> None:
    async def run() -> None:
        scheduler = make(max_concurrent_executions=2)
        await scheduler.start()
        started: list[int] = []

        def call(number: int, seconds: float) -> Callable[[], Awaitable[int]]:
            async def sleep() -> int:
                started.append(number)
                await asyncio.sleep(seconds)
                return number

            return sleep

        tasks = [
            asyncio.ensure_future(
                scheduler.submit_request(asks(), call(i, 0.02 if i < 4 else 60.0))
            )
            for i in range(8)
        ]
        await asyncio.sleep(0)
        began = time.monotonic()
        stopping = asyncio.ensure_future(scheduler.stop(drain_timeout=0.3))
        await asyncio.sleep(0)
        with pytest.raises(SchedulerStoppedError):
            await scheduler.submit_request(asks(), at_once)
        await stopping
        assert 0.25 < time.monotonic() - began < 3
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[:4] == [0, 1, 2, 3]
        assert all(isinstance(each, SchedulerStoppedError) for each in results[4:])
        assert "waited" in str(results[7])
        assert "under way" in str(results[4])
        assert started == [0, 1, 2, 3, 4, 5]
        await scheduler.start()
        assert await scheduler.submit_request(asks(), at_once) == 42
        assert scheduler.get_metrics()["active_requests"] == 0
        await scheduler.stop()

    asyncio.run(run())


def test_stop_returns_as_soon_as_everything_is_done() -> None:
    async def run() -> None:
        scheduler = make()
        await scheduler.start()
        task = asyncio.ensure_future(scheduler.submit_request(asks(), lambda: asyncio.sleep(0.05)))
        await asyncio.sleep(0)
        began = time.monotonic()
        await scheduler.stop(drain_timeout=60)
        assert time.monotonic() - began < 5
        await task

    asyncio.run(run())


def test_leaving_with_an_error_does_not_wait() -> None:
    async def run() -> None:
        began = time.monotonic()
        with pytest.raises(KeyError):
            async with make() as scheduler:
                task = asyncio.ensure_future(
                    scheduler.submit_request(asks(), lambda: asyncio.sleep(60))
                )
                await asyncio.sleep(0)
                raise KeyError
        assert time.monotonic() - began < 5
        with pytest.raises(SchedulerStoppedError):
            await task

    asyncio.run(run())


def test_it_works_in_several_asyncio_runs_one_after_another_without_being_stopped() -> None:
    scheduler = make()
    left: list[asyncio.Future[int]] = []

    async def first() -> None:
        await scheduler.start()
        assert await scheduler.submit_request(asks(), at_once) == 42
        # Left waiting as its loop goes.
        scheduler._buckets.make_unlisted("cold").cool(60)
        left.append(asyncio.ensure_future(scheduler.submit_request(asks("cold"), at_once)))
        await asyncio.sleep(0.01)

    async def second() -> None:
        assert await scheduler.submit_request(asks(), at_once) == 42
        await scheduler.stop(drain_timeout=0)

    asyncio.run(first())
    gc.collect()
    asyncio.run(second())
    assert scheduler.get_metrics()["active_requests"] == 0


def test_many_loops_and_threads_submit_at_once() -> None:
    scheduler = make(max_concurrent_executions=20, limits=["1_000_000 requests/min bucket"])
    scheduler.start_sync()
    counts: list[int] = []

    async def run() -> None:
        async def call() -> int:
            await asyncio.sleep(0)
            return 1

        results = await asyncio.gather(
            *(scheduler.submit_request(asks(f"m{i % 3}"), call) for i in range(500))
        )
        counts.append(sum(results))

    def blocking() -> None:
        counts.append(sum(scheduler.submit_sync(asks("m0"), lambda: 1) for _ in range(500)))

    threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(3)]
    threads += [threading.Thread(target=blocking) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [500] * 6
    scheduler.stop_sync()
    metrics = scheduler.get_metrics()
    assert metrics["active_requests"] == 0
    assert metrics["requests_completed"] == 3000


def test_it_is_collected_when_nobody_holds_it() -> None:
    async def run() -> weakref.ref[Scheduler]:
        scheduler = make(limits=["10 requests/min"])
        async with scheduler:
            await scheduler.submit_request(asks(), at_once)
        return weakref.ref(scheduler)

    reference = asyncio.run(run())
    gc.collect()
    assert reference() is None


def test_the_child_of_a_fork_is_stopped_and_empty_and_can_be_started(fork: Any) -> None:
    ran: list[str] = []

    async def run() -> None:
        scheduler = make(limits=["100 requests/s bucket burst 1"], max_concurrent_executions=3)
        async with scheduler:

            async def call() -> None:
                ran.append("here")
                await asyncio.sleep(0.01)

            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), call)) for _ in range(20)
            ]
            await asyncio.sleep(0.03)
            child = fork(lambda: _in_child(scheduler))
            await asyncio.gather(*tasks)
            assert len(ran) == 20, "each ran once, in this process"
            assert await asyncio.to_thread(child.status) == 0

    asyncio.run(run())


def _in_child(scheduler: Scheduler) -> int:
    if scheduler.is_running() or scheduler.get_metrics()["active_requests"]:
        return 2
    result: list[int] = []

    def work() -> None:
        async def run() -> None:
            try:
                await scheduler.submit_request(asks(), at_once)
            except SchedulerStoppedError:
                result.append(1)
            async with scheduler:
                result.extend(
                    await asyncio.gather(
                        *(scheduler.submit_request(asks(), at_once) for _ in range(5))
                    )
                )

        asyncio.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    return 0 if result == [1, 42, 42, 42, 42, 42] else 3


def test_the_child_of_a_fork_has_a_retry_budget_and_counts_of_its_own(fork: Any) -> None:
    scheduler = make(max_failures=100_000, max_retries=1_000)

    async def use_up(status: int, model: str) -> dict[str, Any]:
        async def call() -> None:
            raise Refused(status)

        async with scheduler:
            for _ in range(2):
                with pytest.raises(Refused):
                    await scheduler.submit_request(asks(model), call)
            return scheduler.get_metrics()

    names = ("refusals", "retries", "retry_budget_used_up", "cool_downs")
    metrics = asyncio.run(use_up(429, "m"))
    assert [metrics[name] for name in names] == [12, 10, 2, 12]
    assert sum(metrics["refusal_verdicts"].values()) == 12

    def in_child() -> int:
        before = scheduler.get_metrics()
        if any(before[name] for name in names) or any(before["refusal_verdicts"].values()):
            return 2
        thread = ThreadPoolExecutor(1).submit(lambda: asyncio.run(use_up(500, "other")))
        after = thread.result(20)
        return 0 if (after["retries"], after["retry_budget_used_up"]) == (10, 2) else 3

    assert fork(in_child).status() == 0
    assert scheduler.get_metrics()["refusals"] == 12


def test_a_thread_that_is_admitted_as_it_is_stopped_is_told_so() -> None:
    for _ in range(30):
        scheduler = make(max_concurrent_executions=1)
        scheduler.start_sync()
        results: list[Any] = []

        def work(scheduler: Scheduler = scheduler, results: list[Any] = results) -> None:
            while True:
                try:
                    results.append(scheduler.submit_sync(asks(), lambda: 1))
                except SchedulerStoppedError as error:
                    results.append(error)
                    return

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.003)
        scheduler.stop_sync(0)
        for thread in threads:
            thread.join(20)
        assert sum(isinstance(each, SchedulerStoppedError) for each in results) == 8


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="asyncio.timeout is new in 3.11")
def test_a_time_out_around_it_is_never_taken_for_its_own() -> None:
    async def run() -> None:
        lost = 0
        async with make(request_timeout=0.01) as scheduler:
            for _ in range(20):
                try:
                    async with asyncio.timeout(0.01):
                        await scheduler.submit_request(asks(), lambda: asyncio.sleep(30))
                except TimeoutError as error:
                    lost += isinstance(error, RequestTimeoutError)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await scheduler.submit_request(asks(), lambda: asyncio.sleep(30))
            assert time.monotonic() - began < 1
            task = asyncio.ensure_future(
                scheduler.submit_request(asks(), lambda: asyncio.sleep(30))
            )
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert lost == 0

    asyncio.run(run())


def test_what_was_submitted_before_it_is_stopped_is_on_its_way_even_without_a_handle() -> None:
    ran: list[int] = []

    async def run() -> None:
        async with make(limits=["50 requests/s bucket burst 1"]) as scheduler:
            for number in range(6):

                async def call(number: int = number) -> None:
                    ran.append(number)

                scheduler.submit(asks(), call)
            gc.collect()
            await asyncio.sleep(0.01)
            gc.collect()
        with pytest.raises(SchedulerStoppedError):
            scheduler.submit(asks(), at_once)

    asyncio.run(run())
    assert ran == [0, 1, 2, 3, 4, 5]


def test_setting_a_breaker_gives_no_account_its_limits_anew() -> None:
    class Breaker:
        async def can_execute(self, model_id: str) -> bool:
            return True

    async def run() -> None:
        accounts = {"small": Account(limits=["2 requests/day"])}
        async with make("account", accounts=accounts) as scheduler:
            for _ in range(2):
                await scheduler.submit_request(asks(client_id="small"), at_once)
                scheduler.circuit_breaker = Breaker()
            with pytest.raises(DeadlineExceededError):
                await scheduler.submit_request(asks(client_id="small", deadline=1), at_once)

    asyncio.run(run())


def test_an_async_generator_function_gives_a_stream() -> None:
    async def stream() -> Any:
        for number in range(3):
            yield number

    async def run() -> None:
        async with make(max_concurrent_executions=1) as scheduler:
            for _ in range(3):
                chunks = await scheduler.submit_request(asks(), stream)
                assert [chunk async for chunk in chunks] == [0, 1, 2]

    asyncio.run(run())


# -- handles, threads, previews -------------------------------------------------------------------


def test_a_handle_can_be_awaited_cancelled_and_asked() -> None:
    async def run() -> None:
        clock = ManualClock()
        limits = ["60 requests/min bucket burst 1"]
        async with make(limits=limits, clock=clock) as scheduler:
            first = scheduler.submit(asks(), at_once)
            assert first.estimated_start == 0.0
            assert await first == await first == 42
            second = scheduler.submit(asks(), at_once)
            await asyncio.sleep(0)
            third = scheduler.submit(asks(), at_once)
            assert second.estimated_start == pytest.approx(1.0)
            assert third.estimated_start == pytest.approx(2.0)
            assert "waiting" in repr(second)
            explanation = second.explain()
            assert explanation is not None
            assert explanation.binds is not None
            assert second.cancel()
            await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await second
            assert not second.cancel()
            clock.advance(1)
            assert await third == 42
            assert third.done()
            assert third.result() == 42

    asyncio.run(run())


def take_back(handle: Handle, where: str) -> bool:
    """`handle.cancel()`, which is over when this returns."""
    if where == "here":
        return handle.cancel()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(handle.cancel).result(20)


async def when_woken(handle: Handle, wake: Callable[[], object], act: Callable[[], bool]) -> bool:
    """What `act()` gives between the wake-up of who waits and its next step."""
    loop = asyncio.get_running_loop()
    given: asyncio.Future[bool] = loop.create_future()
    await until(lambda: handle._task._fut_waiter is not None)  # type: ignore[attr-defined]
    waits_for = handle._task._fut_waiter  # type: ignore[attr-defined]

    def look() -> None:
        # In each turn of the loop before what wakes it, and so before the step that this makes.
        if not waits_for.done():
            loop.call_soon(look)
        else:
            given.set_result(act())

    look()
    wake()
    return await asyncio.wait_for(given, 20)


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("when", ["not begun", "woken"])
def test_what_was_taken_back_before_its_step_never_runs_and_gives_its_place_back(
    when: str, where: str, marks: bool
) -> None:
    async def run() -> None:
        clock = ManualClock()
        ran: list[str] = []

        async def call(name: str) -> str:
            ran.append(name)
            return name

        def function(name: str) -> Any:
            return WithReservation(lambda _: call(name)) if marks else lambda: call(name)

        limits = ["1 requests/hour", "1 concurrency"]
        async with make(limits=limits, clock=clock) as scheduler:
            if when == "woken":
                await scheduler.submit_request(asks(), at_once)
            handle = scheduler.submit(asks(), function("taken back"))
            if when == "woken":
                assert await when_woken(
                    handle, lambda: clock.advance(7200), lambda: take_back(handle, where)
                )
            else:
                assert take_back(handle, where)
            with pytest.raises(asyncio.CancelledError):
                await handle
            assert not ran
            assert not take_back(handle, where)
            # What it would have taken is there for the next one.
            assert await asyncio.wait_for(scheduler.submit(asks(), function("next")), 20) == "next"
            assert ran == ["next"]
            assert idle(scheduler)

    asyncio.run(run())


def test_a_preview_tells_when_a_batch_would_be_through_and_takes_nothing() -> None:
    async def run() -> None:
        clock = ManualClock()
        limits = {
            "m": ["60 requests/min bucket burst 1"],
            "n": ["1_000 tokens/min bucket burst 10"],
        }
        async with make(limits=limits, clock=clock) as scheduler:
            batch = [asks() for _ in range(11)] + [asks("n", estimated_tokens=10) for _ in range(3)]
            preview = scheduler.preview(batch)
            assert preview.fits
            assert preview.by_bucket == {
                "m": pytest.approx(10.0),
                # Twice a whole burst and, before its refill begins, the guard of a sixteenth.
                "n": pytest.approx(2 * (0.6 + 0.54 / 16)),
            }
            assert preview.admitted_in == pytest.approx(10.0)
            assert str(preview.binds) == "60 requests/min bucket burst 1"
            assert scheduler.preview(batch) == preview
            assert not scheduler.preview([asks("n", estimated_tokens=11)]).fits

    asyncio.run(run())


def test_threads_call_plain_functions() -> None:
    attempts = 0

    def call() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise Refused(503)
        return "good"

    with make(limits=["100 requests/s bucket burst 1"]) as scheduler:
        assert scheduler.submit_sync(asks(), call) == "good"
        with pytest.raises(TypeError, match="submit_sync is for plain functions"):
            scheduler.submit_sync(asks(), at_once)
        with pytest.raises(ZeroDivisionError):
            scheduler.submit_sync(asks(), lambda: 1 / 0)
        with pytest.raises(DeadlineExceededError):
            for _ in range(3):
                scheduler.submit_sync(asks(deadline=0.001), lambda: 1)
        with pytest.raises(CapacityExceededError):
            scheduler.submit_sync(asks(cost={"requests": 2}), lambda: 1)
    with pytest.raises(SchedulerStoppedError):
        scheduler.submit_sync(asks(), lambda: 1)


def test_a_thread_that_waits_is_told_when_it_stops() -> None:
    scheduler = make(limits=["1 requests/min"])
    scheduler.start_sync()
    scheduler.submit_sync(asks(), lambda: 1)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            scheduler.submit_sync(asks(), lambda: 1)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not scheduler.get_metrics()["buckets"]["m"]["queue_depth"]:
        time.sleep(0.001)
    scheduler.stop_sync(drain_timeout=0.05)
    thread.join(10)
    assert isinstance(caught[0], SchedulerStoppedError)
