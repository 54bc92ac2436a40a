"""What is known of one key's limits, as a value that can be read, written down and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any

from headway import _values
from headway.errors import ConfigurationError


class StateType(Enum):
    """What a state is about; only RATE_LIMIT is one of limits."""

    RATE_LIMIT = "rate_limit"
    RESERVATION = "reservation"
    MODEL_CONFIG = "model_config"
    BUCKET_INFO = "bucket_info"
    ACCOUNT_LIMIT = "account_limit"


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True)
class RateLimitState:
    """One look at the limits of a key; frozen, since what changes is in the backend.

    remaining_* and *_limit: units, None for not limited or not known. reset_at: when one request
    fits again. reset_at_daily: when the daily count begins anew. is_verified: whether a response
    has said any of it. Instants are in UTC.
    """

    model_id: str
    remaining_requests: int | None = None
    remaining_requests_daily: int | None = None
    remaining_tokens: int | None = None
    reset_at: datetime = field(default_factory=_now)
    reset_at_daily: datetime = field(default_factory=_now)
    last_updated: datetime = field(default_factory=_now)
    last_request_time: datetime | None = None
    request_limit: int | None = None
    token_limit: int | None = None
    bucket_id: str | None = None
    is_verified: bool = False

    @property
    def is_exhausted(self) -> bool:
        """Whether no request or no token remains."""
        left = (self.remaining_requests, self.remaining_tokens)
        return any(each is not None and each <= 0 for each in left)

    @property
    def time_until_reset(self) -> float:
        """Seconds until the earlier of the two resets that is to come; 0.0 where none is."""
        now = _now()
        waits = [(at - now).total_seconds() for at in (self.reset_at, self.reset_at_daily)]
        return min((wait for wait in waits if wait > 0), default=0.0)

    @property
    def usage_percentage(self) -> float:
        """How much of the limit of requests or of tokens is used, the larger of the two: 0 to 100.

        0.0 where no limit is known; a limit of 0 is used up.
        """
        used = [0.0]
        for limit, remaining in (
            (self.request_limit, self.remaining_requests),
            (self.token_limit, self.remaining_tokens),
        ):
            if limit is not None and remaining is not None:
                used.append(100.0 * (limit - remaining) / limit if limit > 0 else 100.0)
        return min(max(used), 100.0)

    @classmethod
    def create_fallback_state(cls, model_id: str, bucket_id: str | None = None) -> RateLimitState:
        """A cautious guess: 30 requests and 5000 tokens in the next minute, 500 requests a day."""
        now = _now()
        return cls(
            model_id=model_id,
            remaining_requests=30,
            remaining_requests_daily=500,
            remaining_tokens=5000,
            reset_at=now + timedelta(minutes=1),
            reset_at_daily=now + timedelta(days=1),
            last_updated=now,
            bucket_id=bucket_id,
        )

    @classmethod
    def model_validate(cls, value: RateLimitState | Mapping[str, Any]) -> RateLimitState:
        """Reads a dict, as `model_dump` or a backend gives it; further keys are passed over.

        Numbers may be texts, and instants ISO 8601 texts, seconds or milliseconds since the epoch.
        None means the default. Raises ConfigurationError, a ValueError, that names what is wrong.
        """
        if isinstance(value, RateLimitState):
            return value
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"state must be a dict, got {type(value).__name__}")
        if value.get("model_id") is None:
            raise ConfigurationError("model_id must be given")
        read: dict[str, Any] = {}
        for each in fields(cls):
            given = value.get(each.name)
            if given is not None:
                read[each.name] = _READERS[str(each.type).removesuffix(" | None")](each.name, given)
        return cls(**read)

    def model_dump(self, mode: str = "python") -> dict[str, Any]:
        """As a dict; with mode "json", instants are ISO 8601 texts."""
        if mode not in ("python", "json"):
            raise ConfigurationError(f"mode must be 'python' or 'json', got {mode!r}")
        dumped = {each.name: getattr(self, each.name) for each in fields(self)}
        return jsonable(dumped) if mode == "json" else dumped


def jsonable(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose instants are ISO 8601 texts, as every store can hold them."""
    return {
        name: each.isoformat() if isinstance(each, datetime) else each
        for name, each in state.items()
    }


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a text, got {value!r}")
    return value


def _count(name: str, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        # What a store of texts gives back; of half a request nothing can be sent.
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ConfigurationError(f"{name} must be a whole number, got {value!r}") from None


def _flag(name: str, value: Any) -> bool:
    if value in (True, False):
        return bool(value)
    texts = {"1": True, "0": False, "true": True, "false": False}
    if isinstance(value, str) and value.lower() in texts:
        return texts[value.lower()]
    raise ConfigurationError(f"{name} must be True or False, got {value!r}")


def _moment(name: str, value: Any) -> datetime:
    if isinstance(value, datetime):
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value
    seconds = _values.instant(value, _now().timestamp())
    if seconds is None:
        raise ConfigurationError(f"{name} must be an instant, got {value!r}")
    return datetime.fromtimestamp(seconds, timezone.utc)


_READERS = {"str": _text, "int": _count, "bool": _flag, "datetime": _moment}
