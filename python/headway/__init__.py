"""Headway keeps an application's outgoing calls just under every limit that its providers count."""

from __future__ import annotations

from headway._core import Denial, Limit, ManualClock, Reservation, __version__
from headway.errors import (
    CapacityExceededError,
    DeadlineExceededError,
    RateLimiterError,
    SchedulerStoppedError,
)
from headway.limiter import Explanation, Limiter, LimitState

__all__ = [
    "CapacityExceededError",
    "DeadlineExceededError",
    "Denial",
    "Explanation",
    "Limit",
    "LimitState",
    "Limiter",
    "ManualClock",
    "RateLimiterError",
    "Reservation",
    "SchedulerStoppedError",
    "__version__",
]
