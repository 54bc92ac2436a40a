"""What a scheduler has done so far, by the names that its users know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headway import _core
from headway.receipts import VERDICTS
from headway.scheduler.config import SchedulerMode

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler


def metrics(scheduler: Scheduler) -> dict[str, Any]:
    """For Scheduler.get_metrics()."""
    buckets = list(scheduler._buckets)
    events = scheduler._events
    done = scheduler._buckets.totals()
    scheduled, completed, failed = done["submitted"], done["succeeded"], done["failed"]
    waiting = sum(bucket.queued for bucket in buckets)
    active = scheduler._under_way
    found: dict[str, Any] = {
        "scheduler_type": type(scheduler).__name__,
        "scheduler_mode": scheduler.mode.value,
        "mode": scheduler.mode.value,
        "running": scheduler.is_running(),
        "active_tasks": active,
        "active_requests": active,
        "total_requests": scheduled,
        "failed_requests": failed,
        "requests_scheduled": scheduled,
        "requests_completed": completed,
        "requests_failed": failed,
        "requests_cancelled": done["cancelled"],
        "attempts": done["attempts"],
        "queue_overflows": events["queue_overflows"],
        "scheduler_loops": 0,
        "circuit_breaker_rejections": events["circuit_breaker_rejections"],
        "request_timeouts": events["request_timeouts"],
        "refusals": events["refusals"],
        "refusal_verdicts": {name: scheduler._verdict_counts[name] for name in VERDICTS},
        "retries": events["retries"],
        "retry_budget_used_up": events["retry_budget_used_up"],
        "cool_downs": events["cool_downs"],
        "answers_not_read": events["answers_not_read"],
        "answer_oddities": done["oddities"],
        "idle_streams": events["idle_streams"],
        "user_code_errors": dict(scheduler._user_code.errors),
    }
    found |= {
        "observed_requests": done["requests"],
        "would_have_waited": done["would_have_waited"],
        "would_have_waited_seconds": float(done["would_have_waited_seconds"]),
        "observed_refusals": done["refusals"],
        "refusals_avoided": done["refusals_avoided"],
    }
    if scheduler.mode is SchedulerMode.ACCOUNT:
        found |= {
            "total_scheduled": scheduled,
            "total_completed": completed,
            "total_failed": failed,
            "total_rejected": events["queue_overflows"],
            "current_queue_size": waiting,
            "num_queues": len(buckets),
        }
    if scheduler.mode is not SchedulerMode.BASIC:
        found |= {
            "total_queues": len(buckets),
            "queues_with_items": sum(1 for bucket in buckets if bucket.queued),
            "idle_cycles": 0,
        }
    found["buckets"] = {
        bucket.name: {
            "queue_depth": bucket.queued,
            "in_flight": bucket.in_flight,
            "submitted": bucket.submitted,
            "succeeded": bucket.succeeded,
            "failed": bucket.failed,
            "cancelled": bucket.cancelled,
            "attempts": bucket.attempts,
            "answer_oddities": bucket.oddities,
            "cooled_for": bucket.cooled_for,
        }
        for bucket in buckets
    }
    found["series"] = _series(scheduler._label()) if scheduler.metrics_enabled else {}
    return found


def _series(label: str) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus is given of the schedulers of that name, by metric: its labels and values."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, kind, _, samples in _core.collect_metrics():
        for labels, value in samples:
            if labels["scheduler"] != label:
                continue
            sample: dict[str, Any] = {k: v for k, v in labels.items() if k != "scheduler"}
            if kind == "histogram":
                counts, total, count = value
                sample |= {"count": count, "sum": total, "le": dict(counts)}
            else:
                sample["value"] = value
            found.setdefault(name, []).append(sample)
    return found
