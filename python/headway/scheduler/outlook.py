"""When a request would have its turn, and what is in its way: everything that takes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, final

from headway import _core
from headway._core import Limit
from headway.limiter import UNLIMITED, Explanation, explain
from headway.scheduler.config import SchedulerMode
from headway.scheduler.handle import Preview

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler
    from headway.types import RequestMetadata

_ANSWERS = "only answers that are still out can tell"


class Turn(NamedTuple):
    """When a request would be admitted."""

    wait: float | None  # seconds; inf: never; None: only answers can tell
    meter: int  # which limit it waits for, of its bucket or its account
    of_account: bool
    amounts: tuple[int, ...]


@final
class Outlook:
    """For one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # By account, its own limits; by loop, what was submitted in this step of it.
        self._own: dict[str, _core.LimiterCore] = {}
        self._steps: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Step]] = (
            weakref.WeakKeyDictionary()
        )

    def know_account(self, client_id: str, own: _core.LimiterCore) -> None:
        """An account that has limits of its own."""
        self._own[client_id] = own

    # -- one request -----------------------------------------------------------------------------

    def turn(self, bucket: Bucket, metadata: RequestMetadata, line: object = None) -> Turn:
        """As `_estimate`, but inf also for what a user's own backend can never grant.

        `line`: of what `_ahead` gave, behind which it then stands.
        """
        turn = Turn(*self._scheduler._estimate(bucket, metadata, line))
        if self._scheduler._buckets.too_large(bucket, turn.amounts) is not None:
            turn = turn._replace(wait=math.inf)
        return turn

    def explanation(self, bucket: Bucket, metadata: RequestMetadata) -> Explanation:
        """Which limit binds it, also of those of its account, and how full each is."""
        wait, _, _, amounts = self._scheduler._estimate(bucket, metadata, None)
        found = self._scheduler._words._explained(bucket, explain(bucket, amounts))
        look = _core.snapshot(bucket, *amounts)
        elsewhere = tuple(bucket.theirs())
        too_large = self._scheduler._buckets.too_large(bucket, amounts)
        if too_large is not None:
            found = dataclasses.replace(found, binds=too_large[0], ready_in=math.inf)
        elif found.binds is None and look["binds"] is not None and look["binds"] >= 0:
            limit = look["limits"][look["binds"]]["limit"]
            found = dataclasses.replace(found, binds=_shown(bucket, limit))
        found = dataclasses.replace(
            found,
            elsewhere=elsewhere,
            receipts=tuple(bucket.receipts),
            observed=bucket.watch.seen,
        )
        own = self._limits_of(metadata)
        if own is None:
            return found
        # Counted at admission, it needs none of the caution that a provider's needs: no limit of it
        # is further away than the estimate, which knows that.
        theirs = explain(own, amounts)
        states = tuple(
            dataclasses.replace(
                state, account=metadata.client_id, ready_in=_at_most(state.ready_in, wait)
            )
            for state in theirs.limits
        )
        found = dataclasses.replace(found, limits=found.limits + states)
        ready_in = _at_most(theirs.ready_in, wait)
        if _later(ready_in, found.ready_in):
            found = dataclasses.replace(found, binds=theirs.binds, ready_in=ready_in)
        return found

    def own_limit_of(self, admits: int) -> str:
        """The end of the sentence that says that an account's own limit admits no more than that.

        The core says how much that is, and not whose: what the accounts have in common is named.
        """
        found = [
            (each["limit"], client_id)
            for client_id, own in self._own.items()
            for each in _core.snapshot(own)["limits"]
            if each["capacity"] == admits
        ]
        limits = {limit for limit, _ in found}
        accounts = sorted({client_id for _, client_id in found})
        resources = {limit.resource for limit in limits}
        what = f" {resources.pop()}" if len(resources) == 1 else ""
        named = [f"'{limits.pop()}'"] if len(limits) == 1 else []
        named += [f"of account {accounts[0]!r}"] if len(accounts) == 1 else []
        which = f" ({' '.join(named)})" if named else ""
        return f"{what}, the account's own limit is {admits}{which}"

    # -- several ---------------------------------------------------------------------------------

    def preview(self, costs: Iterable[RequestMetadata]) -> Preview:
        """See Scheduler.preview."""
        if not isinstance(costs, Iterable):
            raise TypeError(
                f"costs {type(costs).__name__}: must be an iterable of requests, for one: [request]"
            )
        batch = [(metadata, self._scheduler._find.known(metadata)) for metadata in costs]
        batch.sort(key=lambda one: self._urgency(one[0]))
        steps: dict[str, _Step] = {}
        by_bucket: dict[str, float | None] = {}
        latest = 0.0
        last: tuple[Bucket, RequestMetadata, Turn] | None = None
        reason: str | None = None
        for metadata, bucket in batch:
            if bucket is None:
                by_bucket[metadata.model_id] = None
                reason = reason or (
                    f"which bucket counts {metadata.model_id!r}, the provider is asked with its "
                    "first request"
                )
                continue
            turn = self._behind(steps.setdefault(bucket.name, _Step()), bucket, metadata)
            if _later(turn.wait, by_bucket.setdefault(bucket.name, turn.wait)):
                by_bucket[bucket.name] = turn.wait
            if turn.wait is None:
                asked = f"only the backend can tell, of bucket {bucket.name!r}"
                reason = reason or (_ANSWERS if bucket.remote is None else asked)
            elif turn.wait > latest:
                latest, last = turn.wait, (bucket, metadata, turn)
        if reason is not None and latest < math.inf:
            return Preview(None, by_bucket, None, reason)
        return Preview(latest, by_bucket, None if last is None else self._binding(*last))

    def _binding(self, bucket: Bucket, metadata: RequestMetadata, turn: Turn) -> Limit | None:
        """Of all limits that it needs, the one that lets it wait so long."""
        own = self._limits_of(metadata)
        if own is not None and turn.of_account:
            return _core.limits(own)[turn.meter]
        if turn.wait == math.inf:
            if own is not None and (theirs := explain(own, turn.amounts)).ready_in == math.inf:
                return theirs.binds
            too_large = self._scheduler._buckets.too_large(bucket, turn.amounts)
            never = [
                each.limit
                for each in explain(bucket, turn.amounts).limits
                if each.ready_in == math.inf
            ]
            return too_large[0] if too_large is not None else never[0] if never else None
        known = _core.limits(bucket)
        return _shown(bucket, known[turn.meter]) if 0 <= turn.meter < len(known) else None

    def _limits_of(self, metadata: RequestMetadata) -> _core.LimiterCore | None:
        if self._scheduler.mode is not SchedulerMode.ACCOUNT or metadata.client_id is None:
            return None
        return self._own.get(metadata.client_id)

    # -- what has been submitted in this step of the loop -----------------------------------------

    def submitted(self, bucket: Bucket, metadata: RequestMetadata) -> float | None:
        """The wait of one that is being submitted, behind those of this step of the loop.

        They are in no queue yet: their tasks begin when the step is over.
        """
        loop = asyncio.get_running_loop()
        steps = self._steps.setdefault(loop, {})
        step = steps.get(bucket._which) or _Step()
        wait = self._behind(step, bucket, metadata).wait
        steps[bucket._which] = step

        def begins() -> None:
            if step.begins():
                del steps[bucket._which]

        loop.call_soon(begins)  # just before its task does
        return wait

    def _behind(self, step: _Step, bucket: Bucket, metadata: RequestMetadata) -> Turn:
        """Of one that stands behind those of the step, and is one of them from now on."""
        priority = self._priority(metadata)
        line = step.line(self._scheduler, bucket, metadata, priority)
        turn = self.turn(bucket, metadata, line.ahead)
        step.add(line, priority, metadata)  # nothing is wrong with it
        return turn

    def _priority(self, metadata: RequestMetadata) -> int:
        config, mode = self._scheduler.config, self._scheduler.mode
        heeded = config.enable_priority_scheduling and mode is not SchedulerMode.BASIC
        return (metadata.priority or 0) if heeded else 0

    def _urgency(self, metadata: RequestMetadata) -> int:
        """The urgent ones of a batch pass the others. What is no number is complained of later."""
        priority: object = self._priority(metadata)
        return -priority if isinstance(priority, int) else 0


@dataclasses.dataclass(slots=True)
class _Line:
    """What goes in front, as it was when it was made.

    Who begins was added before, so the line stays right for a while. It is made anew when all that
    had come by then have begun: where several tasks submit in turn, some have always not begun yet.
    """

    ahead: object
    added: int  # of those that have come, those up to here are in it, or go behind it
    made: int  # how many had come, the one that it was made for included


class _Step:
    """What is submitted to one bucket in one step of a loop, and is in no queue yet."""

    # So many accounts have lines of their own; those beyond share one.
    MOST = 16

    def __init__(self) -> None:
        # Those that have not begun, and how many have come and begun in all.
        self._waiting: list[tuple[int, RequestMetadata]] = []
        self._come = 0
        self._begun = 0
        # By priority and account.
        self._lines: dict[tuple[int, str | None], _Line] = {}

    def line(
        self, scheduler: Scheduler, bucket: Bucket, metadata: RequestMetadata, priority: int
    ) -> _Line:
        """What goes in front of it."""
        named = metadata.client_id if isinstance(metadata.client_id, str) else None
        key = (priority, named if scheduler.mode is SchedulerMode.ACCOUNT else None)
        if key not in self._lines and len(self._lines) >= self.MOST:
            key = (priority, None)
        line = self._lines.get(key)
        if line is None or line.made <= self._begun:
            line = _Line(scheduler._ahead(bucket, metadata), self._begun, self._come + 1)
            self._lines[key] = line
        for theirs, other in self._waiting[line.added - self._come + len(self._waiting) :]:
            line.added += 1
            if theirs >= priority:
                scheduler._estimate(bucket, other, line.ahead)
        return line

    def add(self, line: _Line, priority: int, metadata: RequestMetadata) -> None:
        """It has been added to this line."""
        self._waiting.append((priority, metadata))
        self._come += 1
        line.added += 1

    def begins(self) -> bool:
        """The one that came first does. Whether none is left."""
        self._begun += 1
        gone = self._begun - (self._come - len(self._waiting))
        if 2 * gone >= len(self._waiting):
            del self._waiting[:gone]
        return self._begun == self._come


def _at_most(one: float | None, bound: float | None) -> float | None:
    return one if one is None or bound is None else min(one, bound)


def _later(one: float | None, other: float | None) -> bool:
    """Whether `one` is the longer wait; None, which nobody can tell, is longer than any but inf."""
    if other in (math.inf, one):
        return False
    return one is None or (other is not None and one > other) or one == math.inf


def _shown(bucket: Bucket, limit: Limit) -> Limit | None:
    """What its user knows it by: a limit of ours that counts for one of a backend's is none."""
    if limit.amount < UNLIMITED:
        return limit
    return next((each for each in bucket.theirs() if each.resource == limit.resource), None)
