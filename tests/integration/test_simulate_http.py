"""The simulator's HTTP over raw sockets: what clients do that no well-behaved library would."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from headway.simulate import Behaviour, Latency, SimulatedProvider

BODY = json.dumps({"max_tokens": 4, "prompt": "Once upon a time"}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class Peer:
    """One raw connection."""

    def __init__(
        self,
        provider: SimulatedProvider,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.provider = provider
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def ended(self) -> bool:
        """Waits for the server to close; nothing may come before that."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


def talk(
    body: Callable[[Peer], Coroutine[Any, Any, None]], behaviour: Behaviour | None = None
) -> None:
    async def run() -> None:
        async with SimulatedProvider([], behaviour) as provider:
            host, port = provider.url.removeprefix("http://").split(":")
            peer = Peer(provider, *await asyncio.open_connection(host, int(port)))
            try:
                await asyncio.wait_for(body(peer), 30)
            finally:
                peer.writer.close()

    asyncio.run(run())


def test_a_connection_is_kept_for_many_requests() -> None:
    async def test(peer: Peer) -> None:
        for _ in range(50):
            peer.send(WHOLE)
            status, headers, body = await peer.answer()
            assert status == 200
            assert "connection" not in headers
            assert json.loads(body)["object"] == "text_completion"

    talk(test)


@pytest.mark.parametrize(("latency", "count"), [(0.0, 3000), (0.01, 30)])
def test_pipelined_requests_are_answered_in_their_order(latency: float, count: int) -> None:
    async def test(peer: Peer) -> None:
        order = [f"model-{number}" for number in range(count)]
        for model in order:
            body = json.dumps({"model": model, "max_tokens": 1}).encode()
            peer.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert [json.loads((await peer.answer())[2])["model"] for _ in order] == order

    # Jitter as large as latency would change the order if anything could.
    talk(test, Behaviour(latency=Latency(latency, jitter=latency)))


def test_the_counting_instant_is_between_sending_and_answer() -> None:
    async def test(peer: Peer) -> None:
        trips: list[tuple[float, float]] = []
        for _ in range(100):
            before = time.monotonic()
            peer.send(WHOLE)
            await peer.answer()
            trips.append((before, time.monotonic()))
        decisions = peer.provider.stats(decisions=True)["decisions"]
        for (before, after), (instant, *_rest) in zip(trips, decisions, strict=True):
            assert before <= instant <= after
        # So the best of them bounds how wrong a stamp can be.
        assert min(after - before for before, after in trips) < 0.002

    talk(test, Behaviour(decisions=True))


def test_a_request_may_come_byte_by_byte() -> None:
    async def test(peer: Peer) -> None:
        for byte in WHOLE:
            peer.send(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)
        assert (await peer.answer())[0] == 200

    talk(test)


def test_a_body_may_come_in_chunks() -> None:
    async def test(peer: Peer) -> None:
        peer.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(BODY), 7):
            part = BODY[at : at + 7]
            peer.send(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(0.001)
        peer.send(b"0\r\n\r\n" + WHOLE)
        assert (await peer.answer())[0] == 200
        assert (await peer.answer())[0] == 200

    talk(test)


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async def test(peer: Peer) -> None:
        peer.send(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await peer.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(BODY)
        assert (await peer.answer())[0] == 200

    talk(test)


def test_connection_close_is_obeyed() -> None:
    async def test(peer: Peer) -> None:
        peer.send(WHOLE.replace(b"Host: h", b"Host: h\r\nConnection: close"))
        status, headers, _ = await peer.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await peer.ended()

    talk(test)


@pytest.mark.parametrize("keep", [False, True])
def test_an_http_1_0_client_keeps_its_connection_only_if_it_asks(keep: bool) -> None:
    async def test(peer: Peer) -> None:
        request = WHOLE.replace(b"HTTP/1.1\r\nHost: h", b"HTTP/1.0")
        if keep:
            request = request.replace(b"HTTP/1.0", b"HTTP/1.0\r\nConnection: keep-alive")
        peer.send(request)
        status, headers, _ = await peer.answer()
        assert status == 200
        assert headers["connection"] == ("keep-alive" if keep else "close")
        if keep:
            peer.send(request)
            assert (await peer.answer())[0] == 200
        else:
            assert await peer.ended()

    talk(test)


def test_a_stream_to_an_http_1_0_client_ends_with_its_connection() -> None:
    async def test(peer: Peer) -> None:
        body = b'{"stream": true, "max_tokens": 3}'
        peer.send(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = await peer.reader.read()
        assert b"transfer-encoding" not in answer
        assert answer.endswith(b"data: [DONE]\n\n")

    talk(test)


def test_clients_that_go_at_once_have_been_counted_and_hold_nothing() -> None:
    async def test(peer: Peer) -> None:
        host, port = peer.provider.url.removeprefix("http://").split(":")
        peers = [peer]
        for _ in range(99):
            peers.append(Peer(peer.provider, *await asyncio.open_connection(host, int(port))))
        # So many at once that some have gone before the server has looked at what they sent.
        for each in peers:
            each.send(WHOLE)
            each.writer.write_eof()
        assert all([await each.ended() for each in peers])
        stats = peer.provider.stats()
        assert (stats["admitted"], stats["in_flight"]) == (100, 0)
        for each in peers:
            each.writer.close()

    talk(test, Behaviour(latency=Latency(60.0)))


def test_half_a_request_and_an_end_is_no_request() -> None:
    async def test(peer: Peer) -> None:
        peer.send(WHOLE[:-1])
        peer.writer.write_eof()
        assert await peer.ended()

    talk(test)


def test_nonsense_gets_a_400_that_says_why_and_then_the_end() -> None:
    async def test(peer: Peer) -> None:
        # More than the server will ever read, so that closing at once would lose the answer.
        peer.send(b"NONSENSE\r\n\r\n" + b"x" * 20_000_000)
        await peer.writer.drain()
        status, headers, body = await peer.answer()
        assert (status, headers["connection"]) == (400, "close")
        error = json.loads(body)["error"]
        assert error["message"] == "Not a request line: 'NONSENSE'."
        assert error["type"] == "invalid_request_error"
        assert await peer.ended()

    talk(test)


def test_an_answer_to_what_came_before_nonsense_is_not_lost() -> None:
    async def test(peer: Peer) -> None:
        peer.send(WHOLE + b"NONSENSE\r\n\r\n")
        assert (await peer.answer())[0] == 200
        assert (await peer.answer())[0] == 400
        assert await peer.ended()

    talk(test, Behaviour(latency=Latency(0.02)))


def test_a_client_that_sends_and_never_reads_is_held_back() -> None:
    async def test(peer: Peer) -> None:
        body = {"input": "x", "dimensions": 1536, "user": "u" * 20_000}
        data = json.dumps(body).encode()
        request = b"POST /v1/embeddings HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(
            data
        )
        # Far more, in both directions, than sockets buffer.
        peer.send((request + data) * 1500)
        before = -1
        for _ in range(50):
            await asyncio.sleep(0.25)
            if before == (before := peer.provider.stats()["admitted"]):
                break
        assert 0 < before < 1500, "the server answers although nobody reads"
        held = peer.writer.transport.get_write_buffer_size()
        assert held > 0, "the server has read everything although nobody reads its answers"
        for _ in range(300):
            status, _headers, answer = await peer.answer()
            assert (status, json.loads(answer)["object"]) == (200, "list")
        assert peer.writer.transport.get_write_buffer_size() < held

    talk(test)
