"""What a backend in memory says about a key: one dict, of what was written and what is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from headway import _values
from headway.backends._words import UNLIMITED, KeyWords

OF_AN_INSTANT = frozenset({"last_updated", "reset_at"})
"""What a written state says only until something is reserved or learnt."""


def whole(value: object) -> int | None:
    """A number of units as states write it; None where it is none. Below zero is zero."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isnan(value):
            return None
        return int(min(max(0, value), UNLIMITED))
    return _values.whole(value)


def scaled(limit: int, margin: float) -> int:
    """The share of a limit that is used: 1 at least, unless there is none at all."""
    return min(max(1, math.floor(limit * margin)), UNLIMITED) if limit > 0 else 0


def moment(seconds: float) -> str:
    """Seconds since the epoch in ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def state_of(
    key: str, words: KeyWords, stored: Mapping[str, Any], now: float, wall: float
) -> dict[str, Any]:
    """now: of the backend's clock; wall: seconds since the epoch."""
    wait = words.ready_in()
    wait = max(words.refused_until - now, 0.1 if wait is None else wait)
    live = {
        "remaining_requests": words.remaining("requests"),
        "remaining_tokens": words.remaining("tokens"),
        "request_limit": words.limit("requests"),
        "token_limit": words.limit("tokens"),
    }
    defaults = {
        "reset_at": None if math.isinf(wait) else moment(wall + max(0.0, wait)),
        "last_updated": moment(words.updated or wall),
        "is_verified": words.verified,
        "bucket_id": key,
        "model_id": words.model or key,
    }
    return {**defaults, **stored, **live}
