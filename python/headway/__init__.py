"""Headway keeps an application's outgoing calls just under every limit that its providers count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway._core import Denial, Limit, ManualClock, Reservation, __version__
from headway.backends import BaseBackend, MemoryBackend
from headway.errors import (
    BackendConnectionError,
    BackendOperationError,
    BucketNotFoundError,
    CapacityExceededError,
    ConfigurationError,
    DeadlineExceededError,
    ProviderError,
    QueueOverflowError,
    RateLimiterError,
    RequestTimeoutError,
    ReservationCapacityError,
    SchedulerStoppedError,
    TooManyFailedRequestsError,
)
from headway.limiter import Explanation, Limiter, LimitState, Observed
from headway.protocols import ClassifierProtocol, ClientProtocol, StreamingResponseProtocol
from headway.providers import DiscoveredBucket, ProviderInterface, RateLimitInfo
from headway.receipts import LimitUse, Receipt
from headway.reservation import ReservationContext, ReservationTracker
from headway.scheduler import Account, RateLimiterConfig, Scheduler, create_scheduler
from headway.streaming import RateLimitedAsyncIterator, StreamingReservationContext
from headway.types import (
    AUDIO,
    EMBEDDING,
    GENERIC,
    IMAGE,
    RESOURCE_TYPES,
    TEXT,
    QueuedRequest,
    RequestMetadata,
    ResourceType,
    ScheduleResult,
)

__all__ = [
    "AUDIO",
    "EMBEDDING",
    "GENERIC",
    "IMAGE",
    "RESOURCE_TYPES",
    "TEXT",
    "Account",
    "BackendConnectionError",
    "BackendOperationError",
    "BaseBackend",
    "BucketNotFoundError",
    "CapacityExceededError",
    "ClassifierProtocol",
    "ClientProtocol",
    "ConfigurationError",
    "DeadlineExceededError",
    "Denial",
    "DiscoveredBucket",
    "Explanation",
    "Limit",
    "LimitState",
    "LimitUse",
    "Limiter",
    "ManualClock",
    "MemoryBackend",
    "Observed",
    "ProviderError",
    "ProviderInterface",
    "QueueOverflowError",
    "QueuedRequest",
    "RateLimitInfo",
    "RateLimitedAsyncIterator",
    "RateLimiterConfig",
    "RateLimiterError",
    "Receipt",
    "RequestMetadata",
    "RequestTimeoutError",
    "Reservation",
    "ReservationCapacityError",
    "ReservationContext",
    "ReservationTracker",
    "ResourceType",
    "ScheduleResult",
    "Scheduler",
    "SchedulerStoppedError",
    "StreamingReservationContext",
    "StreamingResponseProtocol",
    "TooManyFailedRequestsError",
    "__version__",
    "create_scheduler",
    "govern",
]


if TYPE_CHECKING:
    from headway.transports import govern

if not TYPE_CHECKING:  # where it would make every misspelt name look like one of ours

    def __getattr__(name: str) -> object:
        if name == "govern":
            # It needs a client of httpx or httpx2, and who has none does without.
            from headway.transports import govern

            return govern
        if name == "RedisBackend":
            # One place says what it needs; the same object, once there is one.
            from headway import backends

            return getattr(backends, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
