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
        self.outcome = "failed"
        self._reservation: Reservation | None = None
        self._reserved: tuple[int, ...] = ()
        self._told = False  # of its end

    def admitted(self, reservation: Reservation, reserved: tuple[int, ...]) -> None:
        """The next attempt may begin."""
        self._reservation = reservation
        self._reserved = reserved
        self._told = False
        self.attempt += 1

    def make(self, function: Callable[[], Any] | WithReservation) -> Any:
        """Calls the request function."""
        self.bucket._began(self._reserved, self.attempt > 1)
        try:
            if isinstance(function, WithReservation):
                return function.function(self._reservation)  # type: ignore[arg-type]
            return function()
        finally:
            self.bucket._returned()

    def refused(self) -> bool:
        """The provider did not admit the attempt."""
        self.bucket._count("refusal")
        return self._reservation is not None and self._reservation.answered(refused=True)

    def settle(self, used: dict[str, int]) -> bool:
        """Ends the reservation with what was used, by resource."""
        if self._reservation is None or not self._reservation.settle_used(used):
            return False
        self._tell(used)
        return True

    def cancel_reservation(self) -> bool:
        """Gives it back: nothing was sent."""
        if self._reservation is None or not self._reservation.cancel():
            return False
        self._told = True
        self.bucket._settled(self._reserved, None)
        return True

    def give_up(self) -> None:
        """The attempt is not to begin after all."""
        if self._reservation is not None:
            self._reservation.cancel()
        self._told = True

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
        # A function that was given it may have ended it by itself.
        ended = reservation.settle() if answered else reservation.expire()
        if ended or not self._told:
            self._tell({})
        else:
            self.bucket._ended()

    def _tell(self, used: dict[str, int]) -> None:
        self._told = True
        self.bucket._settled(self._reserved, used)
        self.bucket._ended()


def submit_sync(
    scheduler: Scheduler, metadata: Any, function: Callable[[], _T] | WithReservation
) -> _T:
    """See Scheduler.submit_sync."""
    _check_function(function)
    if not scheduler.is_running():
        raise SchedulerStoppedError("Scheduler is not running")
    submitted = scheduler._now()
    bucket: Bucket | None = None
    if scheduler.circuit_breaker is None and not isinstance(metadata, dict):
        bucket = scheduler._find.known(metadata)
    if bucket is None:
        metadata, bucket = _wait_for(scheduler, scheduler._prepare(metadata))
    call = BlockingCall(metadata, bucket)
    bucket._count("submitted")
    scheduler._blocking.add(call)
    try:
        result = _attempts(scheduler, call, function, submitted)
        call.outcome = "succeeded"
        return result
    finally:
        call.over = True
        scheduler._blocking.discard(call)
        bucket._count(call.outcome)


def _attempts(
    scheduler: Scheduler,
    call: BlockingCall,
    function: Callable[[], _T] | WithReservation,
    submitted: int,
) -> _T:
    bucket = call.bucket
    while True:
        call.outcome = "breaker"
        if bucket.guarded:
            scheduler._guard(bucket, None)
        call.outcome = "refused"
        call.admitted(*scheduler._admit(bucket, call.metadata, submitted, call.attempt > 0))
        call.outcome = "breaker"
        if bucket.guarded:
            try:
                scheduler._guard(bucket, call)
            except BaseException:
                call.give_up()
                raise
        call.outcome = "failed"
        result: Any = None
        error: Exception | None = None
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
        call.result = result
        verdict = scheduler._judge(call, result, error)
        call.land(answered=error is None)
        again = verdict is not None and asyncio.run(_awaited(verdict))
        if not again or not scheduler.is_running():
            if error is not None:
                raise error
            return call.result  # type: ignore[no-any-return]


def _check_function(function: object) -> None:
    """Before anything is taken for it: what awaits cannot be called from a thread."""
    if isinstance(function, WithReservation):
        return
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"request_func {_name(function)} is an async function: submit_sync is for plain "
            "functions, submit_request awaits"
        )
    if not callable(function):
        raise TypeError(
            f"request_func of type {type(function).__name__}: must be callable without arguments"
        )


def _name(function: object) -> str:
    """Not its repr: that of a partial shows the arguments, keys among them."""
    return str(getattr(function, "__qualname__", type(function).__name__))


async def _awaited(verdict: Any) -> bool:
    return bool(await verdict)


def _wait_for(scheduler: Scheduler, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What it gives: on the loop where the provider lives, or where none runs on one of ours."""
    chores = scheduler._chores
    if scheduler.provider is not None and not chores.loop_runs:
        scheduler._life.adopt_chores()  # not on the one below, which is gone at once
    if not chores.loop_runs or chores.is_this_loop():
        return asyncio.run(coroutine)
    return chores.wait_for(coroutine)
