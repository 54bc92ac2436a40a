"""Requests that are only watched: let through at once, counted, and compared with what would be.

For transports with `observe_only`. What is judged is what would be judged of an attempt, but that
nothing is tried again, and nothing holds anything up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway.errors import ConfigurationError
from headway.scheduler.blocking import BlockingCall

if TYPE_CHECKING:
    from headway._core import Reservation
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler
    from headway.types import RequestMetadata


@final
class WatchedCall:
    """One request that goes out now; see `let_through`."""

    def __init__(self, scheduler: Scheduler, metadata: RequestMetadata) -> None:
        bucket = scheduler._find.known(metadata)
        assert bucket is not None  # check_watching
        self._scheduler = scheduler
        self._bucket: Bucket = bucket
        self._call = BlockingCall(scheduler, metadata)
        self._call.bucket = bucket
        self._began = scheduler._now()
        made = scheduler._let_through(bucket, metadata)
        self.reservation: Reservation
        self.reservation, amounts, self._wait, self._limit = made
        self._call.admitted(self.reservation, amounts)
        scheduler._begins(bucket)
        bucket._began(amounts, False)

    @property
    def would_wait(self) -> bool:
        """Whether it would have been held back."""
        return self._wait != 0

    def answered(self, response: Any) -> Any:
        """Its response, to be handed on; a body that is to come settles it."""
        call = self._call
        refused = self._scheduler._verdicts.watch(call, response, self.would_wait)
        wait = self._waited(refused)
        call.land(answered=True)
        self._end("succeeded", wait, refused)
        return call.result

    def failed(self, error: BaseException) -> None:
        """It has raised."""
        wait = self._waited(refused=False)
        self._call.land()
        self._end("failed" if isinstance(error, Exception) else "cancelled", wait, refused=False)

    def _end(self, outcome: str, wait: float, refused: bool) -> None:
        self._bucket._returned()
        self._bucket._count(outcome)
        self._bucket.watch.add(self.would_wait, wait, refused)

    def _waited(self, refused: bool) -> float:
        """For how long, in seconds, it would have waited, by what is known now."""
        if self._wait is not None:
            return 0.0 if self._wait == float("inf") else self._wait
        # For answers, of which this is one; and behind that for the limit, where there was no room.
        # Whoever was only waiting for a first answer would have gone then.
        waited = (self._scheduler._now() - self._began) / 1e9
        if self._limit < 0 and not refused:
            return waited
        ready_in = _core.snapshot(self._bucket, *self._call.amounts)["ready_in"]
        told = ready_in is not None and ready_in != float("inf")
        return waited + ready_in if told else waited


def check_watching(scheduler: object) -> None:
    """ConfigurationError for a scheduler that would have to ask somebody before a request goes."""
    from headway.scheduler.scheduler import Scheduler

    if not isinstance(scheduler, Scheduler):
        raise ConfigurationError(
            f"observe_only: needs a Scheduler, not a {type(scheduler).__name__}"
        )
    if scheduler.provider is not None or scheduler._remote is not None:
        raise ConfigurationError(
            "observe_only: must not be with a provider or a backend of your own, which would be "
            "asked before a request goes out"
        )
