"""Scheduling: who may call when, and with which options."""

from __future__ import annotations

from headway.scheduler.accounts import Account
from headway.scheduler.base import BaseScheduler
from headway.scheduler.config import (
    CachePolicy,
    RateLimiterConfig,
    SchedulerMode,
    SchedulingStrategy,
    StateConfig,
)
from headway.scheduler.create import create_scheduler
from headway.scheduler.handle import Handle, Preview
from headway.scheduler.scheduler import Scheduler
from headway.types import QueuedRequest, ScheduleResult
from headway.views import RateLimitState, StateManager, StateType

__all__ = [
    "Account",
    "BaseScheduler",
    "CachePolicy",
    "Handle",
    "Preview",
    "QueuedRequest",
    "RateLimitState",
    "RateLimiterConfig",
    "ScheduleResult",
    "Scheduler",
    "SchedulerMode",
    "SchedulingStrategy",
    "StateConfig",
    "StateManager",
    "StateType",
    "create_scheduler",
]


def __dir__() -> list[str]:
    return sorted(__all__)
