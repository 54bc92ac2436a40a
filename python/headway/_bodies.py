"""Bodies of HTTP answers that settle a reservation when they end; of httpx and of httpx2.

What was used is read from the bytes as they pass. None of the two packages need be installed.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache
from typing import Any, final

from headway._tokens import read_usage

PACKAGES = ("httpx", "httpx2")
_HEAD = 2**14
_TAIL = 2**16
_NAMES = (b'"usage"', b'"usageMetadata"')
_json = json.JSONDecoder()


@final
class UsageReader:
    """Finds what an answer says it used, in its JSON or in its events.

    That stands at the end of an answer, and of some streams at the beginning, too: 16 KiB of the
    beginning and at least 64 KiB of the end are kept, and looked at when it is over. Of what is
    told several times, the last counts.

    encoding: the answer's `content-encoding`.
    """

    __slots__ = ("_decoder", "_head", "_room", "_size", "_tail")

    def __init__(self, encoding: str = "") -> None:
        self._decoder = _decoder(encoding.strip().lower())
        self._head: list[bytes] = []
        self._room = _HEAD
        self._tail: deque[bytes] = deque()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Another part of the body, as it came. Never raises for what it holds."""
        if self._decoder is not None:
            try:
                chunk = self._decoder(chunk)
            except Exception:  # a broken body is its reader's affair; it says nothing here
                self._decoder = _nothing
                return
        if self._room > 0:
            self._head.append(chunk)
            self._room -= len(chunk)
            return
        self._tail.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._tail[0]) >= _TAIL:
            self._size -= len(self._tail.popleft())

    def read(self) -> dict[str, int]:
        """Tokens by resource; empty where nothing is said of them."""
        text = b"".join((*self._head, *self._tail))
        found: dict[str, Any] = {}
        for name in _NAMES:
            at = text.find(name)
            while at >= 0:
                usage = _object_behind(text, at + len(name))
                found.update((key, value) for key, value in usage.items() if value is not None)
                at = text.find(name, at + len(name))
        return read_usage(found)


def _object_behind(text: bytes, at: int) -> Mapping[str, Any]:
    """The JSON object that is the value of the name which ends there."""
    rest = text[at : at + 2**13].lstrip()
    if not rest.startswith(b":"):
        return {}
    try:
        value, _ = _json.raw_decode(rest[1:].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _nothing(_: bytes) -> bytes:
    return b""


def _decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """What undoes an encoding, where this interpreter can; else nothing is read."""
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress
    if encoding == "deflate":
        return zlib.decompressobj().decompress
    # The clients ask for these where such a package is there, and only there.
    try:
        if encoding == "br":
            brotli: Any = _first("brotli", "brotlicffi")
            decompressor = brotli.Decompressor()
            return getattr(decompressor, "decompress", None) or decompressor.process  # type: ignore[no-any-return]
        if encoding == "zstd":
            zstandard: Any = _first("zstandard")
            return zstandard.ZstdDecompressor().decompressobj().decompress  # type: ignore[no-any-return]
    except ModuleNotFoundError:
        pass  # below
    return _nothing


def _first(*names: str) -> Any:
    from importlib import import_module

    for name in names[:-1]:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return import_module(names[-1])


def package_of(value: object) -> str | None:
    """Which of the two packages an object's class is of, or is derived from."""
    for kind in type(value).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in PACKAGES:
            return package
    return None


def is_unread(response: object) -> bool:
    """Whether it is a response of theirs whose body is still to come."""
    return (
        package_of(response) is not None
        and getattr(response, "is_closed", None) is False
        and getattr(response, "is_stream_consumed", None) is False
        and getattr(response, "stream", None) is not None
    )


Settle = Callable[[dict[str, int]], object]
"""Ends a reservation with what was used by resource; what is not named stays as reserved."""


def settle_with_body(response: Any, settle: Settle, reserved: Mapping[str, int]) -> None:
    """Has `settle` called once, when the body has ended, is closed, fails, or is collected.

    response: is_unread. Where it does not come to its end, what it said bounds its use from below
    only: nothing of what was `reserved` is given back for it.
    """
    end = _End(settle, reserved, UsageReader(response.headers.get("content-encoding", "")))
    asynchronous, synchronous = _classes(package_of(response) or "httpx")
    inner = response.stream
    kind = asynchronous if hasattr(inner, "__aiter__") else synchronous
    response.stream = kind(inner, end)


@final
class _End:
    """Settles once. Apart from the body, whose iterator may outlive it."""

    __slots__ = ("_reserved", "_settle", "reader")

    def __init__(self, settle: Settle, reserved: Mapping[str, int], reader: UsageReader) -> None:
        # Whoever pops it settles: one step, so it needs no lock between threads.
        self._settle = [settle]
        self._reserved = reserved
        self.reader = reader

    def come(self, whole: bool) -> None:
        try:
            settle = self._settle.pop()
        except IndexError:
            return
        used = self.reader.read()
        if not whole:
            used = {name: max(n, self._reserved.get(name, 0)) for name, n in used.items()}
        settle(used)

    def __del__(self) -> None:
        self.come(whole=False)


@cache
def _classes(package: str) -> tuple[Any, Any]:
    """The two kinds of body; the clients insist on subclasses of their own."""
    module: Any = sys.modules[package]
    asynchronous: Any = module.AsyncByteStream
    synchronous: Any = module.SyncByteStream

    class AsyncBody(asynchronous):  # type: ignore[misc]
        def __init__(self, inner: Any, end: _End) -> None:
            self._inner = inner
            self._end = end

        async def __aiter__(self) -> AsyncIterator[bytes]:
            feed = self._end.reader.feed
            whole = False
            try:
                async for chunk in self._inner:
                    feed(chunk)
                    yield chunk
                whole = True
            finally:
                self._end.come(whole)

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._end.come(whole=False)

    class Body(synchronous):  # type: ignore[misc]
        def __init__(self, inner: Any, end: _End) -> None:
            self._inner = inner
            self._end = end

        def __iter__(self) -> Iterator[bytes]:
            feed = self._end.reader.feed
            whole = False
            try:
                for chunk in self._inner:
                    feed(chunk)
                    yield chunk
                whole = True
            finally:
                self._end.come(whole)

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._end.come(whole=False)

    return AsyncBody, Body
