"""What a request says about itself, and what queues say about theirs: plain values.

None of them is checked here: a scheduler does that when it is handed one, so that the error comes
from the call that has the request.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Protocol

ResourceType = str
"""What kind of work a request asks of a provider: one of the five below, or any name."""

TEXT: ResourceType = "text"
IMAGE: ResourceType = "image"
AUDIO: ResourceType = "audio"
EMBEDDING: ResourceType = "embedding"
GENERIC: ResourceType = "generic"

RESOURCE_TYPES: frozenset[ResourceType] = frozenset({TEXT, IMAGE, AUDIO, EMBEDDING, GENERIC})


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass
class RequestMetadata:
    """What a scheduler knows of a request before it is sent.

    request_id: for logs and errors. model_id: what is asked; without a provider, also the bucket,
    but for models that are known to share one.
    resource_type: is passed on to the provider, and means nothing else.
    estimated_tokens: tokens to reserve, None for none. cost: units to reserve by resource, instead
    of that. priority: higher is more urgent. submitted_at: for the record, no wait is computed from
    it. timeout: seconds that one attempt may take; None for no bound but the scheduler's own, inf
    for none at all.
    deadline: seconds from submission in which the request must have started, None for no bound.
    client_id: the account, None for one of its own. endpoint: for classifiers and providers.
    requires_model: False where the call is of no model, so that no model's limits hold.

    Mutable, equal by value; not for changing once it is submitted.
    """

    request_id: str
    model_id: str
    resource_type: ResourceType
    estimated_tokens: int | None = None
    priority: int = 0
    submitted_at: datetime = field(default_factory=_now)
    timeout: float | None = 60.0
    client_id: str | None = None
    endpoint: str | None = None
    requires_model: bool = True
    deadline: float | None = None
    cost: Mapping[str, int] | None = None


class RateLimitType(Enum):
    """The limits that a RateLimitBucket knows: requests a minute and a day, tokens a minute."""

    RPM = "RPM"
    RPD = "RPD"
    TPM = "TPM"


@dataclass
class RateLimitBucket:
    """The limits of one model: requests a minute and a day, tokens a minute; None is unknown."""

    model_id: str
    resource_type: ResourceType
    rpm_limit: int
    rpd_limit: int | None = None
    tpm_limit: int | None = None


@dataclass
class QueuedRequest:
    """A request that waits; `future` gets what its call returns or raises.

    request_func: makes the call, once an attempt. queue_entry_time: for the record.
    """

    metadata: RequestMetadata
    request_func: Callable[[], Awaitable[Any]]
    future: asyncio.Future[Any]
    queue_entry_time: datetime = field(default_factory=_now)


@dataclass
class ScheduleResult:
    """What became of a request that was handed in: queued, or to be tried again.

    wait_time: seconds. should_retry: whether another attempt can do better.
    """

    request: QueuedRequest | None = None
    wait_time: float = 0.0
    should_retry: bool = True


class _Countable(Protocol):
    def qsize(self) -> int: ...
    def empty(self) -> bool: ...


@dataclass
class QueueInfo:
    """One queue as a scheduling strategy sees it.

    queue: anything with `qsize()` and `empty()`; it may be a stand-in that stays empty, in which
    case `queue_depth` and the totals say what waits. last_request_time: when a request of it was
    last let through. Times are for the record.

    The two updates may come from several threads and loops at once.
    """

    queue_key: str
    model_id: str
    resource_type: ResourceType
    queue: _Countable
    rate_config: RateLimitBucket
    queue_depth: int = 0
    last_request_time: datetime | None = None
    current_priority: float = 0.0
    priority_sum: float = 0.0
    total_enqueued: int = 0
    total_dequeued: int = 0
    last_enqueue_time: datetime = field(default_factory=_now)
    last_dequeue_time: datetime | None = None
    max_priority_seen: float = -math.inf
    min_priority_seen: float = math.inf
    # Held for a few additions only and never across an await, so it needs no loop.
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    @property
    def avg_priority(self) -> float:
        """The mean priority of all that has ever been queued; 0.0 where nothing was."""
        return self.priority_sum / self.total_enqueued if self.total_enqueued else 0.0

    @property
    def current_size(self) -> int:
        """How many requests `queue` itself holds."""
        return self.queue.qsize()

    @property
    def is_empty(self) -> bool:
        """Whether `queue` itself holds none."""
        return self.queue.empty()

    @property
    def items_pending(self) -> int:
        """How many requests were queued and not yet taken out."""
        return self.total_enqueued - self.total_dequeued

    async def update_on_enqueue(self, priority: float) -> None:
        """A request of that priority was queued."""
        with self._lock:
            self.queue_depth += 1
            self.total_enqueued += 1
            self.priority_sum += priority
            self.current_priority = priority
            self.max_priority_seen = max(self.max_priority_seen, priority)
            self.min_priority_seen = min(self.min_priority_seen, priority)
            self.last_enqueue_time = _now()

    async def update_on_dequeue(self) -> None:
        """A request was taken out."""
        with self._lock:
            self.queue_depth = max(0, self.queue_depth - 1)
            self.total_dequeued += 1
            self.last_dequeue_time = _now()

    def get_priority_for_scheduling(self) -> float:
        """What a strategy compares: `avg_priority`."""
        return self.avg_priority
