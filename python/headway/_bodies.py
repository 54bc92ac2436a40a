"""Bodies of HTTP answers that settle a reservation when they end; of httpx and of httpx2.

What was used is read from the bytes as they pass. None of the two packages need be installed.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cache
from time import monotonic
from typing import Any, Generic, TypeVar, final

from headway._tokens import ChunkReader, odd_usage, read_usage

PACKAGES = ("httpx", "httpx2")
_HEAD = 2**14
_TAIL = 2**16
_NAMES = ("usage", "usageMetadata")
_ENDS = frozenset(("message_stop", "response.completed", "response.incomplete", "response.failed"))
_TRIES = 16
_DECODER = json.JSONDecoder()
_TELLING = (b'"usage', b'"message_stop"')
_Reader = TypeVar("_Reader", "UsageReader", ChunkReader)


@final
class UsageReader:
    """Finds what an answer says it used, in its JSON or in its events.

    Only where APIs say it: at the top of an object or an event, or in its `message` or `response`.
    A model writes objects of its own into its answer. Of what is told several times, the last
    counts. 16 KiB of the beginning and at least 64 KiB of the end are kept, and looked at when it
    is over.

    encoding: the answer's `content-encoding`.
    """

    __slots__ = ("_cut", "_decode", "_head", "_room", "_size", "_tail", "odd", "whole")

    def __init__(self, encoding: str = "") -> None:
        self._decode = decoder(encoding)
        self._head: list[bytes] = []
        self._room = _HEAD
        self._tail: deque[bytes] = deque()
        self._size = 0
        self._cut = False  # something was between the two that is gone
        self.whole = False
        """After `read`: whether an event has said that nothing comes behind it."""
        self.odd = 0
        """After `read`: how many amounts cannot be read."""

    def feed(self, chunk: bytes) -> None:
        """Another part of the body, as it came. Never raises for what it holds."""
        if self._decode is not None:
            try:
                chunk = self._decode(chunk)
            except Exception:  # a broken body is its reader's affair; it says nothing here
                self._decode = _nothing
                return
        if not chunk:
            return
        if self._room > 0:
            self._head.append(chunk)
            self._room -= len(chunk)
            return
        self._tail.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._tail[0]) >= _TAIL:
            self._size -= len(self._tail.popleft())
            self._cut = True

    def read(self) -> dict[str, int]:
        """Tokens by resource; empty where nothing is said of them."""
        head, tail = b"".join(self._head), b"".join(self._tail)
        found: dict[str, Any] = {}
        if head[:64].lstrip()[:1] in (b"{", b"["):
            text = head + tail
            self._gather(parsed(text) or _end_of(tail if self._cut else text, "]")[0], found)
        else:
            for line in (head if self._cut else head + tail).splitlines():
                self._read_line(line, found)
            if self._cut:
                lines = tail.splitlines()
                if not lines[0].startswith(b"data:"):
                    # The last event may repeat all that was said before, and say the use behind it.
                    said, inside = _end_of(lines[0], "}")
                    self._gather(said, found)
                    self.whole |= inside
                for line in lines:
                    self._read_line(line, found)
        self.odd = odd_usage(found)
        return read_usage(found)

    def _read_line(self, line: bytes, found: dict[str, Any]) -> None:
        if line.startswith(b"data:"):
            self._read_event(line[5:].strip(), found)

    def _read_event(self, data: bytes, found: dict[str, Any]) -> None:
        if data == b"[DONE]":
            self.whole = True
        elif any(name in data for name in _TELLING):
            event = parsed(data)
            if isinstance(event, dict):
                self.whole |= event.get("type") in _ENDS
                # OpenAI's, behind all choices.
                self.whole |= event.get("choices") == [] and isinstance(event.get("usage"), dict)
            self._gather(event, found)

    def _gather(self, said: object, found: dict[str, Any]) -> None:
        for each in said if isinstance(said, list) else (said,):
            if not isinstance(each, dict):
                continue
            for part in (each, each.get("message"), each.get("response")):
                for name in _NAMES:
                    usage = part.get(name) if isinstance(part, dict) else None
                    if isinstance(usage, dict):
                        found.update((k, v) for k, v in usage.items() if v is not None)


def parsed(text: bytes | str) -> object:
    """What a JSON text says; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _end_of(text: bytes, around: str) -> tuple[object, bool]:
    """What the end of a JSON object says of the use, whose beginning need not be there.

    around: what may close behind it, a list that it is in (Gemini's), or an object, as OpenAI's
    `response` is in one that ends a stream; beside it, whether that does. What a model wrote is
    further inside, or text, in which quotes are escaped.
    """
    for name in _NAMES:
        mark = f'"{name}"'.encode()
        at = len(text)
        for _ in range(_TRIES):
            at = text.rfind(mark, 0, at)
            if at < 0:
                break
            try:
                end = text[at:].decode(errors="replace")
                said, length = _DECODER.raw_decode("{" + end)
            except (ValueError, RecursionError):
                continue
            behind = end[length - 1 :].strip()
            if isinstance(said.get(name), dict) and behind in ("", around):
                return said, behind == around
    return None, False


def _nothing(_: bytes) -> bytes:
    return b""


def decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """What undoes an encoding, part by part; None where there is none.

    Where this interpreter cannot, it gives nothing.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _Inflater(zlib.MAX_WBITS | 16).feed
    if encoding == "deflate":
        return _Inflater(zlib.MAX_WBITS).feed
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


class _Inflater:
    """Several gzip members after one another; deflate with and without zlib's head."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._inner = zlib.decompressobj(bits)
        self._begun = False

    def feed(self, chunk: bytes) -> bytes:
        parts = []
        while chunk:
            try:
                parts.append(self._inner.decompress(chunk))
            except zlib.error:
                if self._begun or self._bits != zlib.MAX_WBITS:
                    raise
                self._inner = zlib.decompressobj(-zlib.MAX_WBITS)
                parts.append(self._inner.decompress(chunk))
            self._begun = True
            chunk = self._inner.unused_data if self._bits > zlib.MAX_WBITS else b""
            if chunk:
                self._inner = zlib.decompressobj(self._bits)
        return b"".join(parts)


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


def reader_of(response: Any) -> UsageReader:
    """What finds the use in the body of such a response."""
    return UsageReader(response.headers.get("content-encoding", ""))


def settle_with_body(
    response: Any,
    settle: Settle,
    reserved: Mapping[str, int],
    reader: UsageReader | None = None,
) -> BodyEnd[UsageReader]:
    """Has `settle` called once, when the body has ended, is closed, fails, or is collected.

    response: is_unread. Where it does not come to its end, what it said bounds its use from below
    only: nothing of what was `reserved` is given back for it. Gives that end, which the body holds.
    reader: of this response; None for a new one.
    """
    end = BodyEnd(settle, reserved, reader or reader_of(response))
    asynchronous, synchronous = _classes(package_of(response) or "httpx")
    inner = response.stream
    kind = asynchronous if hasattr(inner, "__aiter__") else synchronous
    response.stream = kind(inner, end)
    return end


@final
class BodyEnd(Generic[_Reader]):
    """Settles once. Apart from the body, or another stream, whose iterator may outlive it.

    unread_since: the monotonic second since which nobody reads the body; inf while somebody does.
    """

    __slots__ = ("__weakref__", "_reserved", "_settle", "reader", "unread_since")

    def __init__(self, settle: Settle, reserved: Mapping[str, int], reader: _Reader) -> None:
        # Whoever pops it settles: one step, so it needs no lock between threads.
        self._settle = [settle]
        self._reserved = reserved
        self.reader: _Reader = reader
        self.unread_since = monotonic()

    @property
    def is_open(self) -> bool:
        """Whether it has not come yet."""
        return bool(self._settle)

    def leave(self) -> bool:
        """Settles a body that is left open; False: it has been settled."""
        return self.come(whole=False)

    def come(self, whole: bool) -> bool:
        """Settles; False: it has been settled. whole: with what the body has said."""
        try:
            settle = self._settle.pop()
        except IndexError:
            return False
        used = self.reader.read()
        # Whoever reads events stops at the last one, and closes what may still come.
        if not whole and not self.reader.whole:
            used = {name: max(n, self._reserved.get(name, 0)) for name, n in used.items()}
        settle(used)
        return True

    def __del__(self) -> None:
        self.come(whole=False)


@cache
def _classes(package: str) -> tuple[Any, Any]:
    """The two kinds of body; the clients insist on subclasses of their own."""
    module: Any = sys.modules[package]
    asynchronous: Any = module.AsyncByteStream
    synchronous: Any = module.SyncByteStream

    class AsyncBody(asynchronous):  # type: ignore[misc]
        def __init__(self, inner: Any, end: BodyEnd[UsageReader]) -> None:
            self._inner = inner
            self._end = end

        async def __aiter__(self) -> AsyncIterator[bytes]:
            end = self._end
            feed = end.reader.feed
            whole = False
            end.unread_since = math.inf
            try:
                async for chunk in self._inner:
                    feed(chunk)
                    end.unread_since = monotonic()
                    yield chunk
                    end.unread_since = math.inf
                whole = True
            finally:
                end.come(whole)

        async def aclose(self) -> None:
            try:
                await self._inner.aclose()
            finally:
                self._end.come(whole=False)

    class Body(synchronous):  # type: ignore[misc]
        def __init__(self, inner: Any, end: BodyEnd[UsageReader]) -> None:
            self._inner = inner
            self._end = end

        def __iter__(self) -> Iterator[bytes]:
            end = self._end
            feed = end.reader.feed
            whole = False
            end.unread_since = math.inf
            try:
                for chunk in self._inner:
                    feed(chunk)
                    end.unread_since = monotonic()
                    yield chunk
                    end.unread_since = math.inf
                whole = True
            finally:
                end.come(whole)

        def close(self) -> None:
            try:
                self._inner.close()
            finally:
                self._end.come(whole=False)

    return AsyncBody, Body
