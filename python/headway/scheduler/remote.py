"""Buckets whose words are a user's own backend's: it is asked for many requests at a time.

The order in which requests go stays the core's. What the backend admits is granted to the bucket
as credit, for as many of those that wait as one question covers; they go as far as it lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final
from weakref import WeakValueDictionary

from headway import _core
from headway._loop import watch
from headway.errors import RateLimiterError
from headway.scheduler.chores import running_loop, until_set

if TYPE_CHECKING:
    from headway.backends import BaseBackend
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

BATCH = 50
"""Requests that one question covers at most."""

_LEAST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
"""Seconds until a backend that has refused is asked again, where it does not say."""
_KEPT = 1.0
"""Seconds for which credit that nobody uses is kept; twice that at most."""
_GRACE = 5.0
"""Seconds for which a stop waits for what the backend has been asked and told already."""


@dataclass(eq=False)
class _Grant:
    """What one question has brought; `left` of it has neither been used nor been given back."""

    reservation_id: str | None
    tokens: int
    left_requests: int
    left_tokens: int
    used: int = 0
    begun: bool = False
    """Whether anything of it has been used: then the requests stay spent."""

    @property
    def is_over(self) -> bool:
        return not self.left_requests and not self.left_tokens


@final
class RemoteBucket:
    """The books of one bucket: what was granted, and what has become of it. From any thread.

    What the grants have left, all together, is the credit that nobody has taken and what calls hold
    that are under way. Which call went on which grant cannot be told, and does not matter: the
    oldest counts as used first, the youngest as given back first.

    limits: as the backend is to know them, `rpm_limit` and `tpm_limit`, where they are known.
    given: which of them the user has given.
    """

    def __init__(self, supply: Supply, name: str, words: _core.LimiterCore) -> None:
        self.name = name
        self.words = words
        self.limits: dict[str, int] = {}
        self.given: frozenset[str] = frozenset()
        self.refused = 0
        self._supply = supply
        self._lock = threading.Lock()
        self._grants: deque[_Grant] = deque()
        self._over: deque[_Grant] = deque()
        self._spent = (0, 0, 0)  # that is in the books
        self._last_seen: object = None

    @property
    def holds(self) -> bool:
        """Whether the backend is still to be told of something."""
        return bool(self._grants or self._over)

    def ended(self) -> None:
        """An attempt has ended, and perhaps a grant with it.

        Never blocks, for it may run wherever garbage is collected; what it misses for that is found
        when unused credit is looked for.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._enter_spent()
        finally:
            self._lock.release()
        if self._over:
            self._supply.tell_later(self)

    def granted(self, reservation_id: str | None, requests: int, tokens: int) -> None:
        """The backend has granted so much; where nobody wants it any more, it is to be released."""
        grant = _Grant(reservation_id, tokens, requests, tokens)
        with self._lock:
            if not self._supply.is_open:
                self._over.append(grant)
                self._supply.hold(self)
                return
            self._grants.append(grant)
            self._last_seen = None
            _core.grant(self.words, {"requests": requests, "tokens": tokens})

    def has_idle_credit(self) -> bool:
        """Whether there is some, and nobody has taken of it since this was asked last."""
        credit = _core.credit(self.words)
        with self._lock:
            seen, self._last_seen = self._last_seen, credit
        return any(credit.values()) and seen == credit

    def give_back(self) -> None:
        """Nobody may use any more what nobody has used so far."""
        with self._lock:
            self._enter_spent()
            self._take_back()

    def close(self) -> None:
        """What calls hold that have not ended by now counts as used: they tell nobody any more."""
        with self._lock:
            self._enter_spent()
            self._take_back()
            held = _Grant(None, 0, 0, 0)
            for grant in self._grants:
                held.left_requests += grant.left_requests
                held.left_tokens += grant.left_tokens
                grant.used += grant.left_tokens
                grant.begun = True
            self._over.extend(self._grants)
            self._grants.clear()
            if not held.is_over:
                self._grants.append(held)

    @property
    def count_over(self) -> int:
        """How many grants the backend is to be told of now."""
        return len(self._over)

    def next_over(self) -> _Grant | None:
        """A grant that the backend is to be told of, once."""
        with contextlib.suppress(IndexError):
            return self._over.popleft()
        return None

    def _enter_spent(self) -> None:
        spent = _core.spent(self.words)
        now = (spent["requests"][0], *spent["tokens"])
        requests, tokens, used = (a - b for a, b in zip(now, self._spent, strict=True))
        self._spent = now
        last = None
        for grant in self._grants:
            if not requests and not tokens:
                break
            of_requests = min(requests, grant.left_requests)
            of_tokens = min(tokens, grant.left_tokens)
            if not of_requests and not of_tokens:
                continue
            last = grant
            grant.begun = True
            grant.left_requests -= of_requests
            grant.left_tokens -= of_tokens
            part = min(used, of_tokens)
            grant.used += part
            requests, tokens, used = requests - of_requests, tokens - of_tokens, used - part
        if last is not None:
            last.used += used  # more than was estimated
        self._put_over()

    def _take_back(self) -> None:
        back = _core.take_back(self.words)
        requests, tokens = back["requests"], back["tokens"]
        for grant in reversed(self._grants):
            of_requests = min(requests, grant.left_requests)
            of_tokens = min(tokens, grant.left_tokens)
            grant.left_requests -= of_requests
            grant.left_tokens -= of_tokens
            requests, tokens = requests - of_requests, tokens - of_tokens
        self._put_over()

    def _put_over(self) -> None:
        if not any(grant.is_over for grant in self._grants):
            return
        self._over.extend(grant for grant in self._grants if grant.is_over)
        self._grants = deque(grant for grant in self._grants if not grant.is_over)


@final
class Supply:
    """Asks a backend on behalf of all buckets of one scheduler, among the scheduler's chores."""

    def __init__(self, scheduler: Scheduler, backend: BaseBackend) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._whose = f"backend {type(backend).__name__!r}"
        self._buckets: WeakValueDictionary[int, RemoteBucket] = WeakValueDictionary()
        # Those that the backend may have to be told of, even where the bucket is forgotten.
        self._holding: set[RemoteBucket] = set()
        self._lock = threading.Lock()
        self._calls: dict[Future[None], asyncio.AbstractEventLoop] = {}
        self._mailbox: _core.Mailbox | None = None
        # Of the last run alone: what one on a loop that stands still has begun may never end.
        self._supplying: set[RemoteBucket] = set()
        self._asking: set[RemoteBucket] = set()
        self.is_open = False
        """Whether the backend may be called."""

    def take_on(self, bucket: Bucket, words: _core.LimiterCore) -> RemoteBucket:
        """From now on it is asked for this bucket, as long as that lives."""
        remote = RemoteBucket(self, bucket.name, words)
        self._buckets[bucket._which] = remote
        self._scheduler._supply(bucket)
        return remote

    def open(self) -> None:
        """The backend has been started."""
        for remote in self._all():
            remote.give_back()  # of calls that were cancelled after the last stop
        self.is_open = True

    async def close(self) -> None:
        """Tells the backend of all that it has granted; afterwards it is not called any more."""
        with self._lock:
            self.is_open = False
            # Where their loop does not run, nobody goes on with them.
            # Of a copy: they end without the lock, as they may wherever garbage is collected.
            under_way = self._calls.copy()
            calls = [over for over, loop in under_way.items() if loop.is_running()]
        if calls:
            await asyncio.wait([asyncio.wrap_future(over) for over in calls], timeout=_GRACE)
        tellings = []
        for remote in self._all():
            remote.close()
            tellings += [self._tell_next(remote) for _ in range(remote.count_over)]
        await asyncio.gather(*tellings)

    async def run(self) -> None:
        """Until it is cancelled."""
        mailbox = await self._scheduler._user_code.open_mailbox(self._whose, _LONGEST_PAUSE)
        loop = asyncio.get_running_loop()
        asked = asyncio.Event()
        unwatch = watch(loop, mailbox, asked.set)
        self._signal(mailbox)
        supplying: set[RemoteBucket] = set()
        self._supplying = supplying
        self._asking = set()
        look_at = loop.time() + _KEPT
        try:
            # Who has asked while nobody was here, or was left by somebody who has gone.
            self._begin(self._all(), supplying)
            while True:
                left = look_at - loop.time() if self._holding else math.inf
                await until_set(asked, max(0.0, left))
                if self._mailbox is not mailbox:
                    return  # the loop stood still, and somebody else has come in its place
                mailbox.clear()
                asked.clear()
                asking = map(self._buckets.get, self._scheduler._asked())
                self._begin(asking, supplying)
                if loop.time() >= look_at:
                    look_at = loop.time() + _KEPT
                    self._look(supplying)
        finally:
            # Else it was closed as garbage, somewhere, after its loop: nothing of it is left.
            if running_loop() is loop:
                self._signal_no_more(mailbox)
                unwatch()
                self._scheduler._life.leave_loop()

    def hold(self, remote: RemoteBucket) -> None:
        """Keeps it until the backend has been told of all that it holds."""
        self._holding.add(remote)

    def tell_later(self, remote: RemoteBucket) -> None:
        """Tells the backend of what has come to its end there. From any thread."""
        self._scheduler._chores.start(partial(self._tell, remote), ends=True)

    def _all(self) -> set[RemoteBucket]:
        alive = {reference() for reference in self._buckets.valuerefs()}
        return {remote for remote in alive if remote is not None} | self._holding

    def _signal(self, mailbox: _core.Mailbox) -> None:
        with self._lock:
            self._mailbox = mailbox
            self._scheduler._supply_by(mailbox)

    def _signal_no_more(self, mailbox: _core.Mailbox) -> None:
        """Unless somebody else has come in its place: a stop and a start leave no time between."""
        with self._lock:
            if self._mailbox is mailbox:
                self._mailbox = None
                self._scheduler._supply_by(None)

    def _begin(self, remotes: Iterable[RemoteBucket | None], supplying: set[RemoteBucket]) -> None:
        for remote in remotes:
            if remote is not None and remote not in supplying:
                supplying.add(remote)
                self.hold(remote)
                supply = partial(self._supply, remote, supplying)
                self._scheduler._chores.start(supply, ends=True)

    def _look(self, supplying: set[RemoteBucket]) -> None:
        """Takes back what nobody uses; whoever waits for something else asks anew when he may go.

        What a head at the gate holds stays its own, or somebody else would go in its turn.
        """
        for remote in tuple(self._holding):
            remote.ended()
            if remote not in self._asking and remote.has_idle_credit():
                _, at_gate, _ = self._scheduler._demand(remote.words, 1)
                if not at_gate:
                    remote.give_back()
                    remote.ended()
            if not remote.holds and remote not in supplying:
                self._holding.discard(remote)

    @contextlib.contextmanager
    def _calling(self) -> Iterator[bool]:
        """Whether the backend may be called in it; who closes waits for those who do."""
        over: Future[None] = Future()
        over.set_running_or_notify_cancel()
        with self._lock:
            may = self.is_open
            if may:
                self._calls[over] = asyncio.get_running_loop()
        try:
            yield may
        finally:
            self._calls.pop(over, None)
            over.set_result(None)

    async def _supply(self, remote: RemoteBucket, supplying: set[RemoteBucket]) -> None:
        """Asks until nobody waits for credit there."""
        batch = BATCH
        try:
            while self.is_open and self._supplying is supplying:
                count, _, amounts = self._scheduler._demand(remote.words, batch)
                credit = _core.credit(remote.words)
                wanted = {name: max(0, amounts[name] - credit[name]) for name in credit}
                if not count or not any(wanted.values()):
                    return
                wait = await self._ask(remote, wanted["requests"], wanted["tokens"])
                if wait is None:
                    batch = BATCH
                elif batch > 1:
                    batch = 1  # perhaps there is room for whoever is first
                else:
                    await asyncio.sleep(await self._wait(remote, wait))
                    batch = BATCH
        finally:
            # In the step that has seen that nobody waits: who comes later is told of again.
            supplying.discard(remote)

    async def _wait(self, remote: RemoteBucket, own: float) -> float:
        """Seconds until asking again makes sense, as the backend says, or else `own`."""
        origin = f"check_capacity of {self._whose}"
        with self._calling() as may, contextlib.suppress(RateLimiterError):  # logged and counted
            if not may:
                return own
            given: Any = await self._scheduler._user_code.call(
                origin, self._backend.check_capacity, remote.name
            )
            wait = given[1] if isinstance(given, tuple) and len(given) == 2 else None
            if isinstance(wait, (int, float)) and math.isfinite(wait) and wait > 0:
                return min(max(float(wait), _LEAST_PAUSE), _LONGEST_PAUSE)
        return own

    async def _ask(self, remote: RemoteBucket, requests: int, tokens: int) -> float | None:
        """Asks for so much; seconds until it may be asked again where that was refused."""
        user_code = self._scheduler._user_code
        origin = f"check_and_reserve_capacity of {self._whose}"

        async def question() -> Any:
            given = await user_code.run(
                self._backend.check_and_reserve_capacity,
                remote.name,
                requests,
                tokens,
                dict(remote.limits) or None,
                self._scheduler.config.rate_limit_buffer_ratio,
                str(uuid.uuid4()),
            )
            # In the step in which the answer comes: whoever has asked may be gone.
            if _is_answer(given) and given[0]:
                remote.granted(given[1], requests, tokens)
            return given

        with self._calling() as may:
            if not may:
                return None
            asking = self._asking
            asking.add(remote)
            try:
                given = await user_code.call(origin, question)
                if not _is_answer(given):
                    raise user_code.nonsense(origin, given, "must be a pair of a bool and an id")
            except RateLimiterError:  # logged and counted; without an answer nothing goes
                return self._pause(remote)
            finally:
                asking.discard(remote)
        if not given[0]:
            return self._told(remote, given[1])
        remote.refused = 0
        return None

    def _told(self, remote: RemoteBucket, refusal: object) -> float:
        """Some backends say for how long they refuse, in the place of the id."""
        if isinstance(refusal, str) and refusal.startswith("RATE_LIMITED:"):
            with contextlib.suppress(ValueError):
                seconds = float(refusal.partition(":")[2])
                if math.isfinite(seconds):
                    return min(max(seconds, _LEAST_PAUSE), _LONGEST_PAUSE)
        return self._pause(remote)

    def _pause(self, remote: RemoteBucket) -> float:
        remote.refused = min(remote.refused + 1, 16)
        longest = min(_LEAST_PAUSE * 2.0**remote.refused, _LONGEST_PAUSE)
        return longest * (0.5 + random.random() / 2)

    async def _tell(self, remote: RemoteBucket) -> None:
        """Tells the backend of all that has come to its end there."""
        with self._calling() as may:
            while may and remote.count_over:
                await self._tell_next(remote)

    async def _tell_next(self, remote: RemoteBucket) -> None:
        """Tells the backend what has become of one grant."""
        user_code = self._scheduler._user_code

        async def tell() -> None:
            # Taken in the step that tells: where its task is cancelled before, it is left here.
            grant = remote.next_over()
            if grant is None or grant.reservation_id is None:
                return
            name, given = remote.name, grant.reservation_id
            if grant.begun:
                release = self._backend.release_streaming_reservation
                await user_code.run(release, name, given, grant.tokens, grant.used)
            else:
                await user_code.run(self._backend.release_reservation, name, given)

        with contextlib.suppress(RateLimiterError):  # logged and counted
            await user_code.call(f"release of {self._whose}", tell)


def _is_answer(given: object) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], bool)
