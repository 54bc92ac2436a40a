"""Requests from threads: the same way as `submit_request`, with the function called right there."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar, final

from headway._core import AnsweredCall, Reservation, WithReservation
from headway.errors import SchedulerStoppedError
from headway.scheduler.answers import Answer
from headway.scheduler.buckets import Bucket
from headway.scheduler.chores import LoopEnded, fail, running_loop

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_T = TypeVar("_T")


@final
class BlockingCall:
    """One request of a thread, as what judges attempts sees it: see `_core.Call`."""

    bucket: Bucket  # once that is known

    def __init__(self, scheduler: Scheduler, metadata: Any) -> None:
        self.metadata = metadata
        self.stopped = False
        """Whether it has been told to end; looked at by `_admit`, too."""
        self.submitted = 0
        """When, as of Scheduler._now."""
        self.waited = 0.0
        """Seconds from then to the beginning of the attempt."""
        self.attempt = 0
        self.result: Any = None
        self.over = False
        self.outcome = "failed"
        self._scheduler = scheduler
        self._waits_for: Future[Any] | None = None  # beside admission
        self._reservation: Reservation | None = None
        self._reserved: tuple[int, ...] = ()
        self._told = False  # of its end

    def begin(self) -> None:
        """From now on a stop waits for it."""
        self._scheduler._blocking.add(self)
        self._scheduler._on_way.add(self)
        # Only now: either this is seen, or the stop sees it.
        if not self._scheduler.is_running():
            raise SchedulerStoppedError("Scheduler is not running")

    def end(self) -> None:
        """It has a result, or none."""
        self.over = True
        self._scheduler._blocking.discard(self)
        self._leave_way()

    def _leave_way(self) -> None:
        self._scheduler._on_way.discard(self)
        self._scheduler._life.look_again()

    def stop(self) -> None:
        """Ends what it waits for, from any thread; its function is left alone."""
        self.stopped = True
        waits_for = self._waits_for
        if waits_for is not None:
            fail(waits_for, _stopped())

    def ask(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `make()` gives where the provider lives; where none runs, on a loop of ours."""
        scheduler = self._scheduler
        while True:
            if not scheduler._chores.loop_runs:
                scheduler._life.adopt_chores()
            errand = scheduler._chores.send(make)
            try:
                return self._wait_for(errand.over, errand.wait)
            except LoopEnded:
                continue

    def pause(self, seconds: float) -> None:
        """Lets so much time pass."""
        told: Future[None] = Future()
        self._wait_for(told, lambda: wait([told], min(seconds, threading.TIMEOUT_MAX)))
        if told.done():
            told.result()

    def _wait_for(self, over: Future[Any], wait: Callable[[], _T]) -> _T:
        self._waits_for = over
        try:
            if self.stopped:  # only now: either it is told, or it looks
                raise _stopped()
            return wait()
        finally:
            self._waits_for = None

    def record(self) -> AnsweredCall | None:
        """What is known of the attempt, whose answer has come."""
        return None if self._reservation is None else self._reservation._record()

    def admitted(self, reservation: Reservation, reserved: tuple[int, ...]) -> None:
        """The next attempt may begin."""
        self._reservation = reservation
        self._reserved = reserved
        self._told = False
        self.waited = (self._scheduler._now() - self.submitted) / 1e9
        self.attempt += 1

    def make(self, function: Callable[[], Any] | WithReservation) -> Any:
        """Calls the request function."""
        self.bucket._began(self._reserved, self.attempt > 1)
        self._leave_way()
        try:
            if isinstance(function, WithReservation):
                return function.function(self._reservation)  # type: ignore[arg-type]
            return function()
        finally:
            self._scheduler._on_way.add(self)
            self.bucket._returned()

    def refused(self) -> bool:
        """The provider did not admit the attempt."""
        self.bucket._count("refusal")
        return self._reservation is not None and self._reservation.answered(refused=True)

    def failed(self) -> None:
        """The attempt's answer is a failure, and says nothing of limits."""
        if self._reservation is not None:
            self._reservation._failed()

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

    def detach(self) -> Reservation | None:
        """The attempt's reservation, whose end is the caller's affair from now on."""
        reservation, self._reservation = self._reservation, None
        return reservation

    @property
    def amounts(self) -> tuple[int, ...]:
        """What the attempt has reserved, by number of the resource."""
        return self._reserved

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
    if running_loop() is not None:
        raise RuntimeError("submit_sync() on an event loop would block it: await submit_request()")
    call = BlockingCall(scheduler, metadata)
    try:
        call.begin()
        call.submitted = scheduler._now()
        bucket: Bucket | None = None
        if scheduler.circuit_breaker is None and not isinstance(metadata, dict):
            bucket = scheduler._find.known(metadata)
        if bucket is None:
            call.metadata, bucket = call.ask(lambda: scheduler._prepare(metadata))
        call.bucket = bucket
        return _counted(scheduler, call, function)
    finally:
        call.end()


def _counted(
    scheduler: Scheduler, call: BlockingCall, function: Callable[[], _T] | WithReservation
) -> _T:
    scheduler._begins(call.bucket)
    try:
        result = _attempts(scheduler, call, function)
        call.outcome = "succeeded"
        return result
    except BaseException as error:
        if not isinstance(error, Exception):  # the thread was interrupted
            call.outcome = "cancelled"
        raise
    finally:
        call.bucket._count(call.outcome)


def _attempts(
    scheduler: Scheduler, call: BlockingCall, function: Callable[[], _T] | WithReservation
) -> _T:
    bucket = call.bucket
    while True:
        call.outcome = "breaker"
        if bucket.guarded:
            scheduler._guard(bucket, None)
        call.outcome = "refused"
        retry = call.attempt > 0
        call.admitted(*scheduler._admit(bucket, call.metadata, call.submitted, retry, call))
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
        answer = scheduler._verdicts.judge(call, result, error)
        call.land(answered=error is None)
        # Whoever was told to end during the function still has what that came to.
        if answer is None or call.stopped or not _goes_on(scheduler, call, answer, error):
            if error is not None:
                raise error
            return call.result  # type: ignore[no-any-return]


def _goes_on(
    scheduler: Scheduler, call: BlockingCall, answer: Answer, error: Exception | None
) -> bool:
    """Whether the request is tried again, when the time has come: as Verdicts.again."""
    questions = scheduler._questions
    call.outcome = "stopped"  # what ends these waits
    info = call.ask(lambda: questions.read(answer)) if questions.reads(answer) else None
    call.outcome = "deadline"  # what this raises
    pause = scheduler._verdicts.pause_before(call, answer, error, info)
    call.outcome = "stopped"
    if pause:
        call.pause(pause)
    call.outcome = "failed"
    return pause is not None


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


def _stopped() -> SchedulerStoppedError:
    return SchedulerStoppedError("the scheduler was stopped while this waited")
