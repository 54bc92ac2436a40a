"""A scheduling strategy at work: which bucket goes next, of those that are ready at one instant."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway.errors import ConfigurationError, RateLimiterError
from headway.strategies import NAMES, BaseSchedulingStrategy, create_strategy
from headway.types import QueueInfo, RateLimitBucket

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

PATIENCE = 1.0
"""Seconds that a strategy may take before the bucket that has waited longest goes."""

_NO_LIMIT = 1_000
"""Requests a minute, as strategies weigh a bucket of which no limit is known."""


def read_strategy(given: Any) -> Any:
    """A strategy as it is, or by its name; None for none. ConfigurationError for anything else."""
    if given is None:
        return None
    if isinstance(given, str):
        try:
            return create_strategy(given)
        except ValueError as error:
            raise ConfigurationError(f"scheduling_strategy: {error}") from None
    if not callable(getattr(given, "select", None)):
        raise ConfigurationError(
            f"scheduling_strategy {given!r}: must have `async select(eligible)`, or be one of "
            f"{', '.join(map(repr, NAMES))}"
        )
    return given


@final
class Choice:
    """Asks the strategy whenever several buckets are held up by how many may run at once.

    That is the only instant at which buckets are in each other's way: apart from it each goes as
    its own limits let it. Runs among the scheduler's chores; when those end, the core decides.
    """

    def __init__(self, scheduler: Scheduler, strategy: BaseSchedulingStrategy) -> None:
        self._scheduler = scheduler
        self._strategy = strategy
        self._infos: dict[str, tuple[QueueInfo, _Waiting]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        mailbox = _core.Mailbox()
        asked = asyncio.Event()
        loop.add_reader(mailbox.fileno(), asked.set)
        self._scheduler._choose_by(mailbox)
        try:
            while True:
                await asked.wait()
                mailbox.clear()
                asked.clear()
                while contenders := self._scheduler._contenders():
                    await self._choose(contenders)
        finally:
            self._scheduler._choose_by(None)
            loop.remove_reader(mailbox.fileno())

    async def _choose(self, contenders: list[tuple[int, int, int, float]]) -> None:
        buckets = {bucket._which: bucket for bucket in self._scheduler._buckets}
        eligible: dict[str, tuple[Bucket, QueueInfo]] = {}
        # In the core's own order: who has waited longest is first.
        for which, waiting, priority, _ in contenders:
            bucket = buckets.get(which)
            if bucket is not None:
                eligible[bucket.name] = (bucket, self._info(bucket, waiting, priority))
        if not eligible:
            # Buckets of another scheduler on the same backend; the core can tell them apart.
            self._scheduler._choose_by(None)
            return
        chosen = await self._ask([info for _, info in eligible.values()])
        bucket, info = eligible.get(chosen, next(iter(eligible.values())))
        if self._scheduler._choose(bucket):
            await info.update_on_dequeue()

    async def _ask(self, infos: list[QueueInfo]) -> str:
        """The chosen one's name, or nothing where the strategy gives none that there is."""
        user_code = self._scheduler._user_code
        origin = f"select of strategy {type(self._strategy).__name__!r}"
        try:
            info = await user_code.call(origin, self._strategy.select, infos, patience=PATIENCE)
            if info is None:
                return ""
            if info not in infos:
                raise user_code.nonsense(origin, info, "must be one of those it was given, or None")
        except RateLimiterError:  # logged and counted
            return ""
        name: str = info.queue_key
        return name

    def _info(self, bucket: Bucket, waiting: int, priority: int) -> QueueInfo:
        known = self._infos.get(bucket.name)
        if known is None:
            if len(self._infos) >= 10_000:
                self._infos.clear()
            queue = _Waiting()
            rate = RateLimitBucket(bucket.name, "", _requests_a_minute(bucket))
            info = QueueInfo(bucket.name, bucket.name, "", queue, rate)
            known = self._infos[bucket.name] = (info, queue)
        info, queue = known
        queue.count = info.queue_depth = waiting
        # What waits is known, not what came: so the mean priority is that of the head.
        info.total_enqueued = info.total_dequeued + waiting
        info.current_priority = float(priority)
        info.priority_sum = info.current_priority * info.total_enqueued
        return info


class _Waiting:
    """As much of a queue as strategies look at: what waits is in the core."""

    count = 0

    def qsize(self) -> int:
        return self.count

    def empty(self) -> bool:
        return self.count == 0


def _requests_a_minute(bucket: Bucket) -> int:
    rates = [
        limit.amount * 60 / limit.per
        for limit in bucket.limits()
        if limit.resource == "requests" and limit.per
    ]
    return max(1, round(min(rates))) if rates else _NO_LIMIT
