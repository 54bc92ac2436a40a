"""A client of our own, that blocks, to wherever the user's client or URL leads."""

from __future__ import annotations

import os
import re
import weakref
from typing import Any, final
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from headway.errors import ConfigurationError

DEFAULT_URL = "redis://localhost:6379"

# What a connection is made with that is of an event loop, or ours to say.
_NOT_OURS = frozenset({"retry", "retry_on_error", "retry_on_timeout"})
_KINDS: dict[type[Any], type[Any]] = {
    redis.asyncio.Connection: redis.Connection,
    redis.asyncio.SSLConnection: redis.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_POOLS = (
    redis.ConnectionPool,
    redis.BlockingConnectionPool,
    redis.asyncio.ConnectionPool,
    redis.asyncio.BlockingConnectionPool,
)


@final
class Connector:
    """Makes clients that answer within `timeout` seconds or raise. Asks Redis nothing itself.

    url, client: as RedisBackend's. most: connections of one client.
    """

    def __init__(self, url: str | None, client: Any, timeout: float, most: int) -> None:
        if client is None:
            leads = url or os.environ.get("REDIS_URL") or DEFAULT_URL
            try:
                like = redis.ConnectionPool.from_url(leads)
            except ValueError as error:
                raise ConfigurationError(f"redis_url {_public(leads)!r}: {error}") from None
        else:
            like = _pool_of(client)
        made_with = {
            name: value for name, value in like.connection_kwargs.items() if name not in _NOT_OURS
        }
        self._theirs = made_with.get("redis_connect_func")
        self._made_with: dict[str, Any] = {
            **made_with,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # What was not answered may have been done: the books say what that was, a repetition
            # would be another turn.
            "retry": Retry(NoBackoff(), 0),
            "redis_connect_func": self._connected,
        }
        self.run_id = ""
        """Of the server that was connected to last: another one after that was started anew.

        Empty where the server does not tell it to this user.
        """
        self._most = most
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kind = _KINDS.get(like.connection_class, like.connection_class)

    def make(self) -> Any:
        """A client with no connection yet."""
        pool = redis.ConnectionPool(
            connection_class=self._kind, max_connections=self._most, **self._made_with
        )
        return redis.Redis.from_pool(pool)

    def after_fork(self) -> None:
        """In a forked child: closes its copies of its parent's sockets, which stay connected."""
        for connection in list(self._connections):
            connection.disconnect()
        self._connections.clear()

    def _connected(self, connection: Any) -> None:
        """What a connection does first: what it would by itself, and asking which server it is."""
        self._connections.add(connection)
        if self._theirs is None:
            connection.on_connect()
        else:
            self._theirs(connection)
        connection.send_command("INFO", "server")
        try:
            told = connection.read_response(disable_decoding=True)
        except ResponseError:
            told = b""
        found = _RUN_ID.search(told if isinstance(told, bytes) else told.encode())
        self.run_id = found[1].decode() if found else ""


def _pool_of(client: Any) -> Any:
    pool = getattr(client, "connection_pool", None)
    # By its very type: one of Sentinel's asks where the master is, which ours would not.
    if type(pool) not in _POOLS:
        what = type(client).__name__ if pool is None else f"one of {type(pool).__name__}"
        raise ConfigurationError(
            f"redis_client must be a redis.Redis or redis.asyncio.Redis, got {what}"
        )
    return pool


def _public(url: str) -> str:
    """Without what is secret in it."""
    parts = urlsplit(url)
    if parts.password is None and parts.username is None:
        return url
    host = parts.hostname or ""
    return parts._replace(netloc=f"***@{host}" + (f":{parts.port}" if parts.port else "")).geturl()
