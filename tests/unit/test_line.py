"""Of many requests that are admitted at once, the first are sent before the last are begun."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

import httpx
import pytest

from headway import Limiter, Reservation
from headway.simulate import SimulatorProcess
from headway.transports import Connections, NetworkDelays, _line, send
from headway.transports._line import MOST, TURNS, Line, line


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


@pytest.fixture(autouse=True)
def by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests count turns, however long those take."""
    monkeypatch.setattr(_line, "LONGEST", 1e9)


class One:
    def __init__(self) -> None:
        self.inside = False
        self.lined = True
        self.late = False

    def is_lined(self) -> bool:
        return self.lined

    def is_late(self) -> None:
        self.late = True


class Many:
    """So many, who ask to enter in their order."""

    def __init__(self, line: Line, count: int) -> None:
        self._line = line
        self.all = [One() for _ in range(count)]
        self.tasks = [asyncio.ensure_future(self._enter(one)) for one in self.all]

    async def _enter(self, one: One) -> None:
        await self._line.enter(one)
        one.inside = True

    @property
    def inside(self) -> list[int]:
        return [number for number, one in enumerate(self.all) if one.inside]

    def leave(self, number: int) -> None:
        self._line.leave(self.all[number])


@asynccontextmanager
async def many(line: Line, count: int) -> AsyncIterator[Many]:
    those = Many(line, count)
    tasks = those.tasks
    try:
        yield those
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@in_a_loop
async def test_a_few_enter_and_the_next_as_one_leaves_in_their_order() -> None:
    line = Line()
    async with many(line, MOST + 3) as those:
        await turns(3)
        assert those.inside == [*range(MOST)]
        those.leave(2)
        those.leave(2)  # as a transport does that traces connecting and sending
        await turns(3)
        assert those.inside == [*range(MOST + 1)]
        those.leave(0)
        those.leave(1)
        await turns(3)
        assert those.inside == [*range(MOST + 3)]


@in_a_loop
async def test_nobody_waits_for_long_for_those_who_wait_for_something_else() -> None:
    line = Line()
    async with many(line, 3 * MOST) as those:
        await turns(TURNS // 2)
        assert those.inside == [*range(MOST)]
        await turns(TURNS)
        assert those.inside == [*range(2 * MOST)]
        await turns(TURNS)
        assert those.inside == [*range(3 * MOST)]
        those.leave(0)  # late: its place is another's by now
        assert len(line._inside) == MOST


def test_a_turn_ends_after_some_time_however_long_the_loops_turns_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_line, "LONGEST", 0.01)
    monkeypatch.setattr(_line, "TURNS", 10**9)

    async def main() -> list[int]:
        async with many(Line(), MOST + 1) as those:
            await turns(3)
            assert those.inside == [*range(MOST)]
            await asyncio.sleep(0.02)
            await turns(3)
            return those.inside

    assert asyncio.run(main()) == [*range(MOST + 1)]


@in_a_loop
async def test_nobody_waits_for_calls_of_a_transport_that_tells_nothing() -> None:
    line = Line()
    async with many(line, 3 * MOST) as those:
        await turns(3)
        for one in those.all[:-1]:
            one.lined = False  # as the first few of them have shown
        those.leave(0)
        await turns(3)
        assert those.inside == [*range(3 * MOST)]
        async with many(line, 1) as another:
            another.all[0].lined = False
            await turns(1)
            assert another.inside == [0]


@in_a_loop
async def test_a_transport_that_tells_nothing_is_found_out_and_one_that_does_again() -> None:
    limiter = Limiter("100 requests/min window")
    delays = NetworkDelays()
    goes_on = asyncio.Event()
    begun = 0

    async def call(request: httpx.Request) -> httpx.Response:
        nonlocal begun
        begun += 1
        await goes_on.wait()
        await request.extensions["trace"]("http11.send_request_headers.started", {})
        return httpx.Response(200)

    async def one() -> None:
        request = httpx.Request("POST", "http://h/")
        reservation = await limiter.acquire()
        await send(call, request, reservation, delays)

    tasks = [asyncio.ensure_future(one()) for _ in range(5 * MOST)]
    await turns(TURNS // 2)
    assert begun == MOST
    await turns(TURNS)
    assert (begun, delays._traced) == (5 * MOST, False)
    goes_on.set()
    await asyncio.gather(*tasks)
    assert delays._traced


@in_a_loop
async def test_a_call_that_connects_once_more_by_itself_leaves_nothing_behind() -> None:
    """A transport that tries again by itself hands on what traces the first attempt."""
    limiter = Limiter("100 requests/min window")

    async def call(request: httpx.Request) -> httpx.Response:
        trace = request.extensions["trace"]
        for _ in range(2):
            await trace("connection.connect_tcp.started", {})
            await trace("http11.send_request_headers.started", {})
            await trace("http11.send_request_body.complete", {})
        return httpx.Response(200)

    await send(call, httpx.Request("POST", "http://h/"), await limiter.acquire(), NetworkDelays())
    own = line()
    assert own is not None
    assert not own._inside


def test_a_loop_that_is_closed_under_those_who_wait_raises_nothing() -> None:
    line = Line()
    loop = asyncio.new_event_loop()
    ones = [One() for _ in range(MOST + 2)]
    tasks = [loop.create_task(line.enter(one)) for one in ones]
    loop.run_until_complete(turns(3))
    loop.close()
    line.leave(ones[0])
    assert not line._waiting
    for task in tasks[MOST:]:
        # Nobody is to say of it that it was never finished.
        task.get_coro().close()  # type: ignore[union-attr]
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_where_no_loop_of_asyncio_runs_nobody_waits() -> None:
    limiter = Limiter("100 requests/min window")
    reservation = limiter.try_reserve()
    assert isinstance(reservation, Reservation)

    async def call(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    sends = send(call, httpx.Request("POST", "http://h/"), reservation, NetworkDelays())
    with pytest.raises(StopIteration) as over:
        sends.send(None)
    assert over.value.value.status_code == 200
    assert reservation.state == "answered"


@in_a_loop
async def test_a_turn_that_comes_to_somebody_who_has_given_up_is_the_next_ones() -> None:
    line = Line()
    async with many(line, MOST + 3) as those:
        await turns(3)
        those.tasks[MOST].cancel()  # while it waits
        await turns(2)
        those.leave(0)
        those.tasks[MOST + 1].cancel()  # when it was given its turn, and has not gone on
        await turns(3)
        assert those.inside == [*range(MOST), MOST + 2]


@in_a_loop
async def test_the_loop_is_left_alone_when_nobody_waits() -> None:
    line = Line()
    async with many(line, MOST + 1) as those:
        await turns(3)
        for number in range(MOST + 1):
            those.leave(number)
        await turns(5)
        assert those.inside == [*range(MOST + 1)]
        assert not line._ticks


def test_each_loop_has_its_own_which_goes_with_it() -> None:
    async def ask() -> weakref.ref[asyncio.AbstractEventLoop]:
        own = line()
        assert own is not None
        assert own is line()
        async with many(own, MOST + 1):
            await turns(2)
        return weakref.ref(asyncio.get_running_loop())

    first = asyncio.run(ask())
    gc.collect()
    assert first() is None


@pytest.mark.parametrize("fails", [False, True])
@in_a_loop
async def test_a_request_that_ends_unsent_lets_the_next_pass(fails: bool) -> None:
    """`fails`: what sends it raises, and traces nothing; else its task is cancelled meanwhile."""
    limiter = Limiter("100 requests/min window")
    hangs = asyncio.Event()
    begun = 0

    async def call(_: httpx.Request) -> httpx.Response:
        nonlocal begun
        begun += 1
        if fails:
            raise httpx.ConnectError("no way")
        await hangs.wait()
        return httpx.Response(200)

    async def one() -> None:
        request = httpx.Request("POST", "http://h/")
        reservation = await limiter.acquire()
        with suppress(httpx.ConnectError):
            await send(call, request, reservation, NetworkDelays())

    tasks = [asyncio.ensure_future(one()) for _ in range(3 * MOST)]
    await turns(5)
    for task in tasks[:MOST]:
        task.cancel()
    await turns(10)
    if fails:
        assert begun == 3 * MOST
    else:
        assert begun == 2 * MOST
        # Those that waited were not sent, so nothing of them is kept.
        for task in tasks[2 * MOST :]:
            task.cancel()
        await turns(5)
        assert limiter.explain().limits[0].used == MOST
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert limiter.explain().limits[0].used == 0


@in_a_loop
async def test_of_a_burst_the_first_are_sent_while_the_last_still_wait() -> None:
    """By a real client, over connections that are open: with none of it, all are begun first."""
    with SimulatorProcess() as server:
        async with httpx.AsyncClient(transport=Connections(), trust_env=False) as client:
            limiter = Limiter("1000 requests/min window")
            delays = NetworkDelays()
            begun = sent = before_the_last = 0

            async def go(request: httpx.Request) -> httpx.Response:
                nonlocal begun, before_the_last
                begun += 1
                before_the_last = sent
                return await client.send(request, stream=True)

            def is_sent() -> None:
                nonlocal sent
                sent += 1

            async def one() -> None:
                body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
                url = f"{server.url}/v1/chat/completions"
                request = client.build_request("POST", url, json=body)
                reservation = await limiter.acquire()
                response = await send(go, request, reservation, delays, is_sent)
                await response.aread()
                reservation.settle()

            await asyncio.gather(*(one() for _ in range(60)))
            begun = sent = 0
            await asyncio.gather(*(one() for _ in range(60)))
            assert (begun, sent) == (60, 60)
            # Those whose connections have been closed meanwhile are not waited for.
            assert before_the_last >= 30
