"""What Anthropic says about its limits, its errors and its answers.

As https://platform.claude.com/docs/en/api/rate-limits, /errors and /messages-streaming tell.
"""

from __future__ import annotations

import json
from typing import Any

from headway.simulate.admission import Refusal
from headway.simulate.answers import Answer, Answers, model_of
from headway.simulate.dialects.base import Asked, Dialect, Events, told_of
from headway.simulate.forms import rfc3339, seconds
from headway.simulate.parsing import Request
from headway.simulate.tokens import TokenEstimate, estimate_tokens

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class Anthropic(Dialect):
    """Resets are times at which all of the limit is there again, tokens rounded to thousands."""

    key_header = "x-api-key"
    told = (
        told_of("requests", "anthropic-ratelimit-requests-*", rfc3339),
        told_of("input_tokens", "anthropic-ratelimit-input-tokens-*", rfc3339, rounding=1000),
        told_of("output_tokens", "anthropic-ratelimit-output-tokens-*", rfc3339, rounding=1000),
    )
    retry = (("retry-after", seconds),)

    def takes(self, path: str) -> bool:
        return path == "/v1/messages"

    def ask(self, request: Request, body: dict[str, Any]) -> Asked:
        tokens = estimate_tokens(body, ("messages", "system"), ("max_tokens",))
        streams = body.get("stream") is True
        return Asked(request.path, request.query, body, model_of(body), tokens, streams)

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        rule = refusal.rule
        unit = rule.resource.replace("_", " ")
        if rule.resource == "concurrency":
            text = "Number of concurrent connections has exceeded your rate limit."
        else:
            text = (
                f"This request would exceed your organization's rate limit of {rule.amount:,} "
                f"{unit} per minute (model: {asked.model})."
            )
        return self.error_body(429, text)

    def silent_refusal_body(self, model: str) -> bytes:
        return self.error_body(429, f"Rate limited ({model}).")

    def failure_body(self, status: int) -> bytes:
        messages = {529: "Overloaded", 429: "Your request rate has risen too quickly."}
        return self.error_body(status, messages.get(status, "Internal server error"))

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        fault = {"type": _KINDS.get(status, "api_error"), "message": message}
        return json.dumps({"type": "error", "error": fault}).encode()

    def whole(self, asked: Asked, answers: Answers, now: int) -> tuple[Answer, int]:
        words, identity = answers.words(asked.tokens), answers.identity()
        return message(identity, asked.model, words, asked.tokens), len(words)

    def events(self, asked: Asked, answers: Answers, now: int) -> Events:
        identity, words = answers.identity(), answers.words(asked.tokens)
        return events_of(identity, asked.model, words, asked.tokens)


def message(identity: str, model: str, words: list[str], tokens: TokenEstimate) -> Answer:
    """The answer of `words` in one piece."""
    stop = "max_tokens" if len(words) == tokens.maximum else "end_turn"
    return {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": " ".join(words)}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {**_cache(), "input_tokens": tokens.prompt, "output_tokens": len(words)},
    }


def events_of(identity: str, model: str, words: list[str], tokens: TokenEstimate) -> Events:
    """All events of the answer of `words`, and how many tokens each brings."""
    whole = message(identity, model, words, tokens)
    begun = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**_cache(), "input_tokens": tokens.prompt, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    events: Events = [
        (_event("message_start", message=begun), 0),
        (_event("content_block_start", index=0, content_block=block), 0),
        (_event("ping"), 0),
    ]
    for at, word in enumerate(words):
        delta = {"type": "text_delta", "text": word if at == 0 else f" {word}"}
        events.append((_event("content_block_delta", index=0, delta=delta), 1))
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events += [
        (_event("content_block_stop", index=0), 0),
        (_event("message_delta", delta=end, usage={"output_tokens": len(words)}), 0),
        (_event("message_stop"), 0),
    ]
    return events


def _cache() -> dict[str, int]:
    return {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
