"""Requests from threads: the same way as `submit_request`, with the function called right there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, final

from headway._core import Reservation, WithReservation
from headway.errors import SchedulerStoppedError
from headway.scheduler.buckets import Bucket

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_T = TypeVar("_T")


@final
class BlockingCall:
    """One request of a thread, as what judges attempts sees it: see `_core.Call`."""

    def __init__(self, metadata: Any, bucket: Bucket) -> None:
        self.metadata = metadata
        self.bucket = bucket
        self.attempt = 0
        self.result: Any = None
        self.over = False
        self._reservation: Reservation | None = None

    def admitted(self, reservation: Reservation) -> None:
        """The next attempt may begin."""
        self._reservation = reservation
        self.attempt += 1

    def make(self, function: Callable[[], Any] | WithReservation) -> Any:
        """Calls the request function."""
        if isinstance(function, WithReservation):
            return function.function(self._reservation)  # type: ignore[arg-type]
        return function()

    def refused(self) -> bool:
        """The provider did not admit the attempt."""
        return self._reservation is not None and self._reservation.answered(refused=True)

    def settle(self, used: dict[str, int]) -> bool:
        """Ends the reservation with what was used, by resource."""
        if self._reservation is None or not self._reservation.settle_used(used):
            return False
        self.bucket._ended()
        return True

    def cancel_reservation(self) -> bool:
        """Gives it back: nothing was sent."""
        return self._reservation is not None and self._reservation.cancel()

    def detach(self) -> None:
        """A stream cannot be kept beyond a blocking call: it settles as it is returned."""

    def answered(self) -> bool:
        """An answer has come, even if it is an error's."""
        return self._reservation is not None and self._reservation.answered()

    def land(self, answered: bool = False) -> None:
        """The attempt is over: whatever has not been said stays as estimated."""
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            return
        if answered:
            reservation.settle()
        else:
            reservation.expire()
        self.bucket._ended()  # whoever ended it: a function that was given it may have


def submit_sync(
    scheduler: Scheduler, metadata: Any, function: Callable[[], _T] | WithReservation
) -> _T:
    """See Scheduler.submit_sync."""
    if not scheduler.is_running():
        raise SchedulerStoppedError("Scheduler is not running")
    submitted = scheduler._now()
    bucket: Bucket | None = None
    if scheduler.circuit_breaker is None and not isinstance(metadata, dict):
        bucket = scheduler._find.known(metadata)
    if bucket is None:
        metadata, bucket = _wait_for(scheduler, scheduler._prepare(metadata))
    call = BlockingCall(metadata, bucket)
    bucket._count(0, "submitted")
    outcome = "failed"
    scheduler._blocking.add(call)
    try:
        result = _attempts(scheduler, call, function, submitted)
        outcome = "succeeded"
        return result
    finally:
        call.over = True
        scheduler._blocking.discard(call)
        bucket._count(0, outcome)


def _attempts(
    scheduler: Scheduler,
    call: BlockingCall,
    function: Callable[[], _T] | WithReservation,
    submitted: int,
) -> _T:
    bucket = call.bucket
    while True:
        if bucket.guarded:
            scheduler._guard(bucket, None)
        call.admitted(scheduler._admit(bucket, call.metadata, submitted, call.attempt > 0))
        if bucket.guarded:
            try:
                scheduler._guard(bucket, call)
            except BaseException:
                call.cancel_reservation()
                raise
        result: Any = None
        error: Exception | None = None
        bucket._count(1, None)
        try:
            result = call.make(function)
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                raise TypeError(
                    f"request_func {_name(function)} gave an awaitable: submit_sync is for plain "
                    "functions, submit_request awaits"
                )
        except Exception as raised:  # judged below, and raised again unless it is retried
            error = raised
        except BaseException:
            call.land()
            raise
        finally:
            bucket._count(-1, None)
        call.result = result
        verdict = scheduler._judge(call, result, error)
        call.land(answered=error is None)
        again = verdict is not None and asyncio.run(_awaited(verdict))
        if not again or not scheduler.is_running():
            if error is not None:
                raise error
            return call.result  # type: ignore[no-any-return]


def _name(function: object) -> str:
    """Not its repr: that of a partial shows the arguments, keys among them."""
    return str(getattr(function, "__qualname__", type(function).__name__))


async def _awaited(verdict: Any) -> bool:
    return bool(await verdict)


def _wait_for(scheduler: Scheduler, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What it gives: on the loop where the provider lives, or where that is gone on one of ours."""
    chores = scheduler._chores
    if scheduler.provider is not None and chores.loop_is_gone:
        scheduler._life.adopt_chores()  # not on the one below, which is gone at once
    if not chores.loop_runs or chores.is_this_loop():
        return asyncio.run(coroutine)
    return chores.wait_for(coroutine)
