"""A thousand streams at once, ended in every way: what is counted afterwards, as an oracle has it.

The oracle is slow and knows nothing of the library: it goes through what the test, and the
simulator where there is one, have seen happen. A call that began has used a request. Its tokens are
what it said if it said so to its end, else its estimate, or what it said by then if that is more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import resource
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import openai
import pytest
from typing_extensions import Self
from users import asks, idle, until

from headway import RateLimiterConfig
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate.process import SimulatorProcess
from headway.transports import AsyncTransport, Connections, Transport

STREAMS = 1000
AT_ONCE = 120
# So long that nothing of it heals while the test runs.
RATES = ["1_000_000 tokens/31day window", "5_000 requests/31day bucket"]

WHOLE, CANCELLED, ABANDONED, FAILING = "whole", "cancelled", "abandoned", "failing"


def way_of(number: int) -> str:
    """A third is cancelled, a tenth abandoned, a tenth fails; the others are read to their end."""
    place = number % 30
    if place < 10:
        return CANCELLED
    if place < 13:
        return ABANDONED
    return FAILING if place < 16 else WHOLE


def make(*limits: str, at_once: int = AT_ONCE) -> Scheduler:
    config = RateLimiterConfig(
        rate_limit_buffer_ratio=1.0,
        max_queue_size=10_000,
        max_concurrent_executions=at_once + 30,
        max_retries=0,
        max_failures=10_000,
    )
    return create_scheduler(None, config=config, limits=[*RATES, *limits])


def used(scheduler: Scheduler) -> dict[str, int]:
    """By resource, of all limits but those that heal while the test runs."""
    explained = scheduler.explain(asks())
    assert explained is not None
    limits = ((each.limit, each.used) for each in explained.limits)
    return {limit.resource: count for limit, count in limits if limit.per != 1.0}


def collected(scheduler: Scheduler) -> bool:
    """Whether all that was abandoned has been settled."""
    gc.collect()
    return scheduler._under_way == 0


def check(scheduler: Scheduler, requests: int, tokens: int) -> None:
    """That it counts so much, and nothing is left behind."""
    assert used(scheduler) == {"requests": requests, "tokens": tokens, "concurrency": 0}
    assert scheduler._under_way == 0
    assert idle(scheduler)


# -- async generators ----------------------------------------------------------------------------


@dataclass
class Lived:
    """What happened to one stream."""

    estimate: int
    begun: float | None = None
    said: int | None = None
    """By the chunks that were given."""
    exhausted: bool = False


def count(lives: list[Lived]) -> tuple[int, int]:
    """Requests and tokens."""
    begun = [life for life in lives if life.begun is not None]
    tokens = 0
    for life in begun:
        said = life.estimate if life.said is None else life.said
        tokens += said if life.exhausted else max(life.estimate, said)
    return len(begun), tokens


def most_too_many(instants: list[float], rate: float, burst: int) -> float:
    """By how many calls the worst of all intervals has passed a bucket."""
    instants = sorted(instants)
    return max(
        last - first + 1 - burst - rate * (instants[last] - instants[first])
        for first in range(len(instants))
        for last in range(first, len(instants))
    )


class Broken(Exception):
    """What a provider's stream may raise."""


def cancel_by_turns(tasks: list[asyncio.Task[None]]) -> None:
    """Cancels a third of them, in no order: one whenever two others have ended.

    So some wait then, some are under way, and some have ended, however fast the machine is.
    """
    left = [task for number, task in enumerate(tasks) if way_of(number) == CANCELLED]
    random.Random(11).shuffle(left)
    ended = 0

    def tell(_: object) -> None:
        nonlocal ended
        ended += 1
        if ended % 2 == 0 and left:
            left.pop().cancel()

    for task in tasks:
        task.add_done_callback(tell)


async def end_all(
    scheduler: Scheduler, consume: Callable[[int], Coroutine[Any, Any, None]]
) -> None:
    """Reads all streams, a third of which is cancelled, until all that they held is back."""
    tasks = [asyncio.ensure_future(consume(number)) for number in range(STREAMS)]
    cancel_by_turns(tasks)
    _, left = await asyncio.wait(tasks, timeout=60)
    assert not left
    for task in tasks:
        assert task.cancelled() or task.exception() is None
    await until(lambda: collected(scheduler))


def test_async_generators_are_counted_as_they_ended() -> None:
    draws = random.Random(7)
    lives = [Lived(draws.randint(1, 400)) for _ in range(STREAMS)]
    inside: set[int] = set()
    most = 0

    async def chunks(number: int) -> AsyncIterator[Any]:
        seed = random.Random(number)
        try:
            for place in range(6):
                await asyncio.sleep(seed.random() * 0.02)
                if place == 4 and way_of(number) == FAILING:
                    raise Broken
                says = seed.randint(1, 800) if seed.random() < 0.3 or place == 5 else None
                lives[number].said = says or lives[number].said
                yield SimpleNamespace(usage=says and {"total_tokens": says})
            # Known here, though its reader may be cancelled as he is about to be told.
            lives[number].exhausted = True
        finally:
            inside.discard(number)

    async def main() -> None:
        async with make(f"{AT_ONCE} concurrency", "600 requests/s bucket burst 40") as scheduler:

            async def consume(number: int) -> None:
                life, way = lives[number], way_of(number)

                async def call() -> AsyncIterator[Any]:
                    nonlocal most
                    life.begun = monotonic()
                    inside.add(number)
                    most = max(most, len(inside))
                    if number % 4 == 0:
                        try:
                            await asyncio.sleep(0.01)
                        except asyncio.CancelledError:  # before there is a stream
                            inside.discard(number)
                            raise
                    return chunks(number)

                request = asks(estimated_tokens=life.estimate)
                stream = await scheduler.submit_request(request, call)
                try:
                    for _ in range(number % 3 if way == ABANDONED else 100):
                        await anext(stream)
                except StopAsyncIteration:
                    assert life.exhausted
                except Broken:
                    assert way == FAILING
                if way == ABANDONED:
                    inside.discard(number)
                    del stream
                    if number % 60 == 10:
                        gc.collect()

            await end_all(scheduler, consume)
            check(scheduler, *count(lives))

    asyncio.run(main())
    third = [life for number, life in enumerate(lives) if way_of(number) == CANCELLED]
    assert 0 < sum(life.begun is not None for life in third) < len(third)
    assert any(life.begun is not None and not life.exhausted for life in third)
    others = [life for number, life in enumerate(lives) if way_of(number) == WHOLE]
    assert all(life.exhausted for life in others)
    assert 0 < most <= AT_ONCE
    begun = [life.begun for life in lives if life.begun is not None]
    # Of two calls, the clock is read a moment apart, and longer where the machine is busy.
    assert most_too_many(begun, 600, 40) <= 600 * 0.05


# -- over HTTP -----------------------------------------------------------------------------------


@dataclass
class Passed:
    """What went over the network for each request, by its name."""

    sent: set[str] = field(default_factory=set)
    """Those of which a first byte was sent."""
    parts: dict[str, list[bytes]] = field(default_factory=dict)

    def count(self, simulator: SimulatorProcess) -> tuple[int, int]:
        """Requests and tokens: what the simulator has counted, and what it may have.

        Of what was cancelled while it was being sent, nobody can know.
        """
        stats = simulator.stats(decisions=True)
        assert stats["refused"] == stats["failed"] == stats["invalid"] == 0
        counted = {name: estimate for _, _, estimate, name in stats["decisions"]}
        assert set(counted) <= self.sent
        assert len(counted) == stats["admitted"]
        assert len(self.sent) - len(counted) <= AT_ONCE // 4
        tokens = 0
        for name in self.sent:
            estimate = estimate_of(body_of(int(name[1:])))
            assert counted.get(name, estimate) == estimate
            said = self._said(name)
            # Usage stands in the last event but one: who has it, has all.
            tokens += estimate if said is None else said
        return len(self.sent), tokens

    def _said(self, name: str) -> int | None:
        for line in b"".join(self.parts.get(name, ())).splitlines():
            if line.startswith(b"data: {") and b'"usage": {' in line:
                total: int = json.loads(line[6:])["usage"]["total_tokens"]
                return total
        return None


NAME = "x-client-request-id"


class Tap:
    """A real transport; what it gives is noted as it is handed on."""

    def __init__(self, inner: Any, passed: Passed) -> None:
        self._inner = inner
        self._passed = passed

    async def handle_async_request(self, request: Any) -> Any:
        tell = request.extensions["trace"]

        async def trace(event: str, info: dict[str, Any]) -> None:
            self._step(event, request)
            await tell(event, info)

        request.extensions = {**request.extensions, "trace": trace}
        return self._note(request, await self._inner.handle_async_request(request))

    def handle_request(self, request: Any) -> Any:
        tell = request.extensions["trace"]

        def trace(event: str, info: dict[str, Any]) -> None:
            self._step(event, request)
            tell(event, info)

        request.extensions = {**request.extensions, "trace": trace}
        return self._note(request, self._inner.handle_request(request))

    def _step(self, event: str, request: Any) -> None:
        if event.endswith(".send_request_headers.started"):
            self._passed.sent.add(request.headers[NAME])

    def _note(self, request: Any, response: Any) -> Any:
        noted = self._passed.parts.setdefault(request.headers[NAME], [])
        inner = response.stream

        async def asynchronous() -> AsyncIterator[bytes]:
            async for part in inner:
                noted.append(part)
                yield part

        def synchronous() -> Iterator[bytes]:
            for part in inner:
                noted.append(part)
                yield part

        # The clients look whether it is one of theirs.
        kind = type(inner)
        names = {"__aiter__": lambda _: asynchronous(), "__iter__": lambda _: synchronous()}
        own = type("Noted", (kind,), {n: f for n, f in names.items() if hasattr(kind, n)})
        noting: Any = object.__new__(own)
        noting.__dict__.update(vars(inner))
        response.stream = noting
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    def close(self) -> None:
        self._inner.close()


class Cutter:
    """A network that breaks: passes requests on to a simulator, and closes after two events."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self._host, _, port = simulator.url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        begun = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(begun, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_them, to_them = await asyncio.open_connection(self._host, self._port)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                to_them.write(head + await reader.readexactly(size))
                for _ in range(2):
                    writer.write(await from_them.readuntil(b"data: "))
                await writer.drain()
        finally:
            to_them.close()
            writer.close()


def body_of(number: int) -> dict[str, Any]:
    draws = random.Random(number)
    return {
        "model": "m",
        "messages": [{"role": "user", "content": "hi " * draws.randint(1, 30)}],
        "max_tokens": draws.randint(3, 9),
        "stream": True,
        # Of the others, nothing is said: they have used their estimate.
        "stream_options": {"include_usage": number % 5 != 0},
    }


def estimate_of(body: dict[str, Any]) -> int:
    """In tokens; four characters are one."""
    characters = len(body["messages"][0]["content"])
    most: int = body["max_tokens"]
    return max(-(-characters // 4), most)


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    at_once = 2 * getattr(request, "param", AT_ONCE)
    # What it would count itself is not told: it gives nothing back, and would be believed.
    limits = ("--limits", "5_000 requests/31day window", "--limits", f"{at_once} concurrency")
    options = ("--no-headers", "--decisions", "--latency", "0.1", "--jitter", "0.05")
    with SimulatorProcess(*limits, *options) as running:
        yield running


async def all_of(scheduler: Scheduler, consume: Callable[[int, str], Awaitable[None]]) -> list[str]:
    """Consumes all; how each has ended. Of a third, the task is cancelled some time."""
    ended = [""] * STREAMS

    async def one(number: int) -> None:
        await consume(number, way_of(number))
        ended[number] = way_of(number)
        if number % 60 == 10:
            gc.collect()

    await end_all(scheduler, one)
    return ended


def check_http(
    scheduler: Scheduler, simulator: SimulatorProcess, passed: Passed, ended: list[str]
) -> None:
    check(scheduler, *passed.count(simulator))
    for way in (WHOLE, FAILING, ABANDONED):
        assert ended.count(way) == sum(way_of(number) == way for number in range(STREAMS))
    # Of the cancelled ones, some were sent, and some were not.
    others = sum(way_of(number) != CANCELLED for number in range(STREAMS))
    assert others < len(passed.sent) < STREAMS
    assert passed.parts.keys() <= passed.sent


@pytest.mark.long
def test_responses_of_httpx_are_counted_as_they_ended(simulator: SimulatorProcess) -> None:
    passed = Passed()

    async def main() -> None:
        async with make(f"{AT_ONCE} concurrency") as scheduler:
            transport = AsyncTransport(scheduler, Tap(Connections(), passed), "generic")
            async with httpx.AsyncClient(transport=transport, timeout=30) as client:

                async def consume(number: int, way: str) -> None:
                    request = client.build_request(
                        "POST",
                        (cutter if way == FAILING else simulator).url + "/v1/chat/completions",
                        json=body_of(number),
                        headers={NAME: f"r{number}"},
                    )
                    response = await client.send(request, stream=True)
                    if way == ABANDONED:
                        parts = response.aiter_bytes()
                        for _ in range(number % 3):
                            await anext(parts)
                        return
                    try:
                        async for _ in response.aiter_bytes():
                            pass
                        assert way != FAILING
                    except httpx.RemoteProtocolError:
                        assert way == FAILING
                    finally:
                        await response.aclose()

                ended = await all_of(scheduler, consume)
            check_http(scheduler, simulator, passed, ended)

    with Cutter(simulator) as cutter:
        asyncio.run(main())


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("simulator", [STREAMS], indirect=True, ids=[""])
def test_a_thousand_that_are_open_at_once_are_counted_as_they_ended(
    simulator: SimulatorProcess,
) -> None:
    lives = [Lived(estimate_of(body_of(number))) for number in range(STREAMS)]
    opened = 0

    async def main() -> None:
        all_open = asyncio.Event()
        http = httpx.AsyncClient(transport=Connections(), timeout=60)
        limit = f"{STREAMS} concurrency"
        async with http as client, make(limit, at_once=STREAMS) as scheduler:

            async def chunks(number: int) -> AsyncIterator[Any]:
                life = lives[number]
                url = (cutter if way_of(number) == FAILING else simulator).url
                path = f"{url}/v1/chat/completions"
                async with client.stream("POST", path, json=body_of(number)) as response:
                    yield None
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            chunk = json.loads(line[6:])
                            if chunk.get("usage"):
                                life.said = chunk["usage"]["total_tokens"]
                            yield chunk
                life.exhausted = True

            async def consume(number: int, way: str) -> None:
                nonlocal opened
                life = lives[number]

                async def call() -> AsyncIterator[Any]:
                    life.begun = monotonic()
                    return chunks(number)

                request = asks(estimated_tokens=life.estimate)
                stream = await scheduler.submit_request(request, call)
                assert await anext(stream) is None
                opened += 1
                if opened == STREAMS:
                    assert used(scheduler)["concurrency"] == STREAMS
                    assert scheduler._under_way == STREAMS
                    all_open.set()
                await all_open.wait()
                try:
                    for place in range(number % 3 if way == ABANDONED else 1000):
                        if way == CANCELLED and place == number % 4:
                            task = asyncio.current_task()
                            assert task is not None
                            task.cancel()
                        await anext(stream)
                except StopAsyncIteration:
                    assert life.exhausted
                except httpx.RemoteProtocolError:
                    assert way == FAILING

            ended = await all_of(scheduler, consume)
            check(scheduler, *count(lives))
        stats = simulator.stats()
        assert (stats["admitted"], stats["refused"], opened) == (STREAMS, 0, STREAMS)
        for way in (WHOLE, FAILING, ABANDONED):
            assert ended.count(way) == sum(way_of(number) == way for number in range(STREAMS))

    with Cutter(simulator) as cutter:
        asyncio.run(main())
    left = dict.fromkeys((WHOLE, CANCELLED, ABANDONED, FAILING), 0)
    for number, life in enumerate(lives):
        left[way_of(number)] += not life.exhausted
    assert left[WHOLE] == 0
    assert min(left[way] for way in (CANCELLED, ABANDONED, FAILING)) >= STREAMS // 20


@pytest.mark.long
def test_streams_of_openais_sdk_are_counted_as_they_ended(simulator: SimulatorProcess) -> None:
    passed = Passed()

    async def main() -> None:
        async with make(f"{AT_ONCE} concurrency") as scheduler:
            limits = httpx2.Limits(max_connections=None)
            tap = Tap(httpx2.AsyncHTTPTransport(limits=limits), passed)
            transport = AsyncTransport(scheduler, tap, "generic")
            http = openai.DefaultAsyncHttpxClient(transport=transport)
            whole = openai.AsyncOpenAI(
                api_key="k", base_url=f"{simulator.url}/v1", http_client=http, max_retries=0
            )
            broken = whole.with_options(base_url=f"{cutter.url}/v1")

            async def consume(number: int, way: str) -> None:
                client = broken if way == FAILING else whole
                stream = await client.chat.completions.create(
                    **body_of(number), extra_headers={NAME: f"r{number}"}
                )
                if way == ABANDONED:
                    for _ in range(number % 3):
                        await anext(stream)
                    return
                try:
                    async for _ in stream:
                        pass
                    assert way != FAILING
                except openai.APIConnectionError:
                    assert way == FAILING
                finally:
                    await stream.close()

            ended = await all_of(scheduler, consume)
            await whole.close()
            check_http(scheduler, simulator, passed, ended)

    with Cutter(simulator) as cutter:
        asyncio.run(main())


@pytest.mark.long
def test_streams_of_threads_are_counted_as_they_ended(simulator: SimulatorProcess) -> None:
    passed = Passed()
    ended: list[str] = []

    def consume(number: int) -> None:
        way = way_of(number)
        request = client.build_request(
            "POST",
            (cutter if way == FAILING else simulator).url + "/v1/chat/completions",
            json=body_of(number),
            headers={NAME: f"r{number}"},
        )
        response = client.send(request, stream=True)
        parts = response.iter_bytes()
        try:
            # A thread is not cancelled: it stops reading, and closes.
            for _ in range(number % 3 if way in (CANCELLED, ABANDONED) else 1000):
                next(parts)
        except StopIteration:
            assert way == WHOLE
        except httpx.RemoteProtocolError:
            assert way == FAILING
        if way != ABANDONED:
            response.close()
        elif number % 60 == 10:
            gc.collect()
        ended.append(way)

    with Cutter(simulator) as cutter, make(f"{AT_ONCE} concurrency") as scheduler:
        limits = httpx.Limits(max_connections=None)
        tap = Tap(httpx.HTTPTransport(limits=limits), passed)
        transport = Transport(scheduler, tap, "generic")
        with httpx.Client(transport=transport, timeout=30) as client:
            with ThreadPoolExecutor(50) as pool:
                for done in [pool.submit(consume, number) for number in range(210)]:
                    done.result(timeout=60)
            gc.collect()
            check(scheduler, *passed.count(simulator))
        assert simulator.stats()["admitted"] == 210
        assert sorted(ended) == sorted(way_of(number) for number in range(210))
