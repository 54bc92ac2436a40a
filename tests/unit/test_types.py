"""The plain values of requests and queues."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import fields
from datetime import timedelta, timezone

from headway import RESOURCE_TYPES, TEXT, QueuedRequest, RequestMetadata, ScheduleResult
from headway.types import QueueInfo, RateLimitBucket, RateLimitType


def queue_info() -> QueueInfo:
    return QueueInfo("q", "m", TEXT, asyncio.PriorityQueue(), RateLimitBucket("m", TEXT, 60))


def test_metadata_has_the_promised_fields_in_the_promised_order() -> None:
    assert [each.name for each in fields(RequestMetadata)] == [
        "request_id",
        "model_id",
        "resource_type",
        "estimated_tokens",
        "priority",
        "submitted_at",
        "timeout",
        "client_id",
        "endpoint",
        "requires_model",
        "deadline",
        "cost",
    ]
    metadata = RequestMetadata("r", "m", TEXT)
    assert (metadata.estimated_tokens, metadata.priority, metadata.timeout) == (None, 0, 60.0)
    assert metadata.submitted_at.utcoffset() == timedelta(0)
    assert metadata.submitted_at.tzinfo is timezone.utc
    assert metadata.requires_model
    assert (metadata.deadline, metadata.cost) == (None, None)


def test_metadata_is_equal_by_value_and_may_be_changed() -> None:
    one = RequestMetadata("r", "m", TEXT, cost={"tokens": 5})
    other = RequestMetadata("r", "m", TEXT, cost={"tokens": 5}, submitted_at=one.submitted_at)
    assert one == other
    other.priority = 3
    assert one != other


def test_the_five_resource_types_are_text() -> None:
    assert {"text", "image", "audio", "embedding", "generic"} == RESOURCE_TYPES
    assert [each.value for each in RateLimitType] == ["RPM", "RPD", "TPM"]


def test_a_schedule_result_holds_the_queued_request() -> None:
    async def main() -> None:
        async def call() -> int:
            return 1

        future = asyncio.get_running_loop().create_future()
        queued = QueuedRequest(RequestMetadata("r", "m", TEXT), call, future)
        assert ScheduleResult(queued) == ScheduleResult(queued, 0.0, True)
        assert ScheduleResult().request is None
        assert queued.queue_entry_time.tzinfo is timezone.utc

    asyncio.run(main())


def test_a_queue_counts_what_enters_and_leaves() -> None:
    async def main() -> None:
        info = queue_info()
        assert (info.avg_priority, info.items_pending, info.is_empty) == (0.0, 0, True)
        for priority in (1, 2, 6):
            await info.update_on_enqueue(priority)
        await info.update_on_dequeue()
        assert (info.total_enqueued, info.total_dequeued, info.queue_depth) == (3, 1, 2)
        assert (info.items_pending, info.avg_priority) == (2, 3.0)
        assert (info.min_priority_seen, info.max_priority_seen) == (1, 6)
        assert info.get_priority_for_scheduling() == info.avg_priority
        assert info.last_dequeue_time is not None
        info.queue.put_nowait(1)  # type: ignore[attr-defined]
        assert (info.current_size, info.is_empty) == (1, False)

    asyncio.run(main())


class Slow(float):
    """A priority whose addition lets other threads run in its midst."""

    def __radd__(self, other: float) -> float:
        time.sleep(0)
        return float(other) + float(self)


def test_a_queue_may_be_counted_from_several_loops_at_once() -> None:
    info = queue_info()

    async def count() -> None:
        for _ in range(500):
            await info.update_on_enqueue(Slow(1))
            await info.update_on_dequeue()

    threads = [threading.Thread(target=lambda: asyncio.run(count())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (info.total_enqueued, info.total_dequeued, info.priority_sum) == (2000, 2000, 2000)
