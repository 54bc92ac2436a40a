"""What OpenRouter says, as its recorded answers tell."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from headway.simulate.admission import Refusal
from headway.simulate.answers import Answers
from headway.simulate.dialects.base import Asked, Events
from headway.simulate.dialects.openai import Compatible, failure_words
from headway.simulate.forms import epoch_milliseconds

_DAY = 86400.0


class OpenRouter(Compatible):
    """No answer but a refusal tells a limit, and that one in its body, under a header's name.

    A hidden limit is that of somebody upstream, whose refusal is passed on.
    """

    prefixes = ("/api/v1/",)

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        rule = refusal.rule
        name = f"limit_{'rpd' if rule.per_seconds >= _DAY else 'rpm'}/{asked.model}"
        headers = {
            "X-RateLimit-Limit": str(rule.amount),
            "X-RateLimit-Remaining": str(max(0, rule.amount - refusal.used)),
            "X-RateLimit-Reset": epoch_milliseconds(refusal.full_ns, time.time_ns()),
        }
        metadata = {"headers": headers, "provider_name": None}
        return _error(429, f"Rate limit exceeded: {name}. Please retry shortly.", metadata)

    def silent_refusal_body(self, model: str) -> bytes:
        raw = f"{model} is temporarily rate-limited upstream. Please retry shortly."
        metadata = {"raw": raw, "provider_name": "simulated"}
        return _error(429, "Provider returned error", metadata)

    def failure_body(self, status: int) -> bytes:
        return _error(status, failure_words(status)[0])

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return _error(status, message)

    def events(self, asked: Asked, answers: Answers, now: int) -> Events:
        # A comment, while whoever is upstream has not begun.
        return [(b": OPENROUTER PROCESSING\n\n", 0), *super().events(asked, answers, now)]


def _error(status: int, message: str, metadata: Mapping[str, object] | None = None) -> bytes:
    fault: dict[str, object] = {"message": message, "code": status}
    if metadata is not None:
        fault["metadata"] = metadata
    return json.dumps({"error": fault}).encode()
