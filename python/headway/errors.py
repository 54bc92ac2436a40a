"""What can go wrong, all of it a RateLimiterError.

A denial is no error: `Limiter.try_reserve` returns it as a value.
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


class DeadlineExceededError(RateLimiterError, TimeoutError):
    """A wait was, or would have been, longer than its timeout or deadline allows."""


class SchedulerStoppedError(RateLimiterError):
    """What waits in a scheduler that was stopped is told so."""
