"""Buckets whose words are a user's own backend's: it is asked for many requests at a time.

The order in which requests go stays the core's. What the backend admits is granted to the bucket
as credit, for as many of those that wait as one question covers; they go as far as it lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import threading
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway.errors import RateLimiterError
from headway.scheduler.chores import until_set

if TYPE_CHECKING:
    from headway.backends import BaseBackend
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")

BATCH = 50
"""Requests that one question covers at most."""

_LEAST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
"""Seconds until a backend that has refused is asked again, where it does not say."""
_KEPT = 1.0
"""Seconds for which credit that nobody uses any more is kept."""


@dataclass
class _Grant:
    """What one question has brought: `count` requests, of which `ended` have come to an end."""

    reservation_id: str | None
    count: int
    tokens: int
    ended: int = 0
    used: int = 0


@final
class RemoteBucket:
    """Asks a backend on behalf of one bucket, among the scheduler's chores.

    limits: as the backend is to know them, `rpm_limit` and `tpm_limit`, where they are known.
    """

    def __init__(self, scheduler: Scheduler, bucket: Bucket, backend: BaseBackend) -> None:
        self._scheduler = scheduler
        self._bucket = bucket
        self._backend = backend
        self._grants: deque[_Grant] = deque()
        self._used_up: deque[_Grant] = deque()
        self._telling: set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._refused = 0
        self.limits: dict[str, int] = {}
        self.begun = False
        """Whether it was started, and has not ended."""

    def ended(self, reserved: int, used: int) -> None:
        """An attempt has ended, for which so many tokens were reserved, and used. From any thread.

        Which grant it went on cannot be told, and does not matter: the oldest counts as used first.
        """
        with self._lock:
            if not self._grants:
                return
            grant = self._grants[0]
            grant.ended += 1
            grant.used += used
            if grant.ended < grant.count:
                return
            self._used_up.append(self._grants.popleft())
        self._scheduler._chores.start(self._tell)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            mailbox = _core.Mailbox()
        except OSError as error:  # no descriptor is left; whoever comes next tries again
            self._scheduler._user_code.note("descriptor of backend", error)
            self.begun = False
            return
        asked = asyncio.Event()
        loop.add_reader(mailbox.fileno(), asked.set)
        self._scheduler._supply_by(self._bucket, mailbox)
        asked.set()
        try:
            while True:
                await until_set(asked, _KEPT if self._grants else math.inf)
                mailbox.clear()
                asked.clear()
                await self._supply()
        finally:
            self._scheduler._supply_by(self._bucket, None)
            loop.remove_reader(mailbox.fileno())
            self.begun = False

    async def close(self) -> None:
        """Tells the backend of what has been granted, used or not, when the scheduler ends."""
        credit = _core.credit(self._bucket)
        _core.grant(self._bucket, {name: -amount for name, amount in credit.items()})
        with self._lock:
            self._used_up.extend(self._grants)
            self._grants.clear()
        await self._tell()
        loop = asyncio.get_running_loop()
        mine = {task for task in self._telling if task.get_loop() is loop}
        mine.discard(asyncio.current_task())
        await asyncio.gather(*mine, return_exceptions=True)

    async def _tell(self) -> None:
        """Tells the backend of the grants that have been used up."""
        task = asyncio.current_task()
        assert task is not None
        self._telling.add(task)
        try:
            while self._used_up:
                await self._release(self._used_up.popleft())
        finally:
            self._telling.discard(task)

    async def _supply(self) -> None:
        batch = BATCH
        while True:
            count, amounts = self._scheduler._demand(self._bucket, batch)
            if not count:
                await self._give_back()
                return
            credit = _core.credit(self._bucket)
            wanted = {name: max(0, amounts[name] - credit[name]) for name in credit}
            if not any(wanted.values()):
                return  # what holds the head up is something else
            wait = await self._ask(count, wanted["requests"], wanted["tokens"])
            if wait is None:
                batch = BATCH
            elif batch > 1:
                batch = 1  # perhaps there is room for whoever is first
            else:
                await asyncio.sleep(await self._wait(wait))
                batch = BATCH

    async def _wait(self, own: float) -> float:
        """Seconds until asking again makes sense, as the backend says, or else `own`."""
        origin = f"check_capacity of backend {type(self._backend).__name__!r}"
        with contextlib.suppress(RateLimiterError):  # logged and counted
            given: Any = await self._scheduler._user_code.call(
                origin, self._backend.check_capacity, self._bucket.name
            )
            wait = given[1] if isinstance(given, tuple) and len(given) == 2 else None
            if isinstance(wait, (int, float)) and math.isfinite(wait) and wait > 0:
                return min(max(float(wait), _LEAST_PAUSE), _LONGEST_PAUSE)
        return own

    async def _ask(self, count: int, requests: int, tokens: int) -> float | None:
        """Asks for so much; None where it was granted, else seconds until it may be asked again."""
        scheduler = self._scheduler
        user_code = scheduler._user_code
        origin = f"check_and_reserve_capacity of backend {type(self._backend).__name__!r}"
        try:
            given: Any = await user_code.call(
                origin,
                self._backend.check_and_reserve_capacity,
                self._bucket.name,
                requests,
                tokens,
                dict(self.limits) or None,
                scheduler.config.rate_limit_buffer_ratio,
                str(uuid.uuid4()),
            )
            if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[0], bool):
                raise user_code.nonsense(origin, given, "must be a pair of a bool and an id")
        except RateLimiterError:  # logged and counted; without an answer nothing is let through
            return self._pause()
        granted, reservation_id = given
        if not granted:
            return self._told(reservation_id)
        self._refused = 0
        with self._lock:
            self._grants.append(_Grant(reservation_id, count, tokens))
        _core.grant(self._bucket, {"requests": requests, "tokens": tokens})
        return None

    def _told(self, refusal: object) -> float:
        """Some backends say for how long they refuse, in the place of the id."""
        if isinstance(refusal, str) and refusal.startswith("RATE_LIMITED:"):
            with contextlib.suppress(ValueError):
                seconds = float(refusal.partition(":")[2])
                if math.isfinite(seconds):
                    return min(max(seconds, _LEAST_PAUSE), _LONGEST_PAUSE)
        return self._pause()

    def _pause(self) -> float:
        self._refused = min(self._refused + 1, 16)
        longest = min(_LEAST_PAUSE * 2.0**self._refused, _LONGEST_PAUSE)
        return longest * (0.5 + random.random() / 2)

    async def _give_back(self) -> None:
        """Nobody waits: what was granted and not used is nobody's here."""
        credit = _core.credit(self._bucket)
        if not any(credit.values()) or self._bucket.in_flight:
            return
        await self.close()

    async def _release(self, grant: _Grant) -> None:
        """Tells the backend what has become of a grant."""
        backend, name = self._backend, self._bucket.name
        if grant.reservation_id is None:
            return
        whose = f"backend {type(backend).__name__!r}"
        with contextlib.suppress(RateLimiterError):  # logged and counted
            if grant.ended == 0:
                await self._scheduler._user_code.call(
                    f"release_reservation of {whose}",
                    backend.release_reservation,
                    name,
                    grant.reservation_id,
                )
            else:
                await self._scheduler._user_code.call(
                    f"release_streaming_reservation of {whose}",
                    backend.release_streaming_reservation,
                    name,
                    grant.reservation_id,
                    grant.tokens,
                    grant.used,
                )
