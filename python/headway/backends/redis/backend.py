"""RedisBackend: the words of a bucket in Redis, for all processes that name it alike."""

from __future__ import annotations

import dataclasses
import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from headway._core import Limit, LimiterCore
from headway.backends.redis._connect import Connector
from headway.backends.redis._courier import Courier
from headway.errors import ConfigurationError

if TYPE_CHECKING:
    from headway.limiter import Explanation

_PARTS = ("words", "peers", "deadlines", "leaving", "counted")


@final
class RedisBackend:
    """Limits that many processes and hosts share: what each is admitted is counted in Redis.

    For `Limiter(limits, backend=..., name=...)`: all limiters of one name in one namespace and
    account share their limits. A scheduler does not take it yet.

    redis_url: None for the environment's REDIS_URL, else redis://localhost:6379. redis_client: a
    client of redis-py instead, of asyncio or not; connections of our own are made as its are, it
    is not used itself. account_id, namespace: keep apart what several tenants and applications keep
    in one Redis. key_ttl: seconds after which Redis forgets what nobody uses; twice the longest
    period at least. max_connections: of our own. heartbeat: seconds; a process that is not heard of
    for two of them has its concurrency given to others, while what it has used of rates stays
    counted. operation_timeout: seconds that Redis may take to answer.

    Nothing is asked of Redis before somebody waits, so it may be away at first; while it is, nobody
    is admitted. Thread-safe; a forked child has connections of its own. `close`, or the end of the
    process, gives back what is not used.
    """

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
        self.account_id = account_id
        self.namespace = namespace
        self.key_ttl = key_ttl
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

    def _explained(self, words: LimiterCore, said: Explanation) -> Explanation:
        """With how full each limit is by all who share it, as Redis has said last."""
        books = self._courier.books(words)
        used = [] if books is None else books.in_use()
        if books is None or not used:
            return said
        shared = f"shared by {books.peers} process{'es' if books.peers != 1 else ''} in Redis"
        limits = tuple(
            dataclasses.replace(
                state, used=held, available=max(0, state.capacity - held), learnt=shared
            )
            for state, held in zip(said.limits, used, strict=False)
        )
        return dataclasses.replace(said, limits=limits)

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
