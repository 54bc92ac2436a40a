"""Connections: an httpx transport whose cost a request does not grow with its connections."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NoReturn, final

import httpcore
import httpx

KEEP_ALIVE = 300.0
"""Seconds for which an idle connection is kept: a window of a minute must find them again."""

_Origin = tuple[bytes, bytes, int | None]


@final
class Connections(httpx.AsyncBaseTransport):
    """HTTP/1.1 connections, as many at once as there are requests, most recently used first.

    httpx's own pool looks at every connection twice a request, and counts all of them once for
    each idle one: 40 ms of CPU a request at 600 connections, where 600 requests a minute at once
    need them. Here a request takes the top of a stack: 1 ms, however many there are.

    For the tasks of one event loop. No proxies: `httpx.AsyncHTTPTransport` has them.

    keep_alive: seconds for which an idle connection is kept.
    """

    def __init__(
        self, verify: ssl.SSLContext | None = None, keep_alive: float = KEEP_ALIVE
    ) -> None:
        self._ssl = verify
        self._keep_alive = keep_alive
        self._idle: dict[_Origin, deque[httpcore.AsyncHTTPConnection]] = {}
        self._open: set[httpcore.AsyncHTTPConnection] = set()

    @property
    def open(self) -> int:
        """How many connections there are, idle ones too."""
        return len(self._open)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request on an idle connection or a new one; gives the response's head."""
        url = request.url
        origin = (url.raw_scheme, url.raw_host, url.port)
        connection = await self._take(origin)
        try:
            response = await connection.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=url.raw_scheme,
                        host=url.raw_host,
                        port=url.port,
                        target=url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException as error:
            await self._leave(origin, connection)
            if isinstance(error, Exception):
                _raise_as_httpx(error)
            raise
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(self, origin, connection, response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Closes every connection, whether or not it is in use."""
        open_ones, self._open = self._open, set()
        self._idle.clear()
        async with AsyncExitStack() as stack:
            for connection in open_ones:
                stack.push_async_callback(connection.aclose)

    async def _take(self, origin: _Origin) -> httpcore.AsyncHTTPConnection:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await self._close(connection)
        if self._ssl is None and origin[0] == b"https":
            self._ssl = httpx.create_ssl_context()
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(*_with_port(origin)),
            ssl_context=self._ssl,
            keepalive_expiry=self._keep_alive,
        )
        self._open.add(connection)
        return connection

    async def _leave(self, origin: _Origin, connection: httpcore.AsyncHTTPConnection) -> None:
        """`connection` has done its request: keeps it if it can do another."""
        if connection not in self._open:  # aclose() was faster
            return
        if not connection.is_idle() or connection.is_closed():
            await self._close(connection)
            return
        idle = self._idle.setdefault(origin, deque())
        idle.append(connection)
        # What a burst needed and nobody has used since lies at the bottom; it expires there.
        while idle and idle[0].has_expired():
            await self._close(idle.popleft())

    async def _close(self, connection: httpcore.AsyncHTTPConnection) -> None:
        self._open.discard(connection)
        await connection.aclose()

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.aclose()


@final
class _Body(httpx.AsyncByteStream):
    """The body of a response; its end gives the connection back."""

    def __init__(
        self,
        connections: Connections,
        origin: _Origin,
        connection: httpcore.AsyncHTTPConnection,
        response: httpcore.Response,
    ) -> None:
        self._connections = connections
        self._origin = origin
        self._connection: httpcore.AsyncHTTPConnection | None = connection
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.aiter_stream():
                yield part
        except Exception as error:
            _raise_as_httpx(error)

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await self._response.aclose()
        finally:
            await self._connections._leave(self._origin, connection)


def _with_port(origin: _Origin) -> tuple[bytes, bytes, int]:
    scheme, host, port = origin
    if port is None:
        try:
            port = {b"http": 80, b"https": 443}[scheme]
        except KeyError:
            raise httpx.UnsupportedProtocol(
                f"scheme {scheme.decode()!r}: must be 'http' or 'https'"
            ) from None
    return scheme, host, port


def _raise_as_httpx(error: Exception) -> NoReturn:
    """Raises httpx's exception for httpcore's, which has the same name; others as they are."""
    if not type(error).__module__.startswith("httpcore"):
        raise error
    raise getattr(httpx, type(error).__name__, httpx.TransportError)(str(error)) from error
