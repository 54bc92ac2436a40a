"""A scheduling strategy at work: which bucket goes next, of those that are ready at one instant."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway._loop import watch
from headway.errors import ConfigurationError, RateLimiterError
from headway.scheduler.answers import look
from headway.scheduler.chores import running_loop
from headway.scheduler.user_code import method_of
from headway.strategies import NAMES, create_strategy
from headway.types import QueueInfo, RateLimitBucket

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

PATIENCE = 1.0
"""Seconds that a strategy may take before the bucket that has waited longest goes.

Twice that, and the core goes on by itself: then the loop does not run on which it would be asked.
"""

_MOST_TIMES = 1_000
"""So many times that calls took are kept until the strategy is asked."""

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
    its own limits let it. Runs among the scheduler's chores; when those end, and where their loop
    gives no answer, the core decides.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._infos: dict[str, tuple[QueueInfo, _Waiting]] = {}
        self._lock = threading.Lock()
        self._mailbox: _core.Mailbox | None = None
        self.times_calls = look(scheduler.scheduling_strategy, "record_response_time") is not None
        """Whether the strategy wants to know how long calls took."""
        self._times: deque[tuple[str, float]] = deque(maxlen=_MOST_TIMES)

    def took(self, bucket: Bucket, seconds: float) -> None:
        """A call has had its answer after that long. From any thread."""
        self._times.append((bucket.name, seconds))

    async def run(self) -> None:
        """Until it is cancelled, or somebody else has come in its place."""
        mailbox = await self._scheduler._user_code.open_mailbox(self._whose, PATIENCE)
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        unwatch = watch(loop, mailbox, asked.set)
        self._begin(mailbox)
        try:
            while self._mailbox is mailbox:
                await asked.wait()
                mailbox.clear()
                asked.clear()
                while self._mailbox is mailbox and await self._round(mailbox):
                    pass
        finally:
            # Else it was closed as garbage, somewhere, after its loop: nothing of it is left.
            if running_loop() is loop:
                self._end(mailbox)
                unwatch()
                self._scheduler._life.leave_loop()

    @property
    def _whose(self) -> str:
        return f"strategy {type(self._scheduler.scheduling_strategy).__name__!r}"

    def _begin(self, mailbox: _core.Mailbox) -> None:
        with self._lock:
            self._mailbox = mailbox
            # Twice: where the strategy is what takes long, that is seen on the loop, and counted.
            self._scheduler._choose_by(mailbox, 2 * PATIENCE)

    def _end(self, mailbox: _core.Mailbox) -> None:
        """Unless somebody else has come in its place."""
        with self._lock:
            if self._mailbox is mailbox:
                self._mailbox = None
                self._scheduler._choose_by(None, 0)

    async def _round(self, mailbox: _core.Mailbox) -> bool:
        """One choice; whether there was one to make."""
        buckets = {bucket._which: bucket for bucket in self._scheduler._buckets}
        # In the core's own order: who has waited longest is first.
        contenders = [
            (buckets[which], waiting, priority)
            for which, waiting, priority, _ in self._scheduler._contenders()
            if which in buckets
        ]
        if not contenders:
            return False
        chosen = 0
        infos: list[QueueInfo] = []
        try:
            # They are what strategies write in, too.
            infos = [self._info(*each) for each in contenders]
            await self._tell_times()
            chosen = await self._ask(infos)
        except Exception as error:  # contained: without an answer it goes by the core's order
            self._failed(error)
        if self._mailbox is mailbox and self._scheduler._choose(contenders[chosen][0]) and infos:
            try:
                infos[chosen].last_request_time = datetime.now(timezone.utc)
                await infos[chosen].update_on_dequeue()
            except Exception as error:  # contained
                self._failed(error)
        return True

    async def _tell_times(self) -> None:
        """How long calls took since it was asked last; of very many, the latest."""
        user_code = self._scheduler._user_code
        origin = f"record_response_time of {self._whose}"
        tell = method_of(self._scheduler.scheduling_strategy, "record_response_time")
        try:
            with contextlib.suppress(IndexError):
                while True:
                    await user_code.call(origin, tell, *self._times.popleft(), patience=PATIENCE)
        except RateLimiterError:  # logged and counted; what is slow is not to be slow for each
            self._times.clear()

    async def _ask(self, infos: list[QueueInfo]) -> int:
        """Which of them it chooses; the first where it gives none of them.

        By identity alone: how its answer compares, and whether, is its own affair.
        """
        user_code = self._scheduler._user_code
        origin = f"select of {self._whose}"
        select = method_of(self._scheduler.scheduling_strategy, "select")
        try:
            given = await user_code.call(origin, select, list(infos), patience=PATIENCE)
            if given is None:
                return 0
            for which, info in enumerate(infos):
                if info is given:
                    return which
            raise user_code.nonsense(origin, given, "must be one of those it was given, or None")
        except RateLimiterError:  # logged and counted
            return 0

    def _failed(self, error: Exception) -> None:
        self._scheduler._user_code.note(f"queues of {self._whose}", error)
        self._infos.clear()  # they may be what is wrong

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
        info.queue_key = bucket.name  # strategies know it by that, and may have changed it
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
