"""Starting and stopping a scheduler in the ways that people come upon."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from typing import Any

import pytest
from users import Provider, asks, at_once, idle, make, until

from headway import BackendOperationError, RequestMetadata, SchedulerStoppedError
from headway.backends import MemoryBackend
from headway.scheduler import Handle, Scheduler, StateManager


def on_a_loop_that_then_stands_still(scheduler: Any) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(scheduler.start())
    return loop


def end(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


def in_time(function: Any) -> Any:
    """What it gives, from a thread that may hang without hanging the test."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    thread.join(10)
    assert result, "it hangs"
    return result[0]


def test_a_thread_may_stop_it_though_the_loop_that_started_it_stands_still() -> None:
    scheduler = make(provider=Provider())
    loop = on_a_loop_that_then_stands_still(scheduler)
    in_time(scheduler.stop_sync)
    assert not scheduler.is_running()
    end(loop)


def test_threads_may_submit_though_the_loop_that_started_it_stands_still() -> None:
    provider = Provider()
    scheduler = make(provider=provider)
    loop = on_a_loop_that_then_stands_still(scheduler)
    assert in_time(lambda: scheduler.submit_sync(asks(), lambda: 42)) == 42
    assert provider.asked["m"] == 1
    in_time(scheduler.stop_sync)
    end(loop)


def test_one_that_was_left_running_keeps_nobody_from_leaving() -> None:
    async def run() -> None:
        scheduler = make(provider=Provider())
        await scheduler.start()
        assert await scheduler.submit_request(asks(), at_once) == 42

    began = time.monotonic()
    asyncio.run(run())
    gc.collect()
    assert time.monotonic() - began < 5


def test_a_request_of_a_classifier_has_a_handle_like_any_other() -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> RequestMetadata:
            await asyncio.sleep(0)
            return asks(request["model"])

    async def run() -> None:
        async with make(classifier=Classifier(), limits=["10 requests/min"]) as scheduler:
            request: Any = {"model": "m"}
            handle = scheduler.submit(request, at_once)
            assert repr(handle) == "<headway.Handle waiting>"
            assert handle.explain() is None
            assert await handle == 42
            assert repr(handle) == "<headway.Handle 'r' done>"
            explanation = handle.explain()
            assert explanation is not None
            assert explanation.limits[0].used == 1

    asyncio.run(run())


def test_it_is_started_once_however_many_start_it() -> None:
    class Slow(Provider):
        async def discover_limits(self, *given: Any, **named: Any) -> Any:
            await asyncio.sleep(0.01)
            return await super().discover_limits(*given, **named)

    async def run() -> None:
        provider = Slow()
        scheduler = make(provider=provider)
        await asyncio.gather(*(scheduler.start() for _ in range(5)))
        try:
            assert scheduler.is_running()
            assert provider.asked["discover_limits"] == 1
        finally:
            await scheduler.stop()

    asyncio.run(run())


def test_a_start_while_it_still_drains_does_not_end_the_new_requests() -> None:
    async def run() -> None:
        scheduler = make()
        await scheduler.start()
        leave = asyncio.Event()
        old = scheduler.submit(asks(), lambda: asyncio.sleep(60))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(scheduler.stop(drain_timeout=0.1))
        await asyncio.sleep(0)
        await scheduler.start()
        new = scheduler.submit(asks(), leave.wait)
        await stopping
        with pytest.raises(SchedulerStoppedError):
            await old
        ended = new.done()
        leave.set()
        assert await asyncio.gather(new, return_exceptions=True) == [True]
        assert not ended
        assert await scheduler.submit_request(asks(), at_once) == 42
        await scheduler.stop()
        assert idle(scheduler)

    asyncio.run(run())


def test_it_may_be_stopped_from_another_loop_and_from_several_at_once() -> None:
    async def run() -> None:
        scheduler = make(max_concurrent_executions=1)
        await scheduler.start()
        running = scheduler.submit(asks(), lambda: asyncio.sleep(60))
        waiting = scheduler.submit(asks(), at_once)
        await until(lambda: scheduler.get_metrics()["active_requests"] == 1)
        await asyncio.gather(
            *(
                asyncio.to_thread(lambda: asyncio.run(scheduler.stop(drain_timeout=0.05)))
                for _ in range(3)
            )
        )
        for handle in (running, waiting):
            with pytest.raises(SchedulerStoppedError):
                await handle
        assert idle(scheduler)

    asyncio.run(run())


def test_it_is_started_once_from_however_many_loops_and_threads() -> None:
    provider = Provider()
    scheduler = make(provider=provider)
    together = threading.Barrier(6)

    def start(awaited: bool) -> None:
        together.wait()
        if awaited:
            asyncio.run(scheduler.start())
        else:
            scheduler.start_sync()

    threads = [threading.Thread(target=start, args=(at % 2 == 0,), daemon=True) for at in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert scheduler.is_running()
    assert provider.asked["discover_limits"] == 1
    in_time(lambda: (scheduler.stop_sync(), True)[1])


def test_a_call_in_its_first_step_on_another_loop_is_drained_or_told() -> None:
    async def run(drain_timeout: float) -> Any:
        scheduler = make()
        await scheduler.start()
        inside, leave = threading.Event(), threading.Event()

        async def call() -> int:
            inside.set()
            leave.wait(10)  # its first step is still under way
            await asyncio.sleep(0.05)
            return 42

        other = asyncio.ensure_future(
            asyncio.to_thread(lambda: asyncio.run(_awaited(scheduler.submit_request(asks(), call))))
        )
        await asyncio.to_thread(inside.wait, 10)
        stopping = asyncio.ensure_future(scheduler.stop(drain_timeout))
        await until(lambda: not scheduler.is_running())
        assert not stopping.done()
        leave.set()
        await stopping
        assert idle(scheduler)
        return (await asyncio.gather(other, return_exceptions=True))[0]

    assert asyncio.run(run(10)) == 42
    assert isinstance(asyncio.run(run(0)), SchedulerStoppedError)


async def _awaited(call: Any) -> Any:
    return await call


def test_a_second_stop_may_be_in_more_of_a_hurry() -> None:
    async def run() -> float:
        scheduler = make()
        await scheduler.start()
        running = scheduler.submit(asks(), lambda: asyncio.sleep(60))
        first = asyncio.ensure_future(scheduler.stop(drain_timeout=30))
        await until(lambda: not scheduler.is_running())
        began = time.monotonic()
        await scheduler.stop(drain_timeout=0)
        took = time.monotonic() - began
        await first
        with pytest.raises(SchedulerStoppedError):
            await running
        assert idle(scheduler)
        return took

    assert asyncio.run(run()) < 5


class SlowToStart(Provider):
    """Answers when its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def discover_limits(self, *args: Any, **kwargs: Any) -> Any:
        await self.gate.wait()
        return await super().discover_limits(*args, **kwargs)


def test_of_stops_that_wait_for_a_start_the_hurried_one_holds() -> None:
    async def run() -> None:
        provider = SlowToStart()
        scheduler = make(provider=provider)

        async def begin() -> Handle:
            await scheduler.start()
            return scheduler.submit(asks(), lambda: asyncio.sleep(60))

        begun = asyncio.ensure_future(begin())
        await asyncio.sleep(0)
        # The first one is the one that drains.
        stops = [asyncio.ensure_future(scheduler.stop(patience)) for patience in (60, 0)]
        await asyncio.sleep(0)
        provider.gate.set()
        done, _ = await asyncio.wait(stops, timeout=20)
        assert len(done) == 2
        with pytest.raises(SchedulerStoppedError):
            await (await begun)
        assert idle(scheduler)

    asyncio.run(run())


def test_the_hurry_of_a_stop_that_was_cancelled_before_its_turn_is_over() -> None:
    async def run() -> None:
        provider = SlowToStart()
        scheduler = make(provider=provider)
        leave = asyncio.Event()

        async def begin() -> Handle:
            await scheduler.start()
            return scheduler.submit(asks(), leave.wait)

        begun = asyncio.ensure_future(begin())
        await asyncio.sleep(0)
        patient, hurried = (asyncio.ensure_future(scheduler.stop(each)) for each in (60, 0))
        await asyncio.sleep(0)
        hurried.cancel()
        await asyncio.wait({hurried})
        provider.gate.set()
        running = await begun
        await until(lambda: not scheduler.is_running())
        leave.set()
        assert await asyncio.wait_for(running, 20) is True
        await asyncio.wait_for(patient, 20)

    asyncio.run(run())


def test_a_stop_that_is_cancelled_ends_all_the_same() -> None:
    async def run() -> None:
        scheduler = make()
        await scheduler.start()
        running = scheduler.submit(asks(), lambda: asyncio.sleep(60))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(scheduler.stop(drain_timeout=30), 0.05)
        with pytest.raises(SchedulerStoppedError):
            await asyncio.wait_for(running, 5)
        await scheduler.start()
        assert await scheduler.submit_request(asks(), at_once) == 42
        await scheduler.stop()

    asyncio.run(run())


def test_it_may_drain_for_as_long_as_it_takes() -> None:
    scheduler = make()
    scheduler.start_sync()
    assert scheduler.submit_sync(asks(), lambda: 42) == 42
    in_time(lambda: (scheduler.stop_sync(math.inf), True)[1])
    assert not scheduler.is_running()


@pytest.mark.parametrize("limits", [["1 requests/hour"], []])
def test_requests_of_a_loop_that_was_closed_are_not_waited_for(limits: list[str]) -> None:
    """Nobody can go on with them, nor tell them anything."""
    scheduler = make(limits=limits, max_concurrent_executions=1)
    ended: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("call")

    async def leave() -> list[Handle]:
        await scheduler.start()
        handles = [scheduler.submit(asks(), call) for _ in range(3)]
        await until(lambda: scheduler.get_metrics()["buckets"]["m"]["queue_depth"] == 2)
        return handles

    loop = asyncio.new_event_loop()
    handles = loop.run_until_complete(leave())
    loop.close()
    assert handles[2].cancel()
    began = time.monotonic()
    in_time(lambda: (scheduler.stop_sync(60), True)[1])
    assert time.monotonic() - began < 5
    assert idle(scheduler)
    assert ended == ["call"]
    assert not scheduler._handled
    assert not handles[0].cancel()
    with scheduler:
        assert scheduler.submit_sync(asks("other"), lambda: 42) == 42
    del handles
    gc.collect()


class Backend(MemoryBackend):
    """Counts how often it is up."""

    up = 0
    fails = False

    async def start(self) -> None:
        if self.fails:
            raise OSError("not today")
        self.up += 1
        await super().start()

    async def stop(self) -> None:
        self.up -= 1
        await super().stop()


@pytest.mark.parametrize("shared", [False, True])
def test_a_backend_is_started_beside_a_manager_of_another(shared: bool) -> None:
    async def run() -> None:
        backend = Backend()
        managed = backend if shared else Backend()
        scheduler = Scheduler(None, state_manager=StateManager(managed), backend=backend)
        async with scheduler:
            assert (managed.up, backend.up) == (1, 1)
        assert (managed.up, backend.up) == (0, 0)
        backend.fails = True
        with pytest.raises((OSError, BackendOperationError)):
            await scheduler.start()
        assert (managed.up, backend.up) == (0, 0)
        assert not scheduler.is_running()

    asyncio.run(run())


def test_a_start_that_fails_stops_what_it_has_started() -> None:
    class Failing(Scheduler):
        fails = True

        async def _on_start(self) -> None:
            if self.fails:
                raise OSError("not today")

    async def run() -> None:
        backend = Backend()
        scheduler = Failing(None, backend=backend)
        with pytest.raises(OSError, match="not today"):
            await scheduler.start()
        assert backend.up == 0
        assert not scheduler.is_running()
        Failing.fails = False
        async with scheduler:
            assert backend.up == 1
        assert backend.up == 0

    asyncio.run(run())


def test_its_own_start_cannot_start_or_stop_it() -> None:
    class Turning(Scheduler):
        async def _on_start(self) -> None:
            await self.stop()

    async def run() -> None:
        scheduler = Turning(None)
        with pytest.raises(RuntimeError, match="by its own start"):
            await asyncio.wait_for(scheduler.start(), 5)
        assert not scheduler.is_running()

    asyncio.run(run())


def test_nobodys_hurry_shortens_the_grace_of_those_who_were_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        scheduler = make()
        await scheduler.start()

        async def slow_to_end() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)

        running = scheduler.submit(asks(), slow_to_end)
        await until(lambda: scheduler.get_metrics()["active_requests"] == 1)
        await asyncio.gather(*(scheduler.stop(drain_timeout=0) for _ in range(3)))
        assert idle(scheduler)
        with pytest.raises(SchedulerStoppedError):
            await running

    asyncio.run(run())
    assert "do not end" not in caplog.text
