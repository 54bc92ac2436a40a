"""Scheduling: who may call when, and with which options."""

from __future__ import annotations

from headway.scheduler.config import (
    CachePolicy,
    RateLimiterConfig,
    SchedulerMode,
    SchedulingStrategy,
    StateConfig,
)
from headway.types import QueuedRequest, ScheduleResult

__all__ = [
    "CachePolicy",
    "QueuedRequest",
    "RateLimiterConfig",
    "ScheduleResult",
    "SchedulerMode",
    "SchedulingStrategy",
    "StateConfig",
]


def __dir__() -> list[str]:
    return sorted(__all__)
