"""What a provider is asked, and the two values in which it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from time import time
from typing import Any


@dataclass
class DiscoveredBucket:
    """Limits that a provider counts together, as it tells them by itself.

    rpm_* are requests and tpm_* tokens, each a minute. None is unknown, 0 is no capacity.
    """

    bucket_id: str
    rpm_limit: int | None = None
    tpm_limit: int | None = None
    rpm_remaining: int | None = None
    tpm_remaining: int | None = None


@dataclass
class RateLimitInfo:
    """What one response says about limits.

    rpm_* are requests and tpm_* tokens. The resets are seconds since the epoch, as is `timestamp`,
    when this was read; retry_after is seconds from then. None is what was not said.
    """

    rpm_remaining: int | None = None
    rpm_limit: int | None = None
    rpm_reset: float | None = None
    tpm_remaining: int | None = None
    tpm_limit: int | None = None
    tpm_reset: float | None = None
    retry_after: float | None = None
    is_rate_limited: bool = False
    timestamp: float = field(default_factory=time)


class ProviderInterface(ABC):
    """Knows how one API counts. A scheduler asks it on its own loop, and survives its errors.

    A question that a provider cannot answer it answers by raising, best a ProviderError.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in logs and metrics."""

    @abstractmethod
    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        """The buckets that there are, by their id.

        force_refresh: ask anew even if an answer is remembered. timeout: seconds.
        """

    @abstractmethod
    def parse_rate_limit_response(
        self,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        status_code: int | None = None,
    ) -> RateLimitInfo:
        """What a response says about limits. headers: with lower-case names."""

    @abstractmethod
    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        """The id of the bucket that counts requests for this model."""
