"""What a scheduler asks of a backend, and how every backend reads the headers of rate limits."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from headway import _values
from headway._log import fields
from headway.errors import ConfigurationError

_logger = logging.getLogger("headway")

_COUNTS = {
    "rpm_limit": "x-ratelimit-limit-requests",
    "rpm_remaining": "x-ratelimit-remaining-requests",
    "tpm_limit": "x-ratelimit-limit-tokens",
    "tpm_remaining": "x-ratelimit-remaining-tokens",
}
_RESETS = {"rpm_reset": "x-ratelimit-reset-requests", "tpm_reset": "x-ratelimit-reset-tokens"}


@dataclass
class HealthCheckResult:
    """How a backend is; `error` and `metadata` hold no secret."""

    healthy: bool
    backend_type: str
    namespace: str
    error: str | None = None
    metadata: dict[str, Any] | None = None


def validate_safety_margin(safety_margin: object) -> None:
    """Raises ConfigurationError, a ValueError, unless it is a number from 0 to 1."""
    if isinstance(safety_margin, bool) or not isinstance(safety_margin, (int, float)):
        raise ConfigurationError(
            f"safety_margin must be a number, got {type(safety_margin).__name__}"
        )
    if not 0.0 <= safety_margin <= 1.0:
        raise ConfigurationError(f"safety_margin must be between 0.0 and 1.0, got {safety_margin}")


class BaseBackend(ABC):
    """Where the state of limits is kept, by key; a key is a bucket's id.

    Amounts are whole units, times seconds. A reservation id is a text that the backend gives out;
    releasing one that it does not know, or has released, is no error.

    namespace: keeps apart what several applications keep in one store.
    """

    def __init__(self, namespace: str = "rate_limiter") -> None:
        self.namespace = namespace
        self._told: set[str] = set()

    async def start(self) -> None:  # noqa: B027 - not every backend has something to start
        """Connects, and starts what goes on in the background; a second time does nothing."""

    async def stop(self) -> None:  # noqa: B027
        """Ends what `start` began."""

    # State by key.

    @abstractmethod
    async def get_state(self, key: str) -> dict[str, Any] | None:
        """A copy of the state; None where there is none."""

    @abstractmethod
    async def set_state(self, key: str, state: dict[str, Any]) -> None:
        """Replaces the state."""

    @abstractmethod
    async def get_all_states(self) -> dict[str, dict[str, Any]]:
        """Copies of all states of this namespace."""

    @abstractmethod
    async def clear(self) -> None:
        """Forgets all states of this namespace."""

    # Capacity.

    @abstractmethod
    async def check_and_reserve_capacity(  # noqa: PLR0917 - the order is promised
        self,
        key: str,
        requests: int,
        tokens: int,
        bucket_limits: dict[str, int] | None = None,
        safety_margin: float = 1.0,
        request_id: str | None = None,
    ) -> tuple[bool, str | None]:
        """Takes both amounts or nothing; whether it did, and the reservation's id.

        bucket_limits: `rpm_limit` and `tpm_limit`. safety_margin: the share of them to use.
        """

    @abstractmethod
    async def release_reservation(self, key: str, reservation_id: str) -> bool:
        """Gives back what was reserved and not sent; whether the backend knows of it."""

    @abstractmethod
    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        """Ends a reservation whose use is known: what was reserved beyond it is given back."""

    @abstractmethod
    async def check_capacity(self, model: str, request_type: str = "default") -> tuple[bool, float]:
        """Whether a request would fit now, and the seconds until it would."""

    @abstractmethod
    async def reserve_capacity(
        self, model: str, request_id: str, tokens_estimated: int = 0
    ) -> bool:
        """Reserves for a request under its own id; whether it did."""

    @abstractmethod
    async def release_reservation_by_id(self, request_id: str) -> None:
        """Gives back what `reserve_capacity` took."""

    # Observations.

    @abstractmethod
    async def record_request(
        self, model: str, request_type: str = "default", tokens_used: int | None = None
    ) -> None:
        """A request was made."""

    @abstractmethod
    async def update_rate_limits(
        self,
        model: str,
        headers: dict[str, str],
        bucket_id: str | None = None,
        request_id: str | None = None,
        status_code: int | None = None,
    ) -> int:
        """Takes in what a response said; 1 if something was, else 0."""

    @abstractmethod
    async def get_rate_limits(self, model: str) -> dict[str, Any]:
        """What was last said, under the names that `_parse_rate_limit_headers` gives it."""

    # Failures.

    @abstractmethod
    async def record_failure(self, error_type: str, error_message: str = "") -> None:
        """A request has failed."""

    @abstractmethod
    async def get_failure_count(self, window_seconds: int = 30) -> int:
        """How many have of late."""

    @abstractmethod
    async def is_circuit_broken(self) -> bool:
        """Whether so many have that nothing should be sent."""

    @abstractmethod
    async def clear_failures(self) -> None:
        """Forgets them."""

    @abstractmethod
    async def force_circuit_break(self, duration: float) -> None:
        """Sends nothing for so long, whatever has failed."""

    # What providers said, for a while.

    @abstractmethod
    async def cache_bucket_info(self, bucket_data: dict[str, Any], ttl_seconds: int = 3600) -> None:
        """Keeps what is known of buckets."""

    @abstractmethod
    async def get_cached_bucket_info(self) -> dict[str, Any] | None:
        """What was kept, if that is not too long ago."""

    @abstractmethod
    async def cache_model_info(
        self, model: str, model_info: dict[str, Any], ttl_seconds: int = 3600
    ) -> None:
        """Keeps what is known of a model."""

    @abstractmethod
    async def get_cached_model_info(self, model: str) -> dict[str, Any] | None:
        """What was kept, if that is not too long ago."""

    # The backend itself.

    @abstractmethod
    async def health_check(self) -> HealthCheckResult:
        """How it is; raises nothing."""

    @abstractmethod
    async def get_all_stats(self) -> dict[str, Any]:
        """Counts of what it holds."""

    @abstractmethod
    async def cleanup(self) -> None:
        """Forgets everything and lets go of what it holds open."""

    # Headers: the same for all.

    def _parse_rate_limit_headers(self, headers: Mapping[str, Any]) -> dict[str, Any]:
        """What the headers say and no more: a name that is absent, or is no number, stays absent.

        rpm_limit, rpm_remaining, tpm_limit, tpm_remaining: whole. rpm_reset, tpm_reset and
        timestamp (now): seconds since the epoch. retry_after: seconds from then. Header names in
        any case of letters.
        """
        now = time()
        given = {str(name).lower(): value for name, value in headers.items()}
        parsed: dict[str, Any] = {"timestamp": now}

        def take(key: str, header: str, read: Callable[[Any], float | None]) -> None:
            if key in parsed or given.get(header) is None:
                return
            value = read(given[header])
            if value is not None:
                parsed[key] = value
            elif header not in self._told:
                # Once for each: a provider that errs does so in every response.
                self._told.add(header)
                _logger.warning(
                    "header %s has a value that is none and is ignored",
                    header,
                    extra=fields("header_ignored", header=header),
                )

        for key, header in _COUNTS.items():
            take(key, header, _values.whole)
        for key, header in _RESETS.items():
            take(key, header, lambda value: _values.instant(value, now))
        take("retry_after", "retry-after-ms", _values.milliseconds)
        take("retry_after", "retry-after", lambda value: _values.wait(value, now))
        return parsed

    def _calculate_wait_time(self, rate_limits: Mapping[str, Any]) -> float:
        """Seconds until a request may go, by what `_parse_rate_limit_headers` gave; 0.0 for now.

        The longest of `retry_after` and the resets of what is used up.
        """
        now = time()
        waits = [0.0]
        for used_up, reset in (("rpm_remaining", "rpm_reset"), ("tpm_remaining", "tpm_reset")):
            remaining, at = rate_limits.get(used_up), rate_limits.get(reset)
            if remaining is not None and remaining <= 0 and at is not None:
                waits.append(at - now)
        told = rate_limits.get("retry_after")
        if told is not None:
            waits.append(rate_limits.get("timestamp", now) + told - now)
        return max(each for each in waits if not math.isnan(each))

    def _parse_reset_time(self, value: object) -> float | None:
        """When a limit is whole again, in seconds since the epoch; None where `value` does not say.

        A number of seconds from now, or of seconds or milliseconds since the epoch; "6m0s"; an ISO
        8601 time; an HTTP date. Nothing negative and nothing after the year 2100.
        """
        return _values.instant(value, time())
