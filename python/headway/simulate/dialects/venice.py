"""What Venice says, as https://docs.venice.ai/api-reference/rate-limiting tells."""

from __future__ import annotations

import json

from headway.simulate.admission import Admission, Refusal
from headway.simulate.dialects.base import Asked, told_of
from headway.simulate.dialects.openai import Compatible, failure_words
from headway.simulate.forms import epoch_seconds, seconds

_BALANCE = "x-venice-balance-diem: 0\r\nx-venice-balance-usd: 10.00\r\n"


class Venice(Compatible):
    """The reset of requests is an instant, that of tokens a wait.

    Who fails too often is refused for a while. An error is a text and nothing more.
    """

    prefixes = ("/api/v1/",)
    told = (
        told_of("requests", "x-ratelimit-*-requests", epoch_seconds),
        told_of("tokens", "x-ratelimit-*-tokens", seconds),
    )
    patience = (20, 30.0)

    def limit_headers(self, asked: Asked, admission: Admission, now: int) -> str:
        return super().limit_headers(asked, admission, now) + _BALANCE

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        return self.silent_refusal_body(asked.model)

    def silent_refusal_body(self, model: str) -> bytes:
        return self.error_body(429, "Rate limit exceeded")

    def impatient_body(self) -> bytes:
        return self.error_body(
            429,
            "Too many failed attempts (> 20) resulting in a non-success status code. Please wait "
            "30s and try again. See https://docs.venice.ai/api-reference/rate-limiting for more "
            "information.",
        )

    def failure_body(self, status: int) -> bytes:
        return self.error_body(status, failure_words(status)[0])

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return json.dumps({"error": message}).encode()
