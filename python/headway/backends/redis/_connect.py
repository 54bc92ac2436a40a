"""A client of our own, that blocks, to wherever the user's client or URL leads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from headway.errors import ConfigurationError

DEFAULT_URL = "redis://localhost:6379"

# What a connection is made with that is of an event loop, or ours to say.
_NOT_OURS = frozenset({"retry", "retry_on_error", "retry_on_timeout", "socket_timeout"})
_KINDS: dict[type[Any], type[Any]] = {
    redis.asyncio.Connection: redis.Connection,
    redis.asyncio.SSLConnection: redis.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}


def connector(
    url: str | None, client: Any, operation_timeout: float, most: int
) -> Callable[[], Any]:
    """Makes clients that answer within `operation_timeout` seconds or raise; asks nothing."""
    ours: dict[str, Any] = {
        "socket_timeout": operation_timeout,
        "socket_connect_timeout": operation_timeout,
        # What was not answered may have been done: the books say what that was, a repetition would
        # be another turn.
        "retry": Retry(NoBackoff(), 0),
    }
    if client is None:
        leads = url or os.environ.get("REDIS_URL") or DEFAULT_URL
        try:
            redis.ConnectionPool.from_url(leads)
        except ValueError as error:
            raise ConfigurationError(f"redis_url {_public(leads)!r}: {error}") from None
        return lambda: redis.Redis.from_url(leads, max_connections=most, **ours)
    pool = getattr(client, "connection_pool", None)
    if not isinstance(pool, (redis.ConnectionPool, redis.asyncio.ConnectionPool)):
        raise ConfigurationError(
            f"redis_client must be a client of redis-py, got {type(client).__name__}"
        )
    made_with = {
        name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_OURS
    }
    kind = _KINDS.get(pool.connection_class, pool.connection_class)

    def make() -> Any:
        own = redis.ConnectionPool(
            connection_class=kind, max_connections=most, **{**made_with, **ours}
        )
        return redis.Redis.from_pool(own)

    return make


def _public(url: str) -> str:
    """Without what is secret in it."""
    parts = urlsplit(url)
    if parts.password is None and parts.username is None:
        return url
    host = parts.hostname or ""
    return parts._replace(netloc=f"***@{host}" + (f":{parts.port}" if parts.port else "")).geturl()
