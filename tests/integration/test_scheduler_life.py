"""Starting and stopping a scheduler in the ways that people come upon."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest
from users import Provider, asks, at_once, idle, make, until

from headway import RequestMetadata, SchedulerStoppedError


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


@pytest.mark.xfail(reason="each begins on its own", strict=True)
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


@pytest.mark.xfail(reason="the old stop ends whatever is there", strict=True)
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
