"""What APIs say that have the headers of most: GitHub's names, with an instant as reset."""

from __future__ import annotations

import json

from headway.simulate.admission import Admission, Refusal
from headway.simulate.dialects.base import Asked, Told
from headway.simulate.dialects.openai import Compatible, failure_words
from headway.simulate.forms import epoch_seconds


class Generic(Compatible):
    """One limit of requests is told, with what of it is used; the reset is in epoch seconds."""

    told = (
        Told(
            "requests",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            epoch_seconds,
        ),
    )

    def limit_headers(self, asked: Asked, admission: Admission, now: int) -> str:
        headers = super().limit_headers(asked, admission, now)
        count = admission.told("requests")
        return headers if count is None else f"{headers}x-ratelimit-used: {count.used(now)}\r\n"

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        return self.silent_refusal_body(asked.model)

    def silent_refusal_body(self, model: str) -> bytes:
        return self.error_body(429, "API rate limit exceeded")

    def failure_body(self, status: int) -> bytes:
        return self.error_body(status, failure_words(status)[0])

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return json.dumps({"message": message}).encode()
