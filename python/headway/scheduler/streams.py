"""A call that gave a stream: its reservation ends when the stream does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, final

from headway._core import Call, Reservation, resources
from headway.protocols import StreamingResponseProtocol
from headway.scheduler.buckets import Bucket
from headway.streaming import RateLimitedAsyncIterator, StreamingReservationContext


@final
class _Ends:
    """Settles the reservation of one stream: all that a stream's context asks of its backend."""

    __slots__ = ("_bucket", "_counts", "_reservation")

    def __init__(self, bucket: Bucket, reservation: Reservation, counts: str | None) -> None:
        self._bucket = bucket
        self._reservation = reservation
        self._counts = counts

    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        """Requests stay spent; of the tokens, what was not used is given back."""
        used = {} if self._counts is None else {self._counts: actual_tokens}
        ended = self._reservation.settle_used(used)
        if ended and self._bucket.remote is not None:
            self._bucket.remote.ended(reserved_tokens, actual_tokens)
        return ended


def wrap_stream(call: Call, result: Any) -> Any:
    """A stream that settles when it ends; None where `result` is no stream.

    An object that can have its iterator replaced is itself given back.
    """
    replaced = isinstance(result, StreamingResponseProtocol)
    if not replaced and not hasattr(type(result), "__aiter__"):
        return None
    reservation = call.detach()
    if reservation is None:
        return None
    reservation.answered()
    place = call.bucket.tokens_place
    reserved = call.amounts[place] if place >= 0 else 0
    # Where only what goes in is counted, what came out says nothing of it.
    counts = resources(call.bucket)[place] if place >= 0 else None
    metadata = call.metadata
    context = StreamingReservationContext(
        reservation_id=str(metadata.request_id),
        bucket_id=call.bucket.name,
        request_id=str(metadata.request_id),
        reserved_tokens=reserved,
        backend=_Ends(call.bucket, reservation, "tokens" if counts == "tokens" else None),
    )
    if not replaced:
        return RateLimitedAsyncIterator(result, context)
    inner: AsyncIterator[Any] = result.get_iterator()
    result.set_iterator(RateLimitedAsyncIterator(inner, context))
    return result
