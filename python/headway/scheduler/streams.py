"""A call that gave a stream: its reservation ends when the stream does."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from headway._bodies import BodyEnd, UsageReader, is_unread, reader_of, settle_with_body
from headway._core import Call, Reservation, resources
from headway._tokens import ChunkReader
from headway.scheduler.answers import USED
from headway.scheduler.buckets import Bucket
from headway.streaming import (
    RateLimitedAsyncIterator,
    RateLimitedIterator,
    StreamingReservationContext,
)

if TYPE_CHECKING:
    from headway.scheduler.blocking import BlockingCall
    from headway.scheduler.open_streams import OpenStreams


@final
class _Ends:
    """Settles the reservation of one stream: all that a stream's context asks of its backend.

    reserved: by number of the resource. kept: of what nothing is given back. reader: what has heard
    the stream's chunks.
    """

    __slots__ = ("_bucket", "_kept", "_reader", "_reservation", "_reserved")

    def __init__(
        self,
        bucket: Bucket,
        reservation: Reservation,
        reserved: tuple[int, ...],
        kept: frozenset[str],
        reader: ChunkReader | UsageReader,
    ) -> None:
        self._bucket = bucket
        self._reservation = reservation
        self._reserved = reserved
        self._kept = kept
        self._reader = reader

    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        """Requests stay spent; of the tokens, what was not used is given back."""
        used = self._reader.read()
        if not self._reader.whole:
            used = at_least(used, self.reserved, frozenset(used))
        place = self._bucket.tokens_place
        # Where only what goes in is counted, the sum says nothing of it.
        if place >= 0 and resources(self._bucket)[place] == "tokens":
            used["tokens"] = actual_tokens
        return self.settle(used)

    @property
    def reserved(self) -> dict[str, int]:
        """By resource."""
        return dict(zip(resources(self._bucket), self._reserved, strict=False))

    def settle(self, used: dict[str, int]) -> bool:
        """Ends it with what was used by resource; of what is not named, the estimate."""
        used = billed(used, self._bucket, self._reserved, self._kept)
        ended = self._reservation.settle_used(used)
        if ended:
            self._bucket._settled(self._reserved, used)
            self._bucket._ended()
            self._bucket.note_odd(self._reader.odd)
        return ended

    def __del__(self) -> None:
        # A stream whose loop has gone is released by nobody; the estimate is what it has used.
        self.settle({})


def billed(
    used: Mapping[str, int], bucket: Bucket, amounts: tuple[int, ...], kept: frozenset[str]
) -> dict[str, int]:
    """What was used, as a provider counts it that keeps some of what was reserved."""
    if not kept:
        return dict(used)
    return at_least(used, dict(zip(resources(bucket), amounts, strict=False)), kept)


def at_least(
    used: Mapping[str, int], reserved: Mapping[str, int], kept: frozenset[str]
) -> dict[str, int]:
    """What was used by resource, where of some nothing is given back that was reserved."""
    return {
        name: max(amount, reserved.get(name, 0)) if name in kept else amount
        for name, amount in used.items()
    }


def _is_stream(kind: type) -> bool:
    """Whether objects of that type come in pieces, as far as one can tell.

    Pages of results can be iterated too, which fetches the next ones; but they are whole answers,
    that people keep. In the SDKs of OpenAI and Anthropic they are pydantic models.
    """
    if hasattr(kind, "__anext__"):
        return True
    return hasattr(kind, "__aiter__") and not hasattr(kind, "__pydantic_private__")


def _is_sync_stream(kind: type) -> bool:
    """The same, without awaiting. What has `__iter__` only is a list; a file is read otherwise."""
    return hasattr(kind, "__next__") and not issubclass(kind, io.IOBase)


def wrap_stream(
    call: Call | BlockingCall, result: Any, streams: OpenStreams, kept: frozenset[str]
) -> Any:
    """A stream that settles when it ends; None where `result` is no stream.

    kept: the resources of which nothing is given back.

    An object that can have its iterator replaced is itself given back, and so is a response of
    httpx or httpx2 whose body is still to come. streams: are told of it.
    """
    if is_unread(result):
        return _wrap_response(call, result, streams, kept)
    kind = type(result)
    replaced = hasattr(kind, "get_iterator") and hasattr(kind, "set_iterator")
    inner: Any = result
    if replaced:
        try:
            inner = result.get_iterator()
        except Exception:  # its own affair: whoever asks it again meets the same
            return None
        kind = type(inner)
    # What awaits cannot be followed from a thread: it settles as it is returned.
    if isinstance(call, Call) and _is_stream(kind):
        stream = _wrap(call, inner, streams, kept)
    elif _is_sync_stream(kind):
        stream = _wrap_sync(call, inner, streams, kept)
    else:
        return None
    if stream is None or not replaced:
        return stream
    with contextlib.suppress(Exception):  # it ends with the estimate then
        result.set_iterator(stream)
    return result


def _wrap(call: Call, inner: Any, streams: OpenStreams, kept: frozenset[str]) -> Any:
    reservation = call.detach()
    if reservation is None:
        return None
    reservation.answered()
    bucket = call.bucket
    reader = ChunkReader()
    place = bucket.tokens_place
    metadata = call.metadata
    context = StreamingReservationContext(
        reservation_id=str(metadata.request_id),
        bucket_id=bucket.name,
        request_id=str(metadata.request_id),
        reserved_tokens=call.amounts[place] if place >= 0 else 0,
        backend=_Ends(bucket, reservation, call.amounts, kept, reader),
    )
    context._reader = reader
    stream: RateLimitedAsyncIterator[Any] = RateLimitedAsyncIterator(inner, context)
    streams.watch(stream._settlement, bucket)
    return stream


def _wrap_sync(
    call: Call | BlockingCall, inner: Any, streams: OpenStreams, kept: frozenset[str]
) -> Any:
    reservation = call.detach()
    if reservation is None:
        return None
    reservation.answered()
    reader = ChunkReader()
    ends = _Ends(call.bucket, reservation, call.amounts, kept, reader)
    end = BodyEnd(ends.settle, ends.reserved, reader)
    streams.watch(end, call.bucket)
    return RateLimitedIterator[Any](inner, end)


def _wrap_response(
    call: Call | BlockingCall, response: Any, streams: OpenStreams, kept: frozenset[str]
) -> Any:
    reservation = call.detach()
    if reservation is None:
        return None
    # Its headers are in, so it has been counted.
    reservation.answered()
    reader = reader_of(response)
    ends = _Ends(call.bucket, reservation, call.amounts, kept, reader)
    told = response.extensions.get(USED)

    def settle(used: dict[str, int]) -> None:
        if told is not None:
            told(used)
        ends.settle(used)

    streams.watch(settle_with_body(response, settle, ends.reserved, reader), call.bucket)
    return response
