"""What Azure OpenAI says.

As https://learn.microsoft.com/azure/ai-services/openai/how-to/quota and recorded answers tell.
"""

from __future__ import annotations

import json

from headway.simulate.admission import Admission, Refusal
from headway.simulate.dialects.base import Asked, name_in, told_of
from headway.simulate.dialects.openai import Compatible
from headway.simulate.forms import milliseconds, seconds
from headway.simulate.parsing import Request

_OPERATIONS = {
    "/embeddings": "Embeddings_Create",
    "/chat/completions": "ChatCompletions_Create",
    "/completions": "Completions_Create",
}
_UNKNOWN = (
    *("x-ratelimit-remaining-requests: -1", "x-ratelimit-remaining-tokens: -1"),
    *("x-ratelimit-reset-requests: 0", "x-ratelimit-reset-tokens: 0", ""),
)


class Azure(Compatible):
    """Resets are whole seconds, and the Responses API tells no numbers, only that it knows none.

    A limit of a minute is evaluated over ten seconds or one, so a rule of that period is what it
    is like. Tokens are the prompt's and what `best_of` answers may have at most.
    """

    prefixes = ("/openai/", "/openai/v1/")
    key_header = "api-key"
    told = (
        told_of("requests", "x-ratelimit-*-requests", seconds),
        told_of("tokens", "x-ratelimit-*-tokens", seconds),
    )
    retry = (("retry-after", seconds), ("retry-after-ms", milliseconds))

    def key_of(self, request: Request) -> str:
        # Tokens of Entra come in the header that OpenAI's keys come in.
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return super().key_of(request) or bearer

    def model_in(self, path: str) -> str | None:
        return name_in(path, "/deployments/", "/")

    def costs(self, asked: Asked) -> dict[str, int]:
        best_of = asked.body.get("best_of")
        times = best_of if isinstance(best_of, int) and best_of > 1 else 1
        tokens = asked.tokens.prompt + times * (asked.tokens.maximum or 0)
        return {**super().costs(asked), "tokens": tokens}

    def limit_headers(self, asked: Asked, admission: Admission, now: int) -> str:
        if asked.path.endswith("/responses"):
            return "\r\n".join(_UNKNOWN)
        return super().limit_headers(asked, admission, now)

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        what = "token" if refusal.rule.resource == "tokens" else "call"
        again = "" if refusal.wait_ns is None else f"after {seconds(refusal.wait_ns)} seconds"
        name = next((n for end, n in _OPERATIONS.items() if asked.path.endswith(end)), "Create")
        version = asked.query.partition("api-version=")[2].partition("&")[0] or "v1"
        message = (
            f"Requests to the {name} Operation under Azure OpenAI API version {version} have "
            f"exceeded {what} rate limit of your current OpenAI S0 pricing tier. Please retry "
            f"{again or 'later'}. Please go here: https://aka.ms/oai/quotaincrease if you would "
            "like to further increase the default rate limit."
        )
        return self.error_body(429, message)

    def silent_refusal_body(self, model: str) -> bytes:
        return self.error_body(429, "Rate limit is exceeded.")

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return json.dumps({"error": {"code": code or str(status), "message": message}}).encode()
