"""What Together says, as https://docs.together.ai/docs/rate-limits tells."""

from __future__ import annotations

import json

from headway.simulate.admission import Refusal
from headway.simulate.dialects.base import Asked, Told
from headway.simulate.dialects.openai import Compatible
from headway.simulate.forms import seconds


class Together(Compatible):
    """Limits of a second are told, whatever period they are sold by; there is no Retry-After.

    Here a dynamic limit is the limit: how the one follows from the other is not documented.
    """

    told = (
        Told(
            "requests",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            seconds,
            period=1.0,
        ),
        Told(
            "requests",
            "x-ratelimit-limit-dynamic",
            "x-ratelimit-remaining-dynamic",
            period=1.0,
        ),
        Told("tokens", "x-tokenlimit-limit", "x-tokenlimit-remaining", period=1.0),
        Told("tokens", "x-tokenlimit-limit-dynamic", "x-tokenlimit-remaining-dynamic", period=1.0),
    )

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        what = "token" if refusal.rule.resource == "tokens" else "request"
        return _error(f"Rate limit reached for {asked.model}.", f"dynamic_{what}_limited")

    def silent_refusal_body(self, model: str) -> bytes:
        return _error(f"Rate limit reached for {model}.", "dynamic_request_limited")


def _error(message: str, kind: str) -> bytes:
    # Documented is the name `error_type`, not where it stands; clients look in both places.
    fault = {"message": message, "type": kind, "param": None, "code": None}
    return json.dumps({"error": fault, "error_type": kind}).encode()
