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
from headway.views import RateLimitState, StateManager, StateType

__all__ = [
    "CachePolicy",
    "QueuedRequest",
    "RateLimitState",
    "RateLimiterConfig",
    "ScheduleResult",
    "SchedulerMode",
    "SchedulingStrategy",
    "StateConfig",
    "StateManager",
    "StateType",
]


def __dir__() -> list[str]:
    return sorted(__all__)
