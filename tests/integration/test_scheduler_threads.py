"""Requests of threads, and stops by them, where something else ends meanwhile."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from own_backend import Own
from own_backend import make as make_own
from users import Provider, Refused, asks, at_once, idle, make

from headway import (
    DeadlineExceededError,
    RateLimitInfo,
    RequestMetadata,
    SchedulerStoppedError,
)
from headway.backends import MemoryBackend
from headway.scheduler import Scheduler


def begin(function: Callable[[], Any]) -> Future[Any]:
    """What it comes to, in a thread that may hang without hanging the test."""
    over: Future[Any] = Future()

    def work() -> None:
        try:
            over.set_result(function())
        except BaseException as error:
            over.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return over


class Door:
    """What goes through it waits inside until it is let out; on whatever loop."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._inside: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def go_through(self) -> None:
        leave = asyncio.Event()
        self._inside.append((asyncio.get_running_loop(), leave))
        self.loops.add(asyncio.get_running_loop())
        self._entered.release()
        await leave.wait()

    def someone_enters(self) -> None:
        assert self._entered.acquire(timeout=10), "nobody comes"

    async def someone_enters_elsewhere(self) -> None:
        await asyncio.to_thread(self.someone_enters)

    def let_out(self) -> None:
        """Whoever has entered last."""
        loop, leave = self._inside[-1]
        loop.call_soon_threadsafe(leave.set)


class Slow(Provider):
    """Tells the bucket when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Door()

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        await self.door.go_through()
        return await super().get_bucket_for_model(model_id, resource_type)


class SlowClassifier:
    def __init__(self) -> None:
        self.door = Door()

    async def classify(self, request: dict[str, Any]) -> RequestMetadata:
        await self.door.go_through()
        return asks(request["model"])


def one_that_asks(what: str) -> tuple[Scheduler, Door, Any]:
    if what == "bucket":
        provider = Slow()
        return make(provider=provider), provider.door, asks()
    classifier = SlowClassifier()
    return make(classifier=classifier), classifier.door, {"model": "m"}


asked = pytest.mark.parametrize("what", ["bucket", "classifier"])


def stops(scheduler: Scheduler, patience: float) -> Future[Any]:
    """A stop by a thread, that has begun."""
    stopping = begin(lambda: scheduler.stop_sync(patience))
    while scheduler.is_running():  # nothing tells of it
        threading.Event().wait(0.001)
    return stopping


# -- while somebody is asked -----------------------------------------------------------------------


@asked
def test_a_stop_waits_for_a_thread_whose_question_is_not_answered_yet(what: str) -> None:
    scheduler, door, request = one_that_asks(what)
    scheduler.start_sync()
    begun = begin(lambda: scheduler.submit_sync(request, lambda: 42))
    door.someone_enters()
    assert scheduler._unfinished() == 1
    stopping = stops(scheduler, 30)
    door.let_out()
    assert begun.result(10) == 42
    stopping.result(10)
    assert idle(scheduler)


@asked
def test_a_thread_whose_question_is_not_answered_is_told_when_it_stops(what: str) -> None:
    scheduler, door, request = one_that_asks(what)
    scheduler.start_sync()
    begun = begin(lambda: scheduler.submit_sync(request, lambda: 42))
    door.someone_enters()
    begin(lambda: scheduler.stop_sync(0)).result(10)
    with pytest.raises(SchedulerStoppedError):
        begun.result(10)
    assert idle(scheduler)


@asked
def test_a_question_goes_on_elsewhere_where_its_loop_ends(what: str) -> None:
    scheduler, door, request = one_that_asks(what)

    async def run() -> Future[Any]:
        await scheduler.start()
        begun = begin(lambda: scheduler.submit_sync(request, lambda: 42))
        await door.someone_enters_elsewhere()
        return begun

    begun = asyncio.run(run())
    door.someone_enters()
    door.let_out()
    assert begun.result(10) == 42
    begin(scheduler.stop_sync).result(10)
    assert idle(scheduler)


def test_a_question_goes_on_elsewhere_where_its_loop_stands_still() -> None:
    scheduler, door, request = one_that_asks("bucket")

    async def run() -> Future[Any]:
        await scheduler.start()
        begun = begin(lambda: scheduler.submit_sync(request, lambda: 42))
        await door.someone_enters_elsewhere()
        return begun

    loop = asyncio.new_event_loop()
    begun = loop.run_until_complete(run())
    door.someone_enters()
    door.let_out()
    assert begun.result(10) == 42
    begin(scheduler.stop_sync).result(10)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


# -- before another attempt ------------------------------------------------------------------------


class Later(Refused):
    """Worth another attempt, in a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__(503, {"retry-after": str(seconds)})


def in_back_off(scheduler: Scheduler, seconds: float) -> Future[Any]:
    """A request of a thread that waits for its second attempt, which is good."""
    attempts: list[int] = []

    def fails_once() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise Later(seconds)
        return 42

    begun = begin(lambda: scheduler.submit_sync(asks(), fails_once))
    while not scheduler.get_metrics()["retries"]:  # nothing tells of it
        threading.Event().wait(0.001)
    return begun


def test_a_thread_that_waits_for_its_next_attempt_is_told_when_it_stops() -> None:
    scheduler = make()
    scheduler.start_sync()
    begun = in_back_off(scheduler, 100)
    assert scheduler._unfinished() == 1
    begin(lambda: scheduler.stop_sync(0)).result(10)
    with pytest.raises(SchedulerStoppedError):
        begun.result(10)
    assert idle(scheduler)


def test_a_thread_does_not_wait_for_an_attempt_that_would_begin_after_its_deadline() -> None:
    failures: list[Later] = []

    def fails() -> None:
        failures.append(Later(100))
        raise failures[-1]

    with make() as scheduler:
        begun = begin(lambda: scheduler.submit_sync(asks(deadline=50), fails))
        with pytest.raises(DeadlineExceededError, match=r"within 50\.000 s: .* taken 10") as told:
            begun.result(20)
        assert [told.value.__cause__] == failures
        assert idle(scheduler)


def test_a_stop_waits_for_the_next_attempt_of_a_thread() -> None:
    scheduler = make()
    scheduler.start_sync()
    begun = in_back_off(scheduler, 0.2)
    begin(lambda: scheduler.stop_sync(30)).result(10)
    assert begun.result(10) == 42
    assert idle(scheduler)


def test_a_thread_whose_function_outlives_the_stop_tries_no_more() -> None:
    scheduler = make()
    scheduler.start_sync()
    entered, leave = threading.Event(), threading.Event()
    attempts: list[int] = []

    def fails() -> None:
        attempts.append(1)
        entered.set()
        leave.wait(10)
        raise Later(0)

    begun = begin(lambda: scheduler.submit_sync(asks(), fails))
    assert entered.wait(10)
    begin(lambda: scheduler.stop_sync(30)).result(10)  # which does not wait for it
    scheduler.start_sync()
    leave.set()
    with pytest.raises(Later):
        begun.result(10)
    assert attempts == [1]
    scheduler.stop_sync()
    assert idle(scheduler)


def test_retries_leave_the_threads_event_loop_and_the_providers_alone() -> None:
    loops: set[asyncio.AbstractEventLoop] = set()

    class Noting(Provider):
        async def discover_limits(self, *given: Any, **named: Any) -> Any:
            loops.add(asyncio.get_running_loop())
            return await super().discover_limits(*given, **named)

        async def parse_rate_limit_response(self, *_: Any) -> RateLimitInfo:  # type: ignore[override]
            self.asked["parse"] += 1
            loops.add(asyncio.get_running_loop())
            return RateLimitInfo()

    def retries(scheduler: Scheduler) -> bool:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        attempts: list[int] = []

        def fails_twice() -> int:
            attempts.append(1)
            if len(attempts) < 3:
                raise Refused(503, {})
            return 42

        try:
            assert scheduler.submit_sync(asks(), fails_twice) == 42
            return asyncio.get_event_loop() is loop
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    provider = Noting()
    with make(provider=provider) as scheduler:
        assert begin(lambda: retries(scheduler)).result(10)
    assert provider.asked["parse"] == 2
    assert len(loops) == 1


# -- interrupted, and on a loop --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["queue", "back-off"])
def test_a_request_whose_thread_is_interrupted_was_cancelled(where: str) -> None:
    with make(limits=["1 requests/min"] if where == "queue" else []) as scheduler:
        if where == "queue":
            scheduler.submit_sync(asks(), lambda: 1)

        def waits() -> bool:
            metrics = scheduler.get_metrics()
            return bool(metrics["buckets"].get("m", {}).get("queue_depth") or metrics["retries"])

        def interrupt() -> None:
            while not waits():  # nothing tells of it
                threading.Event().wait(0.001)
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)

        def fails() -> None:
            raise Later(100)

        begun = begin(interrupt)
        with pytest.raises(KeyboardInterrupt):
            scheduler.submit_sync(asks(), fails)
        begun.result(10)
        metrics = scheduler.get_metrics()
        assert (metrics["requests_cancelled"], metrics["requests_failed"]) == (1, 0)
        assert idle(scheduler)


def test_on_a_loop_a_request_of_a_thread_says_what_to_do_instead() -> None:
    async def run() -> None:
        async with make() as scheduler:
            with pytest.raises(RuntimeError, match=r"block it: await submit_request\(\)"):
                scheduler.submit_sync(asks(), lambda: 1)
            assert not scheduler._unfinished()
            assert await scheduler.submit_request(asks(), at_once) == 42

    asyncio.run(run())


# -- where a stop runs -----------------------------------------------------------------------------


class SlowToStop(MemoryBackend):
    """Stops when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.door = Door()
        self.has_stopped = 0

    async def start(self) -> None:
        self.door.loops.add(asyncio.get_running_loop())
        await super().start()

    async def stop(self) -> None:
        await self.door.go_through()
        await super().stop()
        self.has_stopped += 1


@pytest.mark.parametrize("how", ["stop", "stop_sync"])
def test_a_stop_from_elsewhere_ends_the_backend_where_it_was_started(how: str) -> None:
    backend = SlowToStop()
    scheduler = make(backend=backend)
    stop = {"stop": lambda: asyncio.run(scheduler.stop()), "stop_sync": scheduler.stop_sync}[how]

    async def run() -> None:
        await scheduler.start()
        stopping = begin(stop)
        await backend.door.someone_enters_elsewhere()
        assert backend.door.loops == {asyncio.get_running_loop()}
        backend.door.let_out()
        await asyncio.wait_for(asyncio.wrap_future(stopping), 10)
        assert backend.has_stopped == 1

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stop", "stop_sync"])
def test_a_stop_from_elsewhere_sees_it_through_though_the_loop_ends(how: str) -> None:
    backend = SlowToStop()
    scheduler = make(backend=backend)
    stop = {"stop": lambda: asyncio.run(scheduler.stop()), "stop_sync": scheduler.stop_sync}[how]

    async def run() -> Future[Any]:
        await scheduler.start()
        stopping = begin(stop)
        await backend.door.someone_enters_elsewhere()
        return stopping

    stopping = asyncio.run(run())
    backend.door.someone_enters()
    backend.door.let_out()
    stopping.result(10)
    assert not scheduler.is_running()
    assert backend.has_stopped == 1


def test_a_stop_that_is_cancelled_tells_the_backend_all_the_same() -> None:
    class SlowToRelease(Own):
        released = 0

        async def release_streaming_reservation(self, *given: Any) -> bool:
            await door.go_through()
            self.released += 1
            return await super().release_streaming_reservation(*given)

    door = Door()

    async def run() -> None:
        backend = SlowToRelease()
        scheduler = make_own(backend)
        await scheduler.start()
        assert await scheduler.submit_request(asks(estimated_tokens=10), at_once) == 42
        stopping = asyncio.ensure_future(scheduler.stop())
        await door.someone_enters_elsewhere()
        stopping.cancel()
        await asyncio.sleep(0)
        door.let_out()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(stopping, 10)
        assert backend.released == 1
        assert not scheduler.is_running()

    asyncio.run(run())


def test_its_own_provider_may_stop_it_where_its_loop_is_its_own() -> None:
    stopped: Future[None] = Future()

    class Stopping(Provider):
        async def discover_limits(self, force_refresh: bool = False, *given: Any) -> Any:
            if force_refresh:
                try:
                    await scheduler.stop(0)
                    stopped.set_result(None)
                except BaseException as error:
                    stopped.set_exception(error)
                    raise
            return await super().discover_limits(force_refresh, *given)

    scheduler = make(provider=Stopping(), health_check_interval=0.01)
    scheduler.start_sync()
    stopped.result(10)
    assert not scheduler.is_running()
    begin(scheduler.start_sync).result(10)
    begin(lambda: scheduler.stop_sync(0)).result(10)


@pytest.mark.parametrize("how", ["stop", "stop_sync"])
def test_its_own_end_cannot_stop_it(how: str) -> None:
    class Turning(Scheduler):
        async def _on_stop(self) -> None:
            await self.stop()

    scheduler = Turning(None)
    scheduler.start_sync()
    stop = {"stop": lambda: asyncio.run(scheduler.stop()), "stop_sync": scheduler.stop_sync}[how]
    with pytest.raises(RuntimeError, match="by its own start"):
        begin(stop).result(10)


def test_a_question_that_ends_while_a_stop_looks_for_such_disturbs_nobody() -> None:
    async def run() -> None:
        scheduler = make_own(Own())
        supply = scheduler._remote
        assert supply is not None

        class Loop:
            def is_running(self) -> bool:
                supply._calls.clear()  # as threads do that go on just then
                return False

        loop: Any = Loop()
        supply._calls.update({Future(): loop, Future(): loop})
        await supply.close()

    asyncio.run(run())
