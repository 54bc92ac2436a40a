"""Backends: where the state of limits is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.backends.base import BaseBackend, HealthCheckResult, validate_safety_margin
from headway.backends.memory import MemoryBackend

__all__ = ["BaseBackend", "HealthCheckResult", "MemoryBackend", "validate_safety_margin"]

# Not in __all__ before they exist: `import *` would fail for their sake.
_OF_REDIS = frozenset({"FallbackRateLimiter", "InFlightRequest", "ModelLimits", "RedisBackend"})


if not TYPE_CHECKING:  # where it would make every misspelt name look like one of ours

    def __getattr__(name: str) -> object:
        if name in _OF_REDIS:
            raise ImportError(
                f"'{name}' needs the extra headway[redis], which is not there yet either: nothing "
                "that could be installed brings it. Use MemoryBackend, or write a BaseBackend"
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
