"""Request functions at their worst: each ends its own request, and nothing else."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from users import Unspeakable, asks, at_once, idle, make, until

from headway import RequestTimeoutError, SchedulerStoppedError

MODES = ["basic", "intelligent", "account"]


# -- what they raise ------------------------------------------------------------------------------


class Odd(BaseException):
    """As a test framework's own, that nobody is to catch."""


def raising(error: BaseException, how: str) -> Callable[[], Awaitable[Any]]:
    """In the call itself, in the first step, or later."""

    async def later() -> None:
        if how == "later":
            await asyncio.sleep(0)
        raise error

    def call() -> Awaitable[Any]:
        if how == "call":
            raise error
        return later()

    return call


@pytest.mark.parametrize("how", ["call", "step", "later"])
@pytest.mark.parametrize(
    "error",
    [
        Odd("odd"),
        GeneratorExit(),
        asyncio.CancelledError("mine"),
        StopAsyncIteration(),
        Unspeakable(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("mode", MODES)
def test_whatever_a_function_raises_reaches_its_caller(
    mode: str, error: BaseException, how: str
) -> None:
    async def run() -> None:
        async with make(mode=mode, limits=["5 concurrency"]) as scheduler:
            with pytest.raises(type(error)) as caught:
                await scheduler.submit_request(asks(), raising(error, how))
            assert caught.value is error
            assert idle(scheduler)
            assert await scheduler.submit_request(asks(), at_once) == 42
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].used == 0

    asyncio.run(run())


@pytest.mark.parametrize("how", ["step", "later"])
def test_a_stop_iteration_in_a_coroutine_is_the_runtime_error_that_python_makes_of_it(
    how: str,
) -> None:
    async def run() -> None:
        async with make() as scheduler:
            with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
                await scheduler.submit_request(asks(), raising(StopIteration(3), how))
            assert idle(scheduler)

    asyncio.run(run())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_it_and_leaves_nothing_behind(
    error: type[BaseException],
) -> None:
    scheduler = make(limits=["5 concurrency"])

    async def run() -> None:
        await scheduler.start()
        await scheduler.submit_request(asks(), raising(error(), "later"))

    with pytest.raises(error):
        asyncio.run(run())
    assert idle(scheduler)
    scheduler.stop_sync(0)


# -- what they do to the scheduler ----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_function_may_submit_to_its_own_scheduler_while_there_are_slots(mode: str) -> None:
    async def run() -> None:
        async with make(mode=mode, max_concurrent_executions=5) as scheduler:

            def nested(depth: int) -> Callable[[], Awaitable[int]]:
                async def call() -> int:
                    if depth == 1:
                        return 1
                    await asyncio.sleep(0)
                    return 1 + await scheduler.submit_request(asks(), nested(depth - 1))

                return call

            work = scheduler.submit_request(asks(), nested(5))
            assert await asyncio.wait_for(asyncio.ensure_future(work), 5) == 5
            assert idle(scheduler)
            # One slot too few: it waits for itself, until its time is over.
            config = scheduler.config
            assert config.max_concurrent_executions == 5
            with pytest.raises(RequestTimeoutError):
                await scheduler.submit_request(asks(timeout=0.05, client_id=None), nested(6))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("headway.scheduler.verdicts.RetryBudget.take", lambda self, begun: False)
        asyncio.run(run())


@pytest.mark.parametrize("suspended", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_function_may_stop_its_own_scheduler(mode: str, suspended: bool) -> None:
    async def run() -> None:
        scheduler = make(mode=mode, max_concurrent_executions=1)
        await scheduler.start()

        async def call() -> int:
            if suspended:
                await asyncio.sleep(0)
            await scheduler.stop(drain_timeout=0.05)
            return 42

        first = scheduler.submit(asks(), call)
        second = scheduler.submit(asks(), at_once)
        began = time.monotonic()
        results = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 10)
        assert time.monotonic() - began < 3
        assert not scheduler.is_running()
        # It is one of those who are waited for, and then told to end.
        assert results[0] == 42 or isinstance(results[0], SchedulerStoppedError)
        assert results[1] == 42 or isinstance(results[1], SchedulerStoppedError)
        await until(lambda: idle(scheduler))
        async with scheduler:
            assert await scheduler.submit_request(asks(), at_once) == 42

    asyncio.run(run())


def test_a_threads_function_may_stop_its_own_scheduler() -> None:
    scheduler = make()
    scheduler.start_sync()

    def call() -> int:
        scheduler.stop_sync(drain_timeout=30)
        return 42

    began = time.monotonic()
    assert scheduler.submit_sync(asks(), call) == 42
    assert time.monotonic() - began < 5
    assert not scheduler.is_running()


def test_a_function_that_swallows_cancellation_keeps_its_result_and_its_slot() -> None:
    async def run() -> None:
        leave = asyncio.Event()
        swallowed = 0

        async def stubborn() -> int:
            nonlocal swallowed
            while not leave.is_set():
                try:
                    await leave.wait()
                except asyncio.CancelledError:
                    swallowed += 1
            return 7

        async with make(max_concurrent_executions=1) as scheduler:
            handle = scheduler.submit(asks(timeout=0.02), stubborn)
            await until(lambda: swallowed == 1)
            other = scheduler.submit(asks(), at_once)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not other.done(), "the first one still runs"
            handle.cancel()
            await until(lambda: swallowed == 2)
            leave.set()
            assert await handle == 7
            assert await other == 42
            assert idle(scheduler)
            if sys.version_info >= (3, 11):
                assert handle._task.cancelling() == 1, "ours was taken back, its user's was not"

    asyncio.run(run())


def test_the_scheduler_stops_though_one_does_not_let_itself_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("headway.scheduler.drain._GRACE", 0.05)

    async def run() -> None:
        leave = asyncio.Event()

        async def stubborn() -> int:
            while not leave.is_set():
                try:
                    await leave.wait()
                except asyncio.CancelledError:
                    continue
            return 7

        scheduler = make()
        await scheduler.start()
        handle = scheduler.submit(asks(), stubborn)
        await asyncio.sleep(0)
        await asyncio.wait_for(scheduler.stop(drain_timeout=0), 5)
        assert not handle.done()
        leave.set()
        assert await handle == 7

    asyncio.run(run())
    assert any("1 request(s) that do not end" in record.message for record in caplog.records)
