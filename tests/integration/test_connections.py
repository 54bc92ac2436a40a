"""Connections over real sockets, and a strict window that is kept through them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from headway import Limiter
from headway.simulate import Behaviour, Latency, SimulatedProvider, SimulatorProcess
from headway.transports import Connections, NetworkDelays, send

BODY = b'{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}'


def serve(
    body: Callable[[SimulatedProvider, Connections], Awaitable[None]],
    latency: float = 0.0,
    keep_alive: float = 60.0,
) -> None:
    """Runs `body` with connections to a provider with these rules."""

    async def run() -> None:
        behaviour = Behaviour(latency=Latency(latency))
        async with (
            SimulatedProvider(behaviour=behaviour) as provider,
            Connections(keep_alive=keep_alive) as connections,
        ):
            await body(provider, connections)

    asyncio.run(run())


async def ask(
    provider: SimulatedProvider, connections: Connections, path: str = "/v1/chat/completions"
) -> int:
    request = httpx.Request("POST", provider.url + path, content=BODY)
    response = await connections.handle_async_request(request)
    await response.aread()
    return response.status_code


def test_one_request_after_another_needs_one_connection() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        for _ in range(10):
            assert await ask(provider, connections) == 200
        assert connections.open == provider.connections == 1

    serve(body)


def test_as_many_connections_are_open_as_there_are_requests_at_once() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        for _ in range(2):
            statuses = await asyncio.gather(*(ask(provider, connections) for _ in range(300)))
            assert statuses == [200] * 300
            assert connections.open == 300

    serve(body, latency=0.5)


def test_a_connection_that_has_been_idle_too_long_is_not_used_again() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        await asyncio.gather(*(ask(provider, connections) for _ in range(5)))
        assert connections.open == 5
        await asyncio.sleep(0.1)
        assert await ask(provider, connections) == 200
        assert connections.open == 1

    serve(body, latency=0.02, keep_alive=0.05)


def test_connections_that_nobody_needs_any_more_are_closed_while_one_is_in_use() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        await asyncio.gather(*(ask(provider, connections) for _ in range(5)))
        assert connections.open == 5
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.3
        while loop.time() < end:
            assert await ask(provider, connections) == 200
        assert connections.open == 1

    serve(body, latency=0.01, keep_alive=0.2)


def test_connections_that_the_server_has_closed_are_not_used_again() -> None:
    async def main() -> None:
        async with Connections() as connections:
            async with SimulatedProvider() as provider:
                assert await ask(provider, connections) == 200
                port = int(provider.url.rsplit(":", 1)[1])
            async with SimulatedProvider(port=port) as provider:
                assert await ask(provider, connections) == 200
                assert connections.open == 1

    asyncio.run(main())


def test_a_server_that_is_not_there_is_httpxs_error() -> None:
    async def main() -> None:
        async with SimulatedProvider() as provider:
            pass
        async with Connections() as connections:
            with pytest.raises(httpx.ConnectError):
                await ask(provider, connections)
            assert connections.open == 0

    asyncio.run(main())


def test_a_connection_that_breaks_in_the_middle_is_httpxs_error() -> None:
    async def main() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Connections() as connections:
            request = httpx.Request("GET", f"http://127.0.0.1:{port}/")
            response = await connections.handle_async_request(request)
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
            await response.aclose()
            assert connections.open == 0

    asyncio.run(main())


def test_a_request_that_is_cancelled_closes_its_connection() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        assert await ask(provider, connections) == 200
        written = asyncio.Event()

        async def trace(event: str, _: dict[str, Any]) -> None:
            if event == "http11.send_request_body.complete":
                written.set()

        url = provider.url + "/v1/chat/completions"
        request = httpx.Request("POST", url, content=BODY, extensions={"trace": trace})
        task = asyncio.ensure_future(connections.handle_async_request(request))
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connections.open == 0

    serve(body, latency=0.05)


def test_closing_twice_and_closing_with_a_response_half_read_is_no_error() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        request = httpx.Request("POST", provider.url + "/v1/chat/completions", content=BODY)
        response = await connections.handle_async_request(request)
        await connections.aclose()
        await connections.aclose()
        await response.aclose()
        assert connections.open == 0

    serve(body)


def test_a_client_of_httpx_can_use_them() -> None:
    async def body(provider: SimulatedProvider, connections: Connections) -> None:
        async with httpx.AsyncClient(transport=connections, base_url=provider.url) as client:
            response = await client.post("/v1/chat/completions", content=BODY)
            assert response.json()["object"] == "chat.completion"
            with pytest.raises(httpx.UnsupportedProtocol):
                await client.get("ftp://h/")

    serve(body)


@pytest.mark.long
@pytest.mark.parametrize("latency", [0.05, 1.0])
def test_a_strict_window_refuses_nothing_over_cold_connections(latency: float) -> None:
    period, amount = 2.0, 200
    limit = f"{amount} requests/{period:g}s window"

    async def everything(url: str) -> list[int]:
        limiter = Limiter(limit)
        delays = NetworkDelays()

        async def one() -> int:
            reservation = await limiter.acquire()
            request = httpx.Request("POST", url, content=BODY)
            call = connections.handle_async_request
            response = await send(call, request, reservation, delays)
            await response.aread()
            reservation.settle()
            return response.status_code

        async with Connections() as connections:
            return await asyncio.gather(*(one() for _ in range(2 * amount + amount // 5)))

    # In a process of its own: on this loop it would count what has been sent only when our whole
    # burst has gone out, which no server does.
    with SimulatorProcess("--limits", limit, "--latency", str(latency)) as provider:
        statuses = asyncio.run(everything(provider.url + "/v1/chat/completions"))
        stats = provider.stats()
    assert stats["refused"] == sum(status != 200 for status in statuses) == 0
    # The third window began on time, not a latency later: within a tenth of a second each.
    assert stats["last"] - stats["first"] < 2 * period + 0.9
