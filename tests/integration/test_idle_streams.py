"""Streams that are left open: settled when nobody has read them for `reservation_ttl`, once."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from users import Provider, asks, idle, until

from headway import MemoryBackend, RateLimiterConfig
from headway.scheduler import Scheduler, StateConfig, create_scheduler
from headway.transports import AsyncTransport, Transport
from headway.views import StateManager

PATIENCE = 300.0
LIMITS = ["1_000_000 tokens/31day bucket", "1000 requests/31day", "2 concurrency"]


def make(patience: float = PATIENCE, **options: Any) -> Scheduler:
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, **options)
    state = StateConfig(reservation_ttl=patience)
    return create_scheduler(None, config=config, state_config=state, limits=LIMITS)


def used(scheduler: Scheduler) -> dict[str, int]:
    explained = scheduler.explain(asks())
    assert explained is not None
    return {each.limit.resource: each.used for each in explained.limits}


def said(tokens: int) -> SimpleNamespace:
    return SimpleNamespace(usage=SimpleNamespace(total_tokens=tokens))


async def chunks(*given: Any) -> AsyncIterator[Any]:
    for each in given:
        if isinstance(each, asyncio.Event):
            await each.wait()
        yield each


def giving(*given: Any) -> Callable[[], Awaitable[Any]]:
    async def call() -> Any:
        return chunks(*given)

    return call


def event(tokens: int) -> bytes:
    usage = b'"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": %d}' % tokens
    return b"data: {" + usage + b"}\n\n"


PIECES = (event(30), event(40), event(50))


class AsyncPieces(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in PIECES:
            yield each


class Pieces(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield from PIECES


def answer(body: type[AsyncPieces | Pieces]) -> httpx.MockTransport:
    headers = {"content-type": "text/event-stream"}
    return httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=body()))


ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
URL = "https://api.example.com/v1/chat/completions"


def test_one_that_nobody_reads_gives_its_place_to_who_waits_for_it() -> None:
    async def main() -> None:
        async with make(0.2, max_concurrent_executions=1) as scheduler:
            left = await scheduler.submit_request(asks(estimated_tokens=100), giving(1, said(400)))
            assert await anext(left) == 1
            # Nothing but the idle one's end lets it go, and nothing else wakes it.
            second = scheduler.submit_request(asks(estimated_tokens=10), giving(2))
            other = await asyncio.wait_for(second, 20)
            assert scheduler.get_metrics()["idle_streams"] == 1
            await other.aclose()
            assert used(scheduler) == {"tokens": 110, "requests": 2, "concurrency": 0}
            # It can be read to its end, which says more, and is not counted again.
            assert [chunk async for chunk in left] == [said(400)]
            await left.aclose()
            assert used(scheduler) == {"tokens": 110, "requests": 2, "concurrency": 0}
            assert idle(scheduler)

    asyncio.run(main())


def test_what_it_has_said_by_then_counts_where_it_is_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with make() as scheduler:
            submit = scheduler.submit_request
            little = await submit(asks(estimated_tokens=100), giving(said(30), said(60)))
            much = await submit(asks(estimated_tokens=100), giving(said(130), said(160)))
            await anext(little)
            await anext(much)
            assert scheduler._streams._look(monotonic() + PATIENCE + 1) == PATIENCE
            await until(lambda: used(scheduler)["concurrency"] == 0)
            assert used(scheduler)["tokens"] == 100 + 130
            await anext(little)
            await anext(much)
            assert used(scheduler)["tokens"] == 100 + 130
            assert scheduler.get_metrics()["idle_streams"] == 2

    with caplog.at_level(logging.WARNING, logger="headway"):
        asyncio.run(main())
    (told,) = [record for record in caplog.records if "nobody has read" in record.message]
    assert told.levelno == logging.WARNING
    assert "bucket 'm'" in told.message


def test_one_that_is_read_is_not_due_until_it_was_left_as_long_again() -> None:
    async def main() -> None:
        async with make() as scheduler:
            stream = await scheduler.submit_request(asks(), giving(1, 2, 3))
            look = scheduler._streams._look
            begun = monotonic()
            assert 0 < look(begun) <= PATIENCE
            await asyncio.sleep(0.01)
            await anext(stream)
            # What would be late from its beginning is not, from its last chunk.
            assert 0 < look(begun + PATIENCE + 0.01) <= PATIENCE
            assert used(scheduler)["concurrency"] == 1
            look(monotonic() + PATIENCE)
            await until(lambda: used(scheduler)["concurrency"] == 0)

    asyncio.run(main())


def test_one_that_somebody_waits_for_is_not_idle() -> None:
    async def main() -> None:
        async with make() as scheduler:
            speaks = asyncio.Event()
            stream = await scheduler.submit_request(asks(), giving(1, speaks, 3))
            assert await anext(stream) == 1
            reads = asyncio.ensure_future(anext(stream))
            await until(lambda: stream._settlement.unread_since > 1e300)
            assert scheduler._streams._look(monotonic() + 100 * PATIENCE) == PATIENCE
            assert used(scheduler)["concurrency"] == 1
            speaks.set()
            await reads
            assert used(scheduler)["concurrency"] == 1
            await stream.aclose()
            assert used(scheduler)["concurrency"] == 0
            assert scheduler.get_metrics()["idle_streams"] == 0

    asyncio.run(main())


def test_bodies_of_responses_are_looked_after_too() -> None:
    async def main() -> None:
        async with make() as scheduler:
            transport = AsyncTransport(scheduler, answer(AsyncPieces))
            async with httpx.AsyncClient(transport=transport) as client:
                async with client.stream("POST", URL, json=ASKED) as response:
                    reserved = used(scheduler)["tokens"]
                    assert reserved > 50
                    parts = response.aiter_raw()
                    assert await anext(parts) == PIECES[0]
                    scheduler._streams._look(monotonic() + PATIENCE - 1)
                    assert used(scheduler)["concurrency"] == 1
                    scheduler._streams._look(monotonic() + PATIENCE + 1)
                    assert used(scheduler)["concurrency"] == 0
                    assert [part async for part in parts] == list(PIECES[1:])
                assert used(scheduler) == {"tokens": reserved, "requests": 1, "concurrency": 0}

    asyncio.run(main())


def test_streams_of_threads_are_looked_after_though_the_loop_of_the_start_has_ended() -> None:
    scheduler = make(0.2)
    asyncio.run(scheduler.start())
    client = httpx.Client(transport=Transport(scheduler, answer(Pieces)))

    def begin() -> tuple[Any, Any]:
        opened = client.stream("POST", URL, json=ASKED)
        return opened, opened.__enter__()

    with ThreadPoolExecutor(1) as pool:
        left = [pool.submit(begin).result() for _ in range(2)]
        # Two at once are allowed: it waits for one of them.
        last, response = pool.submit(begin).result(timeout=30)
        assert b"".join(response.iter_raw()) == b"".join(PIECES)
        last.__exit__(None, None, None)
        for opened, each in left:
            assert b"".join(each.iter_raw()) == b"".join(PIECES)
            opened.__exit__(None, None, None)
    assert scheduler.get_metrics()["idle_streams"] in (1, 2)
    assert used(scheduler)["concurrency"] == 0
    assert scheduler._under_way == 0
    client.close()
    scheduler.stop_sync()


def test_what_stays_open_when_its_loop_ends_is_looked_after_elsewhere() -> None:
    scheduler = make(0.2, max_concurrent_executions=1)
    left: list[Any] = []

    class Lasting:
        """No generator, which a loop would close at its end."""

        def __aiter__(self) -> Lasting:
            return self

        async def __anext__(self) -> int:
            return 1

    async def first() -> None:
        await scheduler.start()

        async def call() -> Lasting:
            return Lasting()

        left.append(await scheduler.submit_request(asks(), call))
        await anext(left[0])

    async def second() -> None:
        stream: Any = await asyncio.wait_for(scheduler.submit_request(asks(), giving(2)), 20)
        assert [chunk async for chunk in stream] == [2]
        assert await anext(left[0]) == 1
        await scheduler.stop()

    asyncio.run(first())
    asyncio.run(second())
    assert scheduler.get_metrics()["idle_streams"] == 1
    assert used(scheduler)["concurrency"] == 0


def test_no_stream_has_a_task_or_keeps_anything_when_it_has_gone() -> None:
    async def main() -> None:
        async with make() as scheduler:
            before = len(asyncio.all_tasks())
            opened: list[Any] = []
            stream: Any = None
            for _ in range(2):
                for _ in range(200):
                    stream = await scheduler.submit_request(asks(), giving(1))
                    await anext(stream)
                    opened.append(stream)
                    if len(opened) % 2 == 0:
                        await stream.aclose()
                    else:
                        scheduler._streams._look(monotonic() + PATIENCE + 1)
                        await until(lambda: used(scheduler)["concurrency"] == 0)
                assert len(asyncio.all_tasks()) == before + 1
            assert len(scheduler._streams._buckets) == 400
            del stream
            opened.clear()
            gc.collect()
            assert len(scheduler._streams._buckets) == 0

    asyncio.run(main())


class Left:
    """As much of a stream as is looked at; in a cycle, so that only a collector ends it."""

    is_open = True

    def __init__(self) -> None:
        self.unread_since = math.inf
        self.itself = self

    def leave(self) -> bool:
        raise AssertionError("it is being read")


def test_they_are_looked_at_while_garbage_is_collected() -> None:
    scheduler = make()
    scheduler._streams.watched = True  # without a chore
    bucket = scheduler._buckets.make_unlisted("m")
    held = [Left() for _ in range(100)]
    thresholds = gc.get_threshold()
    gc.collect()
    gc.disable()
    try:
        for each in held:
            scheduler._streams.watch(each, bucket)
        for _ in range(10_000):
            scheduler._streams.watch(Left(), bucket)
        # Before Python 3.12 any allocation may collect: here, after some thousand more.
        gc.set_threshold(gc.get_count()[0] + 3_000, *thresholds[1:])
        gc.enable()
        assert scheduler._streams._look(monotonic()) == PATIENCE
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    assert len(scheduler._streams._buckets) == len(held)


class Asked(Provider):
    """Notes the threads in which it is asked for limits."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    async def discover_limits(self, *given: Any, **options: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        return await super().discover_limits(*given, **options)


def test_where_looking_fails_on_a_loop_that_goes_on_the_other_chores_stay_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        provider = Asked()
        config = RateLimiterConfig(health_check_interval=0.01)
        scheduler = create_scheduler(None, config=config, provider=provider)
        looked = asyncio.Event()

        def fails(_: float) -> float:
            looked.set()
            raise ZeroDivisionError

        async with scheduler:
            monkeypatch.setattr(scheduler._streams, "_look", fails)
            stream = await scheduler.submit_request(asks(), giving(1))
            await asyncio.wait_for(looked.wait(), 20)
            asked = len(provider.threads)
            await until(lambda: len(provider.threads) >= asked + 5)
            assert scheduler._chores.is_this_loop()
            await stream.aclose()
        stopped = len(provider.threads)
        await asyncio.sleep(0.05)  # several times the interval
        assert len(provider.threads) == stopped
        assert set(provider.threads) == {threading.current_thread().name}
        gc.collect()
        assert [type(each.get("exception")) for each in said] == [ZeroDivisionError]

    asyncio.run(main())


def test_where_somebody_cancels_one_chore_all_of_them_go_elsewhere() -> None:
    async def main() -> None:
        provider = Asked()
        config = RateLimiterConfig(health_check_interval=0.01)
        scheduler = create_scheduler(None, config=config, provider=provider)
        async with scheduler:
            stream = await scheduler.submit_request(asks(), giving(1))
            await until(lambda: scheduler._chores.count == 2)
            (look,) = (each for each in scheduler._chores._tasks if "OpenStreams" in repr(each))
            await until(lambda: look._fut_waiter is not None)  # type: ignore[attr-defined]
            others = set(scheduler._chores._tasks) - {look}
            look.cancel()
            await asyncio.wait_for(asyncio.wait(others), 20)
            asked = len(provider.threads)
            await until(lambda: len(provider.threads) >= asked + 5)
            assert set(provider.threads[asked:]) == {"headway-chores"}
            await stream.aclose()
        stopped = len(provider.threads)
        await asyncio.sleep(0.05)  # several times the interval
        assert len(provider.threads) == stopped

    asyncio.run(main())


def test_a_scheduler_that_is_stopped_looks_after_them_when_it_runs_again() -> None:
    async def main() -> None:
        scheduler = make(0.2)
        await scheduler.start()
        stream = await scheduler.submit_request(asks(), giving(1))
        await scheduler.stop()
        assert used(scheduler)["concurrency"] == 1
        await scheduler.start()
        await until(lambda: used(scheduler)["concurrency"] == 0)
        assert [chunk async for chunk in stream] == [1]
        await scheduler.stop()

    asyncio.run(main())


def test_the_option_may_be_the_state_managers() -> None:
    manager = StateManager(MemoryBackend(), StateConfig(reservation_ttl=7.0))
    assert create_scheduler(None, state_manager=manager)._streams.patience == 7.0
    assert create_scheduler(None)._streams.patience == 300.0
    own = StateConfig(reservation_ttl=8.0)
    made = create_scheduler(None, state_manager=manager, state_config=own)
    assert made._streams.patience == 8.0
