"""What can go wrong, all of it a RateLimiterError.

A denial is no error: `Limiter.try_reserve` returns it as a value. Every error survives a pickle
and a copy with its attributes, so it can cross a process pool.
"""

from __future__ import annotations


class RateLimiterError(Exception):
    """The base of all errors that headway itself raises."""


class CapacityExceededError(RateLimiterError):
    """A request needs more than a limit admits at once: it can never fit.

    bucket_id: the bucket, where there is one. retry_after: seconds, or None where it never fits.
    """

    def __init__(
        self, message: str, bucket_id: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.bucket_id = bucket_id
        self.retry_after = retry_after


class BucketNotFoundError(RateLimiterError):
    """A provider that lists its buckets has named one that it does not list.

    provider: its name, and model_id: what it was asked for, where they are known.
    """

    def __init__(
        self, bucket_id: str, provider: str | None = None, model_id: str | None = None
    ) -> None:
        # The argument, not the message: a pickle makes the error anew from `args`.
        super().__init__(bucket_id)
        self.bucket_id = bucket_id
        self.provider = provider
        self.model_id = model_id

    def __str__(self) -> str:
        asked = {"provider": self.provider, "model": self.model_id}
        told = ", ".join(f"{what} {name!r}" for what, name in asked.items() if name is not None)
        return f"Rate limit bucket not found: {self.bucket_id}" + (f" ({told})" if told else "")


class ReservationCapacityError(RateLimiterError):
    """A ReservationTracker is full, and nothing in it is old enough to be dropped."""


class BackendConnectionError(RateLimiterError):
    """A backend cannot be reached, and the policy for that is to admit nothing."""


class BackendOperationError(RateLimiterError):
    """A backend was reached and has refused an operation."""


class ConfigurationError(RateLimiterError, ValueError):
    """An option has a value that it cannot have; the message names both."""


class QueueOverflowError(RateLimiterError):
    """A queue is full, and this request was refused or dropped for it.

    queue_key: the queue, where it is known.
    """

    def __init__(self, message: str, queue_key: str | None = None) -> None:
        super().__init__(message)
        self.queue_key = queue_key


class TooManyFailedRequestsError(RateLimiterError):
    """So many requests have failed of late that no further one is let through for a while.

    failure_count: how many. window_seconds: within how many seconds. threshold: how many may. Each
    None where it is not known.
    """

    def __init__(
        self,
        message: str = "Too many failed requests",
        failure_count: int | None = None,
        window_seconds: float | None = None,
        threshold: int | None = None,
    ) -> None:
        super().__init__(message)
        self.failure_count = failure_count
        self.window_seconds = window_seconds
        self.threshold = threshold


class ProviderError(RateLimiterError):
    """A provider or a classifier could not say what it was asked.

    For providers to raise. headway itself raises it for a classifier that has failed, and from
    `start` where the provider has and there is no going on without it.
    """


class DeadlineExceededError(RateLimiterError, TimeoutError):
    """A wait was, or would have been, longer than its timeout or deadline allows."""


class RequestTimeoutError(RateLimiterError, TimeoutError):
    """One attempt of a request has taken longer than its timeout allows."""


class SchedulerStoppedError(RateLimiterError):
    """What waits in a scheduler that was stopped is told so."""
