"""HTTP/1.1 requests out of bytes that arrive in pieces of any size (RFC 9112)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD = 32 * 1024
"""Bytes of a request line and its headers, and of the trailers of a chunked body."""

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a body."""

_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class RequestError(Exception):
    """A request that cannot be understood: the connection ends with this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass
class Request:
    """One request; header names are in lower case, repeated headers joined by a comma."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    keep_alive: bool
    chunks_allowed: bool
    """The client speaks HTTP/1.1, so it understands an answer in chunks."""
    body: bytes = b""


class RequestParser:
    """Takes bytes with `feed`, gives the requests that are complete with `next`.

    `continue_wanted` is true from the moment a head with `Expect: 100-continue` is complete;
    who has sent the interim answer sets it back.
    """

    def __init__(self) -> None:
        self.continue_wanted = False
        self._buffer = bytearray()
        self._searched = 0
        self._head: Request | None = None
        self._length = 0
        self._chunks: _Chunks | None = None

    def feed(self, data: bytes) -> None:
        """Adds what has arrived."""
        self._buffer += data

    @property
    def waiting(self) -> int:
        """Bytes that have arrived and are not part of a request given out."""
        return len(self._buffer)

    def next(self) -> Request | None:
        """The next complete request, or None until more bytes have come."""
        if self._head is None:
            head = self._take_head()
            if head is None:
                return None
            self._head = _parse_head(head)
            self._frame(self._head.headers)
        if self._chunks is not None:
            body = self._chunks.take(self._buffer)
            if body is None:
                return None
        elif len(self._buffer) < self._length:
            return None
        else:
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
        request, self._head, self._chunks = self._head, None, None
        self.continue_wanted = False
        request.body = body
        return request

    def _take_head(self) -> bytes | None:
        # Clients may send empty lines between requests (RFC 9112, 2.2).
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if (len(self._buffer) if end < 0 else end) > MAX_HEAD:
            raise RequestError(431, f"The request's headers are longer than {MAX_HEAD} bytes.")
        # Found early, or a client that ends its lines wrongly would wait for ever.
        if _BARE_LINE_FEED.search(self._buffer, self._searched, end if end >= 0 else MAX_HEAD):
            raise RequestError(400, "A line of the request's head does not end in CR LF.")
        if end < 0:
            self._searched = max(0, len(self._buffer) - 3)
            return None
        self._searched = 0
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    def _frame(self, headers: dict[str, str]) -> None:
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        self._length = 0
        if coding is not None:
            if length is not None:
                raise RequestError(400, "Both Transfer-Encoding and Content-Length are given.")
            if coding.lower() != "chunked":
                raise RequestError(501, f"Transfer-Encoding {coding!r}: only chunked is known.")
            self._chunks = _Chunks()
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise RequestError(400, f"Content-Length {length!r} is not one whole number.")
            self._length = int(length)
            if self._length > MAX_BODY:
                raise RequestError(413, f"The body is longer than {MAX_BODY} bytes: {length}.")
        self.continue_wanted = headers.get("expect", "").lower() == "100-continue"


class _Chunks:
    """The body of one request with `Transfer-Encoding: chunked`."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._left: int | None = None
        self._trailers = False

    def take(self, buffer: bytearray) -> bytes | None:
        """Moves what it can out of `buffer`; the whole body once its end has come."""
        while True:
            if self._left is not None:
                if len(buffer) < self._left + 2:
                    return None
                if buffer[self._left : self._left + 2] != b"\r\n":
                    raise RequestError(400, f"A chunk of {self._left} bytes does not end there.")
                self._body += buffer[: self._left]
                del buffer[: self._left + 2]
                self._left = None
            line = _take_line(buffer)
            if line is None:
                return None
            if self._trailers:
                if not line:
                    return bytes(self._body)
                continue
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise RequestError(400, f"A chunk's size is no hexadecimal number: {line[:40]!r}.")
            count = int(size[1], 16)
            if len(self._body) + count > MAX_BODY:
                raise RequestError(413, f"The body is longer than {MAX_BODY} bytes.")
            if count:
                self._left = count
            else:
                self._trailers = True


def _take_line(buffer: bytearray) -> bytes | None:
    end = buffer.find(b"\r\n", 0, MAX_HEAD)
    if end < 0:
        if len(buffer) >= MAX_HEAD:
            raise RequestError(431, f"A line of a chunked body is longer than {MAX_HEAD} bytes.")
        return None
    line = bytes(buffer[:end])
    del buffer[: end + 2]
    return line


def _parse_head(head: bytes) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is None:
        raise RequestError(400, f"Not a request line: {lines[0][:80]!r}.")
    method, target, major, minor = first.groups()
    if major != "1":
        raise RequestError(505, f"HTTP/{major}.{minor} is not spoken here, only HTTP/1.1.")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise RequestError(400, f"Not a header line: {line[:80]!r}.")
        name = field[1].lower()
        if name in headers:
            same = name == "content-length" and headers[name] == field[2]
            headers[name] = field[2] if same else f"{headers[name]}, {field[2]}"
        else:
            headers[name] = field[2]
    modern = minor != "0"
    if modern and "host" not in headers:
        raise RequestError(400, "An HTTP/1.1 request needs a Host header.")
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection if modern else "keep-alive" in connection
    path, _, query = target.partition("?")
    if not path.startswith("/") and path != "*":
        try:
            path = urlsplit(path).path or "/"
        except ValueError as error:
            raise RequestError(400, f"Not a target: {target[:80]!r} ({error}).") from error
    return Request(method, path, query, headers, keep_alive, modern)
