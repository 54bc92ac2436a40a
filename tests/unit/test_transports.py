"""What a request's trace tells its reservation, and what is remembered of each host."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx
import pytest

from headway import Limiter, Reservation
from headway.transports import NetworkDelays, send
from headway.transports._network import RECENT, round_trip

URL = "http://h/v1/chat/completions"
Call = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Recorded:
    """A reservation that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.delay = -1.0

    def sent(self, network_delay: float) -> bool:
        self.told.append("sent")
        self.delay = network_delay
        return True

    def answered(self, refused: bool) -> bool:
        self.told.append("refused" if refused else "answered")
        return True

    def cancel(self) -> bool:
        self.told.append("cancelled")
        return True

    def expire(self) -> bool:
        self.told.append("expired")
        return True


class Wire:
    """A stream that has no socket to ask."""

    def get_extra_info(self, _: str) -> None:
        return None


def trace_of(request: httpx.Request) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    return cast(Any, request.extensions["trace"])


def told_by(
    call: Call,
    delays: NetworkDelays | None = None,
    request: httpx.Request | None = None,
    sent: Callable[[], None] | None = None,
) -> Recorded:
    """What the reservation of a request that `call` sends is told."""
    recorded = Recorded()
    reservation = cast(Reservation, recorded)
    request = request or httpx.Request("POST", URL)
    asyncio.run(cast(Any, send(call, request, reservation, delays or NetworkDelays(), sent)))
    return recorded


async def connect(request: httpx.Request, seconds: float = 0.0) -> None:
    trace = trace_of(request)
    await trace("connection.connect_tcp.started", {"host": "h"})
    await asyncio.sleep(seconds)
    await trace("connection.connect_tcp.complete", {"return_value": Wire()})


async def write(request: httpx.Request, method: bytes = b"POST", protocol: str = "http11") -> None:
    class Told:
        pass

    told = Told()
    cast(Any, told).method = method
    trace = trace_of(request)
    for event in ("headers.started", "headers.complete", "body.started", "body.complete"):
        await trace(f"{protocol}.send_request_{event}", {"request": told})


@pytest.mark.parametrize("protocol", ["http11", "http2"])
def test_a_request_is_sent_when_its_last_byte_is_and_answered_when_its_head_is(
    protocol: str,
) -> None:
    seen: list[str] = []

    async def call(request: httpx.Request) -> httpx.Response:
        await write(request, protocol=protocol)
        seen.append("written")
        return httpx.Response(200)

    recorded = told_by(call, sent=lambda: seen.append("sent"))
    assert recorded.told == ["sent", "answered"]
    assert seen == ["sent", "written"]


def test_a_429_is_a_refusal() -> None:
    async def call(request: httpx.Request) -> httpx.Response:
        await write(request)
        return httpx.Response(429)

    assert told_by(call).told == ["sent", "refused"]


def test_a_transport_that_traces_nothing_has_sent_what_is_answered() -> None:
    async def call(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    assert told_by(call).told == ["sent", "answered"]


def test_a_cold_connection_may_be_looked_at_as_late_as_it_took_to_connect() -> None:
    async def call(request: httpx.Request) -> httpx.Response:
        await connect(request, 0.05)
        await write(request)
        return httpx.Response(200)

    assert 0.05 <= told_by(call).delay < 5


def test_a_warm_connection_is_as_far_away_as_the_slowest_of_its_host_lately() -> None:
    delays = NetworkDelays()
    delays.note("h", 0.03)
    delays.note("elsewhere", 9.0)

    async def call(request: httpx.Request) -> httpx.Response:
        await write(request)
        return httpx.Response(200)

    assert told_by(call, delays).delay == 0.03


def run_failing(call: Call, error: type[BaseException]) -> list[str]:
    recorded = Recorded()
    with pytest.raises(error):
        asyncio.run(
            cast(
                Any,
                send(
                    call,
                    httpx.Request("POST", URL),
                    cast(Reservation, recorded),
                    NetworkDelays(),
                ),
            )
        )
    return recorded.told


def test_what_could_not_connect_is_given_back() -> None:
    async def call(request: httpx.Request) -> httpx.Response:
        await trace_of(request)("connection.connect_tcp.started", {})
        raise httpx.ConnectError("no route")

    assert run_failing(call, httpx.ConnectError) == ["cancelled"]


def test_what_broke_while_it_was_sent_may_have_been_counted() -> None:
    async def call(request: httpx.Request) -> httpx.Response:
        trace = trace_of(request)
        await trace("http11.send_request_headers.started", {"request": None})
        raise httpx.ReadError("gone")

    assert run_failing(call, httpx.ReadError) == ["sent", "expired"]


def test_a_call_cancelled_in_the_middle_of_its_headers_may_have_been_counted() -> None:
    async def call(request: httpx.Request) -> httpx.Response:
        await trace_of(request)("http11.send_request_headers.started", {"request": None})
        raise asyncio.CancelledError

    assert run_failing(call, asyncio.CancelledError) == ["sent", "expired"]


def test_what_is_said_to_a_proxy_is_not_the_request() -> None:
    async def refusing(request: httpx.Request) -> httpx.Response:
        await write(request, b"CONNECT")
        raise httpx.ProxyError("403")

    assert run_failing(refusing, httpx.ProxyError) == ["cancelled"]
    seen: list[str] = []

    async def tunnel(request: httpx.Request) -> httpx.Response:
        await write(request, b"CONNECT")
        seen.append("connected")
        await write(request)
        return httpx.Response(200)

    assert told_by(tunnel, sent=lambda: seen.append("sent")).told == ["sent", "answered"]
    assert seen == ["connected", "sent"]


def test_a_trace_that_the_request_had_goes_on_being_called() -> None:
    seen: list[str] = []

    async def theirs(event: str, _: dict[str, Any]) -> None:
        seen.append(event)

    async def call(request: httpx.Request) -> httpx.Response:
        await write(request)
        return httpx.Response(200)

    told_by(call, request=httpx.Request("POST", URL, extensions={"trace": theirs}))
    assert len(seen) == 4


def test_a_real_reservation_ends_when_sending_fails() -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    async def main() -> None:
        limiter = Limiter("1 requests/hour bucket")
        reservation = await limiter.acquire()
        with pytest.raises(httpx.ConnectError):
            await send(refuse, httpx.Request("POST", URL), reservation, NetworkDelays())
        assert reservation.state == "ended"
        assert limiter.explain().limits[0].used == 0

    asyncio.run(main())


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_largest_recent_delay_of_a_host_counts_and_an_old_one_does_not() -> None:
    clock = Clock()
    delays = NetworkDelays(clock)
    assert delays.largest("h") == 0.0
    for at, delay, largest in [(0, 0.3, 0.3), (1, 0.1, 0.3), (2, 0.2, 0.3), (3, 0.05, 0.3)]:
        clock.now = at
        delays.note("h", delay)
        assert delays.largest("h") == largest
    clock.now = RECENT + 0.5
    assert delays.largest("h") == 0.2
    clock.now = RECENT + 2.5
    assert delays.largest("h") == 0.05


def test_the_last_delay_of_a_host_is_never_forgotten() -> None:
    clock = Clock()
    delays = NetworkDelays(clock)
    delays.note("h", 0.3)
    clock.now = 100 * RECENT
    assert delays.largest("h") == 0.3
    delays.note("h", 0.1)
    assert delays.largest("h") == 0.1


def test_a_million_delays_of_a_host_take_no_room() -> None:
    delays = NetworkDelays()
    for number in range(10_000):
        delays.note("h", 0.1 + (number % 7) / 100)
    assert len(delays._seen["h"]) <= 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_kernel_tells_how_long_connecting_took() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        seconds = round_trip(client)
        assert seconds is not None
        assert 0 < seconds < 5


def test_a_stream_that_is_no_tcp_connection_tells_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert round_trip(one) is None
    assert round_trip(None) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert round_trip(datagrams) is None
