"""The open streams of one scheduler: one that nobody reads does not keep its place for ever."""

from __future__ import annotations

import asyncio
import logging
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Protocol, final

from headway._log import fields

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")

STREAM_PATIENCE = 300.0
"""As of StateConfig.reservation_ttl."""
_LOOKS = 16
"""All open streams are looked at so many times within that at most: one may end so much later."""


class OpenStream(Protocol):
    """What settles a stream, whose iterator or body holds it."""

    unread_since: float
    """The monotonic second since which nobody reads it; inf while somebody does."""

    @property
    def is_open(self) -> bool:
        """Whether it has not been settled."""

    def leave(self) -> bool:
        """Settles it as one that ends early, on a running loop; False: it has been settled."""


@final
class OpenStreams:
    """Settles those that were not read for `patience` seconds. They can still be read afterwards.

    One chore does so for all of them, from the first one on: a stream costs a weak reference, and
    reading it a look at the clock. One that somebody is reading is never late, however long the
    provider lets him wait: there, it counts.
    """

    def __init__(self, scheduler: Scheduler, patience: float) -> None:
        self.patience = patience
        self.watched = False
        """Whether there has been any."""
        self._scheduler = scheduler
        self._buckets: dict[weakref.ref[OpenStream], str] = {}  # their names
        self._turn = object()
        self._told = False

    def watch(self, stream: OpenStream, bucket: Bucket) -> None:
        """It is open from now on. From any thread."""
        self._buckets[weakref.ref(stream, self._forget)] = bucket.name
        chores = self._scheduler._chores
        if not chores.loop_runs:
            self._scheduler._life.adopt_chores()
        if not self.watched:
            self.watched = True
            chores.start(self.run)

    def any_open(self) -> bool:
        """Whether one has not been settled."""
        return any(stream.is_open for stream, _ in self._all())

    async def run(self) -> None:
        """Until it is cancelled, or somebody else has come in its place."""
        turn = self._turn = object()
        try:
            while self._turn is turn:
                wait = self._look(monotonic())
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            self._scheduler._life.leave_loop()
            raise

    def _forget(self, reference: weakref.ref[OpenStream]) -> None:
        self._buckets.pop(reference, None)

    def _all(self) -> list[tuple[OpenStream, str]]:
        # By keys: pairs are allocated one by one, which may collect garbage, and some of these.
        found = ((reference(), self._buckets.get(reference)) for reference in list(self._buckets))
        return [(stream, name) for stream, name in found if stream is not None and name is not None]

    def _look(self, now: float) -> float:
        """Settles what is due; in how many seconds something may be again."""
        wait = self.patience
        for stream, name in self._all():
            if not stream.is_open:
                continue
            # One that is being read is not due before it has been left alone for as long.
            left = stream.unread_since + self.patience - now
            if left > 0:
                wait = min(wait, left)
            elif stream.leave():
                self._scheduler._events["idle_streams"] += 1
                self._tell(name)
        return max(wait, self.patience / _LOOKS)

    def _tell(self, name: str) -> None:
        if self._told:
            return
        self._told = True
        _logger.warning(
            "bucket %r: a stream that nobody has read for %g s was settled, its place given back; "
            "more such are only counted",
            name,
            self.patience,
            extra=fields("idle_stream_settled", bucket=name),
        )
