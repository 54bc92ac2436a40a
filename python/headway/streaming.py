"""Streams whose reservation is settled when they end, however they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from time import monotonic
from types import FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from headway._log import fields
from headway._tokens import ChunkReader

if TYPE_CHECKING:
    from headway._bodies import BodyEnd

__all__ = ["RateLimitedAsyncIterator", "RateLimitedIterator", "StreamingReservationContext"]

_logger = logging.getLogger("headway")
_Chunk = TypeVar("_Chunk")

_MOST_TOKENS = 2**53
# Methods of the SDKs' helpers that read their stream to its end.
_READ_TO_THE_END = frozenset(
    (
        *("until_done", "get_final_message", "get_final_text"),
        *("get_final_completion", "get_final_response"),
    )
)
# What Python looks for in an object's class: what has it may be asked for it.
_PROTOCOLS = (
    *("__aiter__", "__anext__", "__aenter__", "__await__"),
    *("__iter__", "__next__", "__enter__", "__len__", "__getitem__"),
)
_running_loop = asyncio.get_running_loop
_READ = math.inf
# A loop holds its tasks weakly; a release that nobody awaits must not be collected half-way.
_releasing: set[asyncio.Task[None]] = set()


class _Releases(Protocol):
    """All that a stream asks of a backend."""

    def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int, /
    ) -> Awaitable[object]: ...


@dataclass
class StreamingReservationContext:
    """The reservation of one stream, and what its chunks have said so far.

    backend: anything with an async `release_streaming_reservation(bucket_id, reservation_id,
    reserved_tokens, actual_tokens)`, which is called once. Times are monotonic seconds.
    metrics_callback(reserved, actual, extraction_succeeded, bucket_id, duration) is called when the
    stream has ended or was closed, error_metrics_callback(bucket_id) when it has failed.
    """

    reservation_id: str
    bucket_id: str
    request_id: str
    reserved_tokens: int
    backend: _Releases
    created_at: float = field(default_factory=monotonic)
    final_tokens: int | None = field(default=None, repr=False)
    chunk_count: int = field(default=0, repr=False)
    last_chunk_at: float | None = field(default=None, repr=False)
    metrics_callback: Callable[[int, int, bool, str, float | None], object] | None = field(
        default=None, repr=False
    )
    error_metrics_callback: Callable[[str], object] | None = field(default=None, repr=False)
    _reader: ChunkReader = field(default_factory=ChunkReader, init=False, repr=False, compare=False)

    def record_chunk(self) -> None:
        """Another chunk has come."""
        self.chunk_count += 1
        self.last_chunk_at = monotonic()

    def set_final_tokens(self, tokens: object) -> None:
        """What the provider says was used in all; the last one counts, and no number is ignored."""
        counted = _whole(tokens)
        if counted is not None:
            self.final_tokens = counted

    def read_chunk(self, chunk: object) -> None:
        """Another chunk has come, and may say what was used."""
        self.record_chunk()
        if self._reader.hear(chunk):
            self._note_use()

    def _note_use(self) -> None:
        total = _whole(self._reader.total)
        if total is None:
            total = self.used.get("tokens")
        if total is not None:
            self.final_tokens = total

    @property
    def used(self) -> dict[str, int]:
        """What the chunks have said: tokens, input_tokens, output_tokens and cached_tokens.

        The latter were read from a cache. With Anthropic they are no part of the others.
        """
        return self._reader.read()

    @property
    def actual_tokens_for_release(self) -> int:
        """What was used as far as is known: without a word of it, the estimate."""
        return self.reserved_tokens if self.final_tokens is None else self.final_tokens

    @property
    def duration_seconds(self) -> float | None:
        """Seconds since the reservation was made; None before the first chunk."""
        return monotonic() - self.created_at if self.chunk_count else None


class _End(Enum):
    EXHAUSTED = auto()
    CLOSED = auto()
    FAILED = auto()


class _Settlement:
    """Releases a stream's reservation once. Apart from the iterator, so as to outlive it.

    unread_since: the monotonic second since which nobody reads the stream; inf while somebody does.
    """

    __slots__ = ("__weakref__", "_owed", "loop", "unread_since")

    def __init__(self, context: StreamingReservationContext) -> None:
        # Whoever pops it releases: one step, so it needs no lock between threads.
        self._owed = [context]
        self.unread_since = monotonic()
        self.loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):  # made outside of any loop
            self.loop = asyncio.get_running_loop()

    async def make(self, end: _End) -> None:
        """Releases now. A cancellation of the caller ends its wait, but not the release."""
        try:
            context = self._owed.pop()
        except IndexError:
            return
        await asyncio.shield(_begin(_release(context, end)))

    @property
    def is_open(self) -> bool:
        """Whether nobody has released it yet."""
        return bool(self._owed)

    def leave(self) -> bool:
        """Begins the release of one that is left open, on the running loop; False: it has been."""
        try:
            context = self._owed.pop()
        except IndexError:
            return False
        _begin(_release(context, _End.CLOSED))
        return True

    def make_later(self, end: _End) -> None:
        """Releases on the loop where the stream was last used, if it still can; never waits."""
        try:
            context = self._owed.pop()
        except IndexError:
            return
        loop = self.loop
        if loop is None or loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # closed since
            loop.call_soon_threadsafe(_begin_again, context, end, 2)


def _begin(release: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(release)
    _releasing.add(task)
    task.add_done_callback(_releasing.discard)
    return task


def _begin_again(context: StreamingReservationContext, end: _End, attempts: int) -> None:
    """Begins the release as a task, and once more if the task is cancelled before its first step.

    That is what `asyncio.run` does to a stream that was dropped as its main function returned.
    """
    begun = False

    async def release() -> None:
        nonlocal begun
        begun = True
        await _release(context, end)

    def done(_: asyncio.Task[None]) -> None:
        if not begun and attempts > 1:
            _begin_again(context, end, attempts - 1)

    _begin(release()).add_done_callback(done)


async def _release(context: StreamingReservationContext, end: _End) -> None:
    reserved, actual = context.reserved_tokens, context.actual_tokens_for_release
    context._reader.whole = end is _End.EXHAUSTED
    if not context._reader.whole:
        # What was said half-way bounds the use from below only: nothing is given back for it.
        actual = max(reserved, actual)
    try:
        await context.backend.release_streaming_reservation(
            context.bucket_id, context.reservation_id, reserved, actual
        )
    except Exception as error:
        # Only its type: a backend's message may hold a URL with a password.
        _logger.warning(
            "bucket %r: the reservation of stream %r could not be released: %s",
            context.bucket_id,
            context.request_id,
            type(error).__name__,
            extra=fields(
                "stream_not_released", bucket=context.bucket_id, error=type(error).__name__
            ),
        )
    try:
        if end is _End.FAILED:
            if context.error_metrics_callback is not None:
                context.error_metrics_callback(context.bucket_id)
        elif context.metrics_callback is not None:
            context.metrics_callback(
                reserved,
                actual,
                context.final_tokens is not None,
                context.bucket_id,
                context.duration_seconds,
            )
    except Exception as error:
        _logger.warning(
            "a metrics callback of a stream has failed",
            exc_info=True,
            extra=fields(
                "stream_callback_raised", bucket=context.bucket_id, error=type(error).__name__
            ),
        )


class RateLimitedAsyncIterator(AsyncIterator[_Chunk], Generic[_Chunk]):
    """Passes a stream through, reads the use from its chunks and releases its reservation once.

    inner: an async iterator, or anything with `__aiter__`; its other attributes are reached through
    this object, and `isinstance` takes it for an object of that class, too. The reservation is
    released when the stream ends (with what the provider said was used), and with no refund when it
    fails, is closed, cancelled or collected.

        async with stream:  # or just `async for`; then `await stream.aclose()` if left early
            async for chunk in stream:
                ...

    `close()` is there where `inner` has it, and to be awaited if that one is. For one task at a
    time, as async iterators are; releasing is safe from anywhere.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_context",
        "_entered",
        "_inner",
        "_settlement",
        "_source",
    )

    def __init__(self, inner: Any, context: StreamingReservationContext) -> None:
        self._settlement = _Settlement(context)
        self._context = context
        self._closed = False
        self._inner = inner
        self._source: Any = None
        self._entered: Any = None

    @property
    def context(self) -> StreamingReservationContext:
        """The reservation, and what the chunks have said so far."""
        return self._context

    def __aiter__(self) -> RateLimitedAsyncIterator[_Chunk]:
        return self

    async def __anext__(self) -> _Chunk:
        settlement = self._settlement
        if self._closed:
            raise StopAsyncIteration
        # One that was released after a cancellation, or was left open too long, may still have
        # something to give.
        settlement.unread_since = _READ
        try:
            settlement.loop = _running_loop()
            if self._source is None:
                self._source = _iterator_of(self._inner)
            chunk: _Chunk = await self._source.__anext__()
        except StopAsyncIteration:
            await settlement.make(_End.EXHAUSTED)
            raise
        except asyncio.CancelledError:
            await settlement.make(_End.CLOSED)
            raise
        except GeneratorExit:
            # Whoever closes a coroutine lets it await nothing more.
            settlement.make_later(_End.CLOSED)
            raise
        except BaseException:
            await settlement.make(_End.FAILED)
            raise
        # As read_chunk, but that this is all that a chunk costs, and one look at the clock will do.
        context = self._context
        settlement.unread_since = context.last_chunk_at = monotonic()
        context.chunk_count += 1
        if context._reader.hear(chunk):
            context._note_use()
        return chunk

    def _driving(self, name: str) -> Callable[..., Any]:
        """A generator's `asend` or `athrow`, by which it can be read, too."""
        method = getattr(self._inner, name)

        async def drive(*arguments: Any) -> Any:
            settlement = self._settlement
            settlement.unread_since = _READ
            try:
                settlement.loop = asyncio.get_running_loop()
                chunk = await method(*arguments)
            except GeneratorExit:  # as in __anext__
                settlement.make_later(_End.CLOSED)
                raise
            except BaseException as error:
                await settlement.make(_end_by(error))
                raise
            settlement.unread_since = monotonic()
            self._context.read_chunk(chunk)
            return chunk

        return drive

    async def aclose(self) -> None:
        """Closes the stream and releases; does nothing the second time.

        Raises what closing the wrapped stream raises, after the release.
        """
        if self._closed:
            return
        self._closed = True
        try:
            # What `inner` has made is closed first: it may be in the middle of using it.
            if self._source is not self._inner:
                await _close(self._source)
            await _close(self._inner)
        finally:
            await self._settlement.make(_End.CLOSED)

    @property
    def close(self) -> Callable[..., Any]:
        """The stream's own `close`, and releases; there is none where it has none."""
        close = self._inner.close

        def closing(*arguments: Any, **options: Any) -> Any:
            settlement = self._settlement
            try:
                result = close(*arguments, **options)
            except BaseException:
                settlement.make_later(_End.CLOSED)
                raise
            self._closed = True
            if hasattr(result, "__await__"):
                return self._close_with(result)
            settlement.make_later(_End.CLOSED)
            return result

        return closing

    async def _close_with(self, closing: Awaitable[Any]) -> Any:
        try:
            if self._source is not self._inner:
                await _close(self._source)
            return await closing
        finally:
            await self._settlement.make(_End.CLOSED)

    async def __aenter__(self) -> RateLimitedAsyncIterator[_Chunk]:
        enter = getattr(type(self._inner), "__aenter__", None)
        if enter is None:
            return self
        try:
            entered = await enter(self._inner)
        except BaseException:
            await self._settlement.make(_End.FAILED)
            raise
        self._entered = self._inner
        # The one entered may be a maker of streams, as SDKs have them.
        if entered is not None:
            self._inner = entered
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        entered, self._entered = self._entered, None
        if entered is None:
            await self.aclose()
            return None
        self._closed = True
        try:
            if self._source is not self._inner:
                await _close(self._source)
            left: bool | None = await type(entered).__aexit__(entered, kind, error, trace)
            return left
        finally:
            await self._settlement.make(_End.CLOSED)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _shown(self._inner, RateLimitedAsyncIterator)

    def __getattr__(self, name: str) -> Any:
        # Only for what this object has not.
        if name.startswith("__") or name in RateLimitedAsyncIterator.__slots__:
            raise _lacking(self, name)
        if name in ("asend", "athrow"):
            return self._driving(name)
        return _reach(self, self._inner, name)

    def __del__(self) -> None:
        try:
            settlement = self._settlement
        except AttributeError:  # was never made
            return
        settlement.make_later(_End.CLOSED)


class RateLimitedIterator(Iterator[_Chunk], Generic[_Chunk]):
    """As RateLimitedAsyncIterator, of an iterator that is not asynchronous. A scheduler makes it.

    end: settles, once, by what its reader has heard. `close()` does nothing the second time.
    """

    __slots__ = ("__weakref__", "_closed", "_end", "_entered", "_inner")

    def __init__(self, inner: Any, end: BodyEnd[ChunkReader]) -> None:
        self._end = end
        self._closed = False
        self._inner = inner
        self._entered: Any = None

    def __iter__(self) -> RateLimitedIterator[_Chunk]:
        return self

    def __next__(self) -> _Chunk:
        end = self._end
        if self._closed:
            raise StopIteration
        end.unread_since = _READ
        try:
            chunk: _Chunk = next(self._inner)
        except StopIteration:
            end.come(whole=True)
            raise
        except BaseException:
            end.come(whole=False)
            raise
        end.unread_since = monotonic()
        end.reader.hear(chunk)
        return chunk

    def _driving(self, name: str) -> Callable[..., Any]:
        """A generator's `send` or `throw`, by which it can be read, too."""
        method = getattr(self._inner, name)

        def drive(*arguments: Any) -> Any:
            end = self._end
            end.unread_since = _READ
            try:
                chunk = method(*arguments)
            except BaseException as error:
                end.come(whole=isinstance(error, StopIteration))
                raise
            end.unread_since = monotonic()
            end.reader.hear(chunk)
            return chunk

        return drive

    def close(self) -> None:
        """Closes the stream, where that can be closed, and settles."""
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._inner, "close", None)
            if callable(close):
                close()
        finally:
            self._end.come(whole=False)

    def __enter__(self) -> RateLimitedIterator[_Chunk]:
        enter = getattr(type(self._inner), "__enter__", None)
        if enter is None:
            return self
        try:
            entered = enter(self._inner)
        except BaseException:
            self._end.come(whole=False)
            raise
        self._entered = self._inner
        if entered is not None:
            self._inner = entered
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        entered, self._entered = self._entered, None
        if entered is None:
            self.close()
            return None
        self._closed = True
        try:
            left: bool | None = type(entered).__exit__(entered, kind, error, trace)
            return left
        finally:
            self._end.come(whole=False)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return _shown(self._inner, RateLimitedIterator)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in RateLimitedIterator.__slots__:
            raise _lacking(self, name)
        if name in ("send", "throw"):
            return self._driving(name)
        return _reach(self, self._inner, name)


def _end_by(error: BaseException) -> _End:
    """How a stream ends that raises this."""
    if isinstance(error, StopAsyncIteration):
        return _End.EXHAUSTED
    return _End.CLOSED if isinstance(error, asyncio.CancelledError) else _End.FAILED


def _shown(inner: Any, own: type) -> type:
    """The class that `isinstance` sees: that of `inner`, but where it promises what `own` lacks."""
    kind = type(inner)
    lacks = any(hasattr(kind, name) and not hasattr(own, name) for name in _PROTOCOLS)
    return own if lacks else kind


def _lacking(stream: object, name: str) -> AttributeError:
    """Protocols are not passed on: copies of a stream, or its pickles, would settle twice."""
    return AttributeError(f"{type(stream).__name__!r} object has no attribute {name!r}")


def _reach(stream: Any, inner: Any, name: str) -> Any:
    """An attribute of the wrapped stream; what reads all of that reads `stream` instead."""
    kind = type(inner)
    if name == "text_stream":  # Anthropic's, made with the wrapped one
        texts = getattr(kind, "__stream_text__", None)
        if isinstance(texts, FunctionType):
            return texts(stream)
    elif name in _READ_TO_THE_END:
        method = getattr(kind, name, None)
        if isinstance(method, FunctionType):
            return MethodType(method, stream)
    return getattr(inner, name)


def _iterator_of(inner: Any) -> Any:
    return inner if hasattr(type(inner), "__anext__") else aiter(inner)


async def _close(stream: Any) -> None:
    close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
    if callable(close):
        result = close()
        if hasattr(result, "__await__"):
            await result


def _whole(tokens: object) -> int | None:
    """A count of tokens, if it is one: whole, not negative and within reason."""
    # Text is bounded first: to read a million digits takes long.
    if isinstance(tokens, str):
        counted = int(tokens) if len(tokens) < 20 and tokens.isascii() and tokens.isdigit() else -1
    elif isinstance(tokens, float):
        counted = int(tokens) if tokens.is_integer() else -1
    elif isinstance(tokens, int) and not isinstance(tokens, bool):
        counted = int(tokens)
    else:
        return None
    return counted if 0 <= counted <= _MOST_TOKENS else None
