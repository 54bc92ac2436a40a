"""RedisBackend: the words of a bucket in Redis, for all processes that name it alike."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from headway._core import Limit, LimiterCore, Reservation
from headway.backends._shared import limits_of
from headway.backends._verbs import Verbs
from headway.backends._words import KeyWords
from headway.backends.base import HealthCheckResult, validate_safety_margin
from headway.backends.redis._connect import Connector
from headway.backends.redis._courier import GRANTED_AHEAD, Courier
from headway.errors import CapacityExceededError, ConfigurationError

if TYPE_CHECKING:
    from headway.limiter import Explanation, LimitState

_PARTS = ("words", "peers", "deadlines", "leaving", "counted")

_RELEASED_TTL = 3600.0
"""Seconds for which a second release is known as one."""
_TURNS = 4
"""Operations that may have to time out before somebody who waits has been asked for."""


def _tell(loop: asyncio.AbstractEventLoop, asked: asyncio.Future[None]) -> None:
    """From another thread; nothing where the loop is closed by now."""

    def tell() -> None:
        if not asked.done():
            asked.set_result(None)

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)


def _cancel_taken(waiting: asyncio.Future[Reservation]) -> None:
    """Whoever it was for has gone."""
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().cancel()


@final
class RedisBackend(Verbs):
    """Limits that many processes and hosts share: what each is admitted is counted in Redis.

    For `Limiter(limits, backend=..., name=...)` and for schedulers: whatever has one name in one
    namespace and account shares the limits that were given for it; a scheduler's buckets are called
    as they are in its metrics. What a scheduler finds out from answers, where no limit was given,
    stays its own.

    redis_url: None for the environment's REDIS_URL, else redis://localhost:6379. redis_client: a
    client of redis-py instead, of asyncio or not; connections of our own are made as its are, it
    is not used itself. account_id, namespace: keep apart what several tenants and applications keep
    in one Redis. key_ttl: seconds after which Redis forgets what nobody uses; twice the longest
    period at least. max_connections: of our own. heartbeat: seconds; a process that is not heard of
    for two of them has its concurrency given to others, while what it has used of rates stays
    counted. operation_timeout: seconds that Redis may take to answer.

    Nothing is asked of Redis before somebody waits, so it may be away at first; while it is, nobody
    is admitted. Thread-safe; a forked child has connections of its own. `close`, or the end of the
    process, gives back what is not used; a scheduler that stops does not close it.

    What is reserved with `check_and_reserve_capacity` counts as there, by limits a minute that all
    share. States, failures and what providers said are this process's own.
    """

    _shares = True

    def __init__(
        self,
        redis_url: str | None = None,
        redis_client: Any = None,
        account_id: str = "default",
        namespace: str = "rate_limiter",
        key_ttl: float = 86400,
        *,
        max_connections: int = 10,
        heartbeat: float = 5.0,
        operation_timeout: float = 0.5,
    ) -> None:
        given = {
            "key_ttl": key_ttl,
            "max_connections": max_connections,
            "heartbeat": heartbeat,
            "operation_timeout": operation_timeout,
        }
        for name, value in given.items():
            _check_positive(name, value)
        texts: dict[str, object] = {"account_id": account_id, "namespace": namespace}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise ConfigurationError(f"{name} must be a str, got {text!r}")
        super().__init__(namespace, key_ttl, _RELEASED_TTL)
        self.account_id = account_id
        self.key_ttl = key_ttl
        self._patience = operation_timeout
        connector = Connector(redis_url, redis_client, operation_timeout, max_connections)
        self._courier = Courier(connector, heartbeat, key_ttl)

    def keys(self, name: str) -> list[str]:
        """All keys that there are for the limits of that name, in one hash slot of a cluster."""
        tag = ":".join(map(_quoted, (self.namespace, self.account_id, name)))
        return [f"headway:{{{tag}}}:{part}" for part in _PARTS]

    def _take_on(self, words: LimiterCore, name: str) -> None:
        """Redis grants the credit of these words from now on; a limiter calls it."""
        self._courier.take_on(words, name, self.keys(name))

    def _set_limit(
        self, words: LimiterCore, meter: int, limit: Limit, *, proportional: bool = False
    ) -> None:
        """A limit of theirs has changed, and holds from now on for all who share it."""
        self._courier.set_limit(words, meter, limit, proportional)

    def _share(self, words: KeyWords, key: str) -> None:
        words.tells = self._set_limit
        words.in_use = self._in_use
        self._take_on(words, key)

    def _in_use(self, words: LimiterCore) -> dict[int, int]:
        books = self._courier.books(words)
        return {} if books is None else books.in_use()

    def _asked(
        self, key: str, bucket_limits: dict[str, int] | None, safety_margin: float
    ) -> KeyWords | None:
        now = self._now()
        if bucket_limits is not None and self._words.get(key, now) is None:
            given = limits_of(bucket_limits, safety_margin)
            self._make(key, now, [Limit(*each, 60.0) for each in given]).learn_given()
        return super()._asked(key, bucket_limits, safety_margin)

    async def check_and_reserve_capacity(  # noqa: PLR0917 - the order is promised
        self,
        key: str,
        requests: int,
        tokens: int,
        bucket_limits: dict[str, int] | None = None,
        safety_margin: float = 1.0,
        request_id: str | None = None,
    ) -> tuple[bool, str | None]:
        """Takes both amounts or nothing, of what all share; whether it did, and the id.

        As MemoryBackend's. Redis is asked once; refuses also while it does not answer.
        """
        validate_safety_margin(safety_margin)
        with self._lock:
            words = self._asked(key, bucket_limits, safety_margin)
        reservation = None if words is None else await self._reserve(words, requests, tokens)
        if words is None or reservation is None:
            return False, None
        with self._lock:
            return True, self._hold(key, words, reservation, (requests, tokens), request_id)

    async def _reserve(self, words: KeyWords, *amounts: int) -> Reservation | None:
        """As of whoever waits, until Redis has answered for him once."""
        if not words.shared:
            taken = words.try_reserve(*amounts)
            return taken if isinstance(taken, Reservation) else None

        async def wait() -> Reservation:
            return await words.acquire(*amounts)

        loop = asyncio.get_running_loop()
        asked = loop.create_future()
        waiting = asyncio.ensure_future(wait())
        try:
            await asyncio.sleep(0)  # it waits by now, unless it has gone already
            if not waiting.done():
                self._courier.tell_when_asked(words, partial(_tell, loop, asked))
                both: set[asyncio.Future[Any]] = {waiting, asked}
                until_asked = _TURNS * self._patience
                await asyncio.wait(both, timeout=until_asked, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():  # what was granted may be for a moment later
                await asyncio.wait({waiting}, timeout=GRANTED_AHEAD)
            waiting.cancel()
            await asyncio.wait({waiting})
        except BaseException:
            waiting.add_done_callback(_cancel_taken)
            waiting.cancel()
            raise
        if waiting.cancelled():
            return None
        never = isinstance(waiting.exception(), CapacityExceededError)
        return None if never else waiting.result()

    def _explained(self, words: LimiterCore, said: Explanation) -> Explanation:
        """With how full each limit is by all who share it, as Redis has said last."""
        books = self._courier.books(words)
        used = {} if books is None else books.in_use()
        if books is None or not used:
            return said
        asked = dict(zip(said.resources, said.amounts, strict=True))
        by_limit = {books.limits[meter]: held for meter, held in used.items()}
        shared = f"shared by {books.peers} process{'es' if books.peers != 1 else ''} in Redis"

        def with_all(state: LimitState) -> LimitState:
            held = by_limit.get(state.limit)
            if held is None:
                return state
            left = max(0, state.capacity - held)
            # When others give it back, nobody here can tell.
            waits = left < asked[state.limit.resource] and state.ready_in == 0
            ready_in = None if waits else state.ready_in
            return dataclasses.replace(
                state, used=held, available=left, ready_in=ready_in, learnt=shared
            )

        return dataclasses.replace(said, limits=tuple(map(with_all, said.limits)))

    async def health_check(self) -> HealthCheckResult:
        """Whether Redis answers, as it was asked last; `state` is "normal" or "degraded"."""
        broken = self._courier.is_broken
        stats = await self.get_all_stats()
        metadata = {
            "state": "degraded" if broken else "normal",
            "account_id": self.account_id,
            "scripts": self._courier.scripts,
            "reservations_count": stats["reservations_count"],
            "circuit_broken": stats["circuit_broken"],
            "failures_count": stats["total_failures"],
        }
        error = "Redis does not answer" if broken else None
        return HealthCheckResult(not broken, "redis", self.namespace, error, metadata)

    def close(self) -> None:
        """Gives back what nobody has used, and ends: nobody is admitted any more.

        Blocks for `operation_timeout` at most.
        """
        self._courier.stop()

    def __enter__(self) -> RedisBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RedisBackend(namespace={self.namespace!r}, account_id={self.account_id!r})"


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigurationError(f"{name} must be a positive number, got {value!r}")


def _quoted(part: str) -> str:
    """As part of a key: no brace and no colon of it is one of the key's."""
    safe = part.replace("%", "%25")
    for each in ":{}":
        safe = safe.replace(each, f"%{ord(each):02X}")
    return safe
