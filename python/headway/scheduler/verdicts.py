"""What an attempt has come to: done, to be tried again, or a reason to hold its bucket up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
from typing import TYPE_CHECKING, Any, final

from headway._log import fields
from headway.errors import DeadlineExceededError, RequestTimeoutError
from headway.providers import RateLimitInfo
from headway.retry import RetryBudget
from headway.scheduler.answers import Answer, look, read_answer
from headway.scheduler.buckets import Bucket
from headway.scheduler.failures import REFUSED, classed, is_refused, is_retried, wait_told_by
from headway.scheduler.streams import billed, wrap_stream

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")

_FIRST_BACKOFF = 0.5
_FINAL = {
    "spent": "not tried again: the provider says that the credit is spent",
    "not_on_plan": "not tried again: the provider says that the model is not in the plan",
}
USED_UP = "not tried again: the budget for retries is used up (10, and one for every five requests)"


@final
class Verdicts:
    """Judges the attempts of one scheduler. retry_on: exceptions that are worth another one."""

    def __init__(self, scheduler: Scheduler, retry_on: tuple[type[BaseException], ...]) -> None:
        self._scheduler = scheduler
        self._retry_on = retry_on
        self._budget = RetryBudget()
        self._logged: set[str] = set()

    def judge(self, call: Any, result: Any, error: BaseException | None) -> Answer | None:
        """What an attempt has come to: None where that is final, else what may be tried again."""
        bucket: Bucket = call.bucket
        # Before a stream takes its reservation along.
        answer = self._hear(call, result if error is None else error)
        # What a failure says is read first, if at all, and it may be tried again.
        if error is None and (answer.status is None or answer.status < 400):
            kept = self._scheduler._observations.table_of(answer).kept
            stream = wrap_stream(call, result, self._scheduler._streams, kept)
            if stream is not None:
                call.result = stream
                if bucket.guarded:
                    self._went_well(call)
                # Its headers are in; what is to come of its body is nobody's but its reader's.
                self._scheduler._questions.read_later(answer)
                return None
        refused = is_refused(answer)
        if answer.status is not None and answer.status >= 400:
            call.failed()
        if refused or answer.status == REFUSED:
            self._refused(call, answer)
        elif answer.usage:
            call.settle(self._settled(call, answer))
        elif answer.status is not None:
            call.answered()
        if isinstance(error, RequestTimeoutError):
            self._scheduler._events["request_timeouts"] += 1
        again = is_retried(answer, error, self._retry_on)
        if not again:
            if error is None and (answer.status is None or answer.status < 400):
                self._went_well(call)
            elif refused or answer.status == REFUSED:
                self._cool(bucket, answer, call.attempt)
            if answer.kind in _FINAL:
                self._say(answer.kind, _FINAL[answer.kind], error)
            elif self._may_be_refused(answer):
                return self._bounded(call, dataclasses.replace(answer, doubtful=True))
            self._scheduler._questions.read_later(answer)
            return None
        if refused:
            self._cool(bucket, answer, call.attempt)
        elif bucket.breaker.failed(call, self._scheduler._now() / 1e9, bucket.attempts):
            bucket.guarded = True
            _logger.warning(
                "bucket %r: %d failures within %g s: its calls are refused for as long",
                bucket.name,
                self._scheduler.config.max_failures,
                self._scheduler.config.failure_window,
                extra=fields("breaker_opened", bucket=bucket.name),
            )
        self._scheduler._events["failed_attempts"] += 1
        return self._bounded(call, answer)

    def watch(self, call: Any, result: Any, held: bool) -> bool:
        """What an attempt that was only watched has come to: whether it was refused.

        As `judge`, but that nothing is tried again, and no breaker is told. held: it would have
        been held back, and so would not have been refused: its refusal holds up nothing either.
        """
        answer = self._hear(call, result)
        call.result = result
        if answer.status is None or answer.status < 400:
            kept = self._scheduler._observations.table_of(answer).kept
            stream = wrap_stream(call, result, self._scheduler._streams, kept)
            if stream is not None:
                call.result = stream
            elif answer.usage:
                call.settle(self._settled(call, answer))
            else:
                call.answered()
            return False
        call.failed()
        if answer.status != REFUSED:
            call.answered()
            return False
        self._refused(call, answer)
        if not held:
            self._cool(call.bucket, answer, call.attempt)
        return True

    def _hear(self, call: Any, source: object) -> Answer:
        """What an attempt's result or exception says, told to whoever learns from it."""
        answer = read_answer(source)
        if answer.status is not None and answer.status >= 400:
            answer = classed(answer, self._scheduler._observations.table_of(answer))
        failed = isinstance(source, BaseException) or (answer.status or 0) >= 400
        self._scheduler._observations.read(call, answer, failed=failed)
        if self._scheduler._questions.reads(answer):
            answer = dataclasses.replace(answer, call=(call, call.record()))
        return answer

    def _bounded(self, call: Any, answer: Answer) -> Answer:
        """With when the request must have begun."""
        deadline = look(call.metadata, "deadline")
        if deadline is None:
            return answer
        return dataclasses.replace(answer, begin_by=call.submitted / 1e9 + float(deadline))

    def _may_be_refused(self, answer: Answer) -> bool:
        """Whether a failure that looks final is one that the user's own provider has a say in."""
        told = answer.headers.get("x-should-retry", "").strip().lower() == "false"
        failed = answer.status is not None and answer.status >= 400
        return failed and not answer.final and not told and self._scheduler._questions.reads(answer)

    def _settled(self, call: Any, answer: Answer) -> dict[str, int]:
        """What an attempt has used, as its provider counts it."""
        kept = self._scheduler._observations.table_of(answer).kept
        return billed(answer.usage, call.bucket, call.amounts, kept)

    def _refused(self, call: Any, answer: Answer) -> None:
        self._scheduler._events["refusals"] += 1
        # Before what others do because of it: its numbers are those of its instant.
        self._scheduler._refusals.note(call, answer)
        call.refused()

    def _went_well(self, call: Any) -> None:
        bucket: Bucket = call.bucket
        if self._scheduler._life.choice.times_calls:
            began = call.submitted / 1e9 + call.waited
            self._scheduler._life.choice.took(bucket, self._scheduler._now() / 1e9 - began)
        if bucket.guarded and bucket.breaker.succeeded(call):
            bucket.guarded = self._scheduler._buckets.guards(bucket)
            _logger.info(
                "bucket %r: a probe went well; its calls go out again",
                bucket.name,
                extra=fields("breaker_closed", bucket=bucket.name),
            )

    def _say(self, reason: str, why: str, error: BaseException | None) -> None:
        """Why a request is not tried again: once in the log, and on its exception."""
        if why not in self._logged:
            self._logged.add(why)
            _logger.warning(
                "%s; more of the same is not logged",
                why,
                extra=fields("not_retried", reason=reason),
            )
        add_note = look(error, "add_note")  # from Python 3.11 on
        # One that is raised again and again needs it once.
        if add_note is not None and why not in (look(error, "__notes__") or ()):
            with contextlib.suppress(Exception):  # somebody's own exception
                add_note(why)

    async def again(self, call: Any, answer: Answer, error: BaseException | None) -> bool:
        """Whether the request is tried again, when the time has come."""
        info = await self._scheduler._questions.read(answer)
        pause = self.pause_before(call, answer, error, info)
        if pause is None:
            return False
        await asyncio.sleep(pause)  # even for no time: whoever wants to end it gets a chance to
        return True

    def pause_before(
        self, call: Any, answer: Answer, error: BaseException | None, info: RateLimitInfo | None
    ) -> float | None:
        """Seconds until the request is tried again; None where it is not.

        info: what the provider makes of the answer. DeadlineExceededError, from `error`, where its
        deadline is over by then.
        """
        bucket: Bucket = call.bucket
        limited = info is not None and _is_limited(info)
        if answer.doubtful:
            if not limited:
                return None
            self._scheduler._events["failed_attempts"] += 1
        refused = is_refused(answer) or limited
        before = look(call.metadata, "_tried")
        attempts = call.attempt + (before if isinstance(before, int) else 0)
        if attempts > self._scheduler.config.max_retries or bucket.breaker.is_open:
            return None
        # A refused one waits with its bucket.
        pause = 0.0 if refused else self._pause_told(call, answer)
        self._check_deadline(call, answer, pause, error)
        return pause if self.may_try_again(error) else None

    def may_try_again(self, error: BaseException | None = None) -> bool:
        """Takes one of the retries that there are, for whoever makes it; False: none is left.

        error: what has failed, which is told why.
        """
        if self._budget.take(self._scheduler._begun()):
            self._scheduler._events["retries"] += 1
            return True
        self._scheduler._events["retry_budget_used_up"] += 1
        self._say("retry_budget", USED_UP, error)
        return False

    def _pause_told(self, call: Any, answer: Answer) -> float:
        told = wait_told_by(answer)
        pause = self.pause(call.attempt)
        return pause if told is None else max(told + random.random() * _jitter_of(told), pause)

    def after_fork(self) -> None:
        """In the child: what its parent has tried again is not its own."""
        self._budget = RetryBudget()
        self._logged.clear()

    def _check_deadline(
        self, call: Any, answer: Answer, pause: float, error: BaseException | None
    ) -> None:
        """A retry that would come too late is not waited for."""
        if answer.begin_by is None:
            return
        late = self._scheduler._now() / 1e9 + pause - answer.begin_by
        if late > 0:
            deadline = call.metadata.deadline
            raise DeadlineExceededError(
                f"not tried again within {deadline:.3f} s: it would have taken "
                f"{deadline + late:.3f} s"
            ) from error

    def hold_up(self, call: Any, answer: Answer, info: RateLimitInfo) -> None:
        """What the user's own provider makes of an answer holds up all of its bucket."""
        if not _is_limited(info):
            return
        told = info.retry_after or wait_told_by(answer)
        told = told or self._scheduler._observations.back_by(call.bucket, info)
        if told:
            call.bucket.cool(_with_jitter(call.bucket, float(told)))
        elif not is_refused(answer):  # or it is held up already
            call.bucket.cool(self.pause(call.attempt))

    def pause(self, attempt: int) -> float:
        """Full jitter: anything up to a bound that grows with each attempt."""
        config = self._scheduler.config
        try:
            bound = _FIRST_BACKOFF * float(config.backoff_base) ** (min(attempt, 64) - 1)
        except OverflowError:
            bound = config.max_backoff
        return random.random() * min(bound, config.max_backoff)

    def _cool(self, bucket: Bucket, answer: Answer, attempt: int) -> None:
        """A refusal holds up all of its bucket, for as long as it has told.

        Where it asks for no wait, at least until there is more of what it says is used up.
        """
        told = wait_told_by(answer)
        pause = self.pause(attempt) if told is None else 0.0
        if not told:  # a wait of nothing is over before anything is back
            told = self._scheduler._observations.back_in(bucket, answer) or told
        self._scheduler._events["cool_downs"] += 1
        bucket.cool(pause if told is None else max(pause, _with_jitter(bucket, told)))


def _jitter_of(told: float) -> float:
    """The most that is waited beyond what was told: who was told the same must not meet again."""
    return min(0.1 * told, 1.0)


def _with_jitter(bucket: Bucket, told: float) -> float:
    """The same part of it for all refusals of one cool-down, or the longest of many would count."""
    if not bucket.cooled_for:
        bucket.jitter = random.random()
    return told + bucket.jitter * _jitter_of(told)


def _is_limited(info: RateLimitInfo) -> bool:
    return info.is_rate_limited or bool(info.retry_after)
