"""A small HTTP/1.1 server protocol: keep-alive, pipelining, answers whole or in chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import monotonic_ns, time

from headway.simulate.connections import Connections
from headway.simulate.parsing import Request, RequestError, RequestParser

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Site Is Overloaded"}
_LINGER = 1.0
"""Seconds for which what a refused client still sends is read."""

_MOST_WAITING = 256 * 1024
"""Bytes that a client may send ahead of the answer to its first request."""


class Exchange:
    """One request and the one answer to it, given whole or in parts, now or later.

    `arrived` is the instant, in nanoseconds of the monotonic clock, at which the last byte of the
    request was here and no earlier request of its connection was in its way. Set `on_lost` to
    learn that the connection has ended before the answer has; whatever is sent after that goes
    nowhere.
    """

    __slots__ = ("_chunked", "_connection", "arrived", "on_lost", "request")

    def __init__(self, connection: Connection, request: Request, arrived: int) -> None:
        self._connection = connection
        self._chunked = False
        self.request = request
        self.arrived = arrived
        self.on_lost: Callable[[], None] | None = None

    def send(self, status: int, headers: str, body: bytes) -> None:
        """Answers with all of `body`; `headers` are lines that end in CR LF."""
        head = self._head(status, f"{headers}content-length: {len(body)}\r\n")
        self._connection.write(head if self.request.method == "HEAD" else head + body)
        self._connection.finish(self)

    def begin(self, status: int, headers: str) -> None:
        """Answers with a body whose length is not known yet."""
        self._chunked = self.request.chunks_allowed
        if self._chunked:
            headers += "transfer-encoding: chunked\r\n"
        else:
            # Without chunks, only the connection's end can tell where the body ends.
            self.request.keep_alive = False
        self._connection.write(self._head(status, headers))

    def part(self, data: bytes) -> None:
        """One more part, not empty, of the body begun."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        """The body begun is complete."""
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self._connection.finish(self)

    def drop(self) -> None:
        """Closes the connection without an answer."""
        self._connection.drop()

    def _head(self, status: int, headers: str) -> bytes:
        keep = "" if self.request.keep_alive else "connection: close\r\n"
        if self.request.keep_alive and not self.request.chunks_allowed:
            keep = "connection: keep-alive\r\n"
        return (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
            f"date: {_date()}\r\n{headers}{keep}\r\n"
        ).encode("latin-1")


class Connection(asyncio.Protocol):
    """One client. Requests are answered in their order: the next one is looked at only when the
    one before it has its answer. `connections` holds this object for as long as it is open.

    What arrives is only stamped and kept at first; `Connections` says when it is looked at.
    """

    def __init__(self, answer: Callable[[Exchange], None], connections: Connections) -> None:
        self._answer = answer
        self._connections = connections
        self._parser = RequestParser()
        self._exchange: Exchange | None = None
        self._arrived: int | None = None
        self._advancing = False
        self._clogged = False
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._connections.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.on_lost is not None:
            exchange.on_lost()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._parser.feed(data)
        if self._exchange is None and not self._clogged:
            if self._arrived is None:
                self._connections.look_soon(self)
            self._arrived = monotonic_ns()
        elif self._parser.waiting > _MOST_WAITING:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        # A client that has gone looks the same as one that only sends no more, and the first is
        # what happens: so the connection ends here, but what was sent whole still counts.
        self.look()

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False
        self._advance()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def finish(self, exchange: Exchange) -> None:
        """The answer is complete; goes on to the next request, if any."""
        if exchange is not self._exchange:
            return
        self._exchange = None
        if not exchange.request.keep_alive:
            self._closing = True
            self._transport.close()
            return
        self._advance()

    def drop(self) -> None:
        """Ends the connection at once, whatever is still to be sent."""
        self._transport.abort()

    def look(self) -> None:
        """Looks at what has arrived and was stamped, if nobody has yet."""
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            self._advance(arrived)

    def _advance(self, arrived: int | None = None) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._exchange is None and not self._clogged and not self._closing:
                request = self._parser.next()
                if request is None:
                    break
                self._exchange = Exchange(self, request, arrived or monotonic_ns())
                arrived = None
                self._answer(self._exchange)
        except RequestError as error:
            self._refuse(error)
        except BaseException:
            # Not the client's fault, but nobody is left to answer it: the event loop reports it.
            self.drop()
            raise
        finally:
            self._advancing = False
        if self._closing or self._exchange is not None or self._clogged:
            return
        if self._parser.continue_wanted:
            self._parser.continue_wanted = False
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._transport.resume_reading()

    def _refuse(self, error: RequestError) -> None:
        self._closing = True
        fault = {"message": error.reason, "type": "invalid_request_error"}
        body = json.dumps({"error": {**fault, "param": None, "code": None}}).encode()
        self.write(
            (
                f"HTTP/1.1 {error.status} {_REASONS[error.status]}\r\ndate: {_date()}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            ).encode()
            + body
        )
        # Closing with bytes of the request unread would reset the connection, and the answer
        # would be lost: so the rest is read and thrown away for a moment.
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)


def _date() -> str:
    return _date_at(int(time()))


@lru_cache(maxsize=1)
def _date_at(second: int) -> str:
    return formatdate(second, usegmt=True)
