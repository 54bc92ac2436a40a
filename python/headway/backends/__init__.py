"""Backends: where the state of limits is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.backends.base import BaseBackend, HealthCheckResult, validate_safety_margin
from headway.backends.memory import MemoryBackend

__all__ = ["BaseBackend", "HealthCheckResult", "MemoryBackend", "validate_safety_margin"]

# Not in __all__: `import *` would fail where redis-py is not installed, or before they exist.
_NOT_YET = frozenset({"FallbackRateLimiter", "InFlightRequest", "ModelLimits"})


if TYPE_CHECKING:
    from headway.backends.redis import RedisBackend as RedisBackend
else:  # where it would make every misspelt name look like one of ours

    def __getattr__(name: str) -> object:
        if name == "RedisBackend":
            try:
                from headway.backends.redis import RedisBackend
            except ModuleNotFoundError as error:
                if error.name != "redis":
                    raise
                raise ImportError(
                    "'RedisBackend' requires the 'redis' extra. "
                    "Install with: pip install headway[redis]"
                ) from None
            return RedisBackend
        if name in _NOT_YET:
            raise ImportError(
                f"'{name}' is not there yet: it comes with the rest of headway[redis]"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
