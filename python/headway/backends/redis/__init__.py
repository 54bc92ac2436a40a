"""RedisBackend: one limit for many processes and hosts."""

from headway.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
