"""When a request would have its turn, and what is in its way: everything that takes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, final

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


@final
class Outlook:
    """For one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # By account, its own limits; by loop, what was submitted in this step of it.
        self._own: dict[str, _core.LimiterCore] = {}
        self._not_begun: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[tuple[int, int], list[int]]
        ] = weakref.WeakKeyDictionary()

    def know_account(self, client_id: str, own: _core.LimiterCore) -> None:
        """An account that has limits of its own."""
        self._own[client_id] = own

    # -- one request -----------------------------------------------------------------------------

    def wait(
        self, bucket: Bucket, metadata: RequestMetadata, more: Sequence[int] | None = None
    ) -> tuple[float | None, int, tuple[int, ...]]:
        """As `_estimate`, but inf also for what a user's own backend can never grant."""
        wait, meter, amounts = self._scheduler._estimate(bucket, metadata, more)
        if self._scheduler._buckets.too_large(bucket, amounts) is not None:
            wait = math.inf
        return wait, meter, amounts

    def explanation(self, bucket: Bucket, metadata: RequestMetadata) -> Explanation:
        """Which limit binds it, also of those of its account, and how full each is."""
        wait, _, amounts = self._scheduler._estimate(bucket, metadata, None)
        found = explain(bucket, amounts)
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
        sums: dict[str, list[int]] = {}
        by_bucket: dict[str, float | None] = {}
        latest = 0.0
        last: tuple[Bucket, RequestMetadata, int, tuple[int, ...]] | None = None
        reason: str | None = None
        for metadata in costs:
            bucket = self._scheduler._find.known(metadata)
            if bucket is None:
                by_bucket[metadata.model_id] = None
                reason = reason or (
                    f"which bucket counts {metadata.model_id!r}, the provider is asked with its "
                    "first request"
                )
                continue
            more = sums.setdefault(bucket.name, [0] * len(self._scheduler._words.resources))
            wait, meter, amounts = self.wait(bucket, metadata, more)
            by_bucket[bucket.name] = wait
            sums[bucket.name] = _sum(more, amounts)
            if wait is None:
                asked = f"only the backend can tell, of bucket {bucket.name!r}"
                reason = reason or (_ANSWERS if bucket.remote is None else asked)
            elif wait > latest:
                latest, last = wait, (bucket, metadata, meter, amounts)
        if reason is not None and latest < math.inf:
            return Preview(None, by_bucket, None, reason)
        binds = None if last is None else self._binding(latest, *last)
        return Preview(latest, by_bucket, binds)

    def _binding(
        self,
        wait: float,
        bucket: Bucket,
        metadata: RequestMetadata,
        meter: int,
        amounts: tuple[int, ...],
    ) -> Limit | None:
        """Of all limits that it needs, the one that lets it wait so long."""
        own = self._limits_of(metadata)
        if own is not None:
            theirs = explain(own, amounts)
            # It was the longer of the two waits; since then, time has passed.
            if theirs.ready_in and theirs.ready_in >= wait - 0.01:
                return theirs.binds
        if wait == math.inf:
            too_large = self._scheduler._buckets.too_large(bucket, amounts)
            never = [
                each.limit for each in explain(bucket, amounts).limits if each.ready_in == wait
            ]
            return too_large[0] if too_large is not None else never[0] if never else None
        known = _core.limits(bucket)
        return _shown(bucket, known[meter]) if 0 <= meter < len(known) else None

    def _limits_of(self, metadata: RequestMetadata) -> _core.LimiterCore | None:
        if self._scheduler.mode is not SchedulerMode.ACCOUNT or metadata.client_id is None:
            return None
        return self._own.get(metadata.client_id)

    # -- what has been submitted in this step of the loop -----------------------------------------

    def submitted(
        self, bucket: Bucket, metadata: RequestMetadata
    ) -> tuple[float | None, tuple[int, ...]]:
        """The wait of one that is being submitted, and its cost, behind those of this step.

        They are in no queue yet: their tasks begin when the step is over.
        """
        wait, _, cost = self.wait(bucket, metadata)  # which looks at all of the metadata first
        of_this_step = self._of_this_step()
        if not of_this_step:
            return wait, cost
        priority = self._priority(metadata)
        more: list[int] | None = None
        for (which, theirs), amounts in of_this_step.items():
            if which == bucket._which and theirs >= priority:
                more = amounts if more is None else _sum(more, amounts)
        return wait if more is None else self.wait(bucket, metadata, more)[0], cost

    def begins(self, bucket: Bucket, metadata: RequestMetadata, cost: Sequence[int]) -> None:
        """Its task has been made: the next step of the loop begins it."""
        of_this_step = self._of_this_step()
        key = (bucket._which, self._priority(metadata))
        if not any(cost):
            return
        before = of_this_step.get(key)
        of_this_step[key] = list(cost) if before is None else _sum(before, cost)

        def has_begun() -> None:
            left = _sum(of_this_step[key], [-amount for amount in cost])
            if any(left):
                of_this_step[key] = left
            else:
                del of_this_step[key]

        asyncio.get_running_loop().call_soon(has_begun)

    def _of_this_step(self) -> dict[tuple[int, int], list[int]]:
        return self._not_begun.setdefault(asyncio.get_running_loop(), {})

    def _priority(self, metadata: RequestMetadata) -> int:
        config, mode = self._scheduler.config, self._scheduler.mode
        heeded = config.enable_priority_scheduling and mode is not SchedulerMode.BASIC
        return (metadata.priority or 0) if heeded else 0


def _sum(some: Sequence[int], more: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(some, more, strict=True)]


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
