"""What Anthropic says about its limits, its errors and its answers.

As https://platform.claude.com/docs/en/api/rate-limits, /errors and /messages-streaming tell.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from headway.simulate.admission import Admission, Refusal
from headway.simulate.tokens import TokenEstimate

KEY_HEADER = "x-api-key"
_SECOND = 1_000_000_000
_NAMES = {"requests": "requests", "input_tokens": "input-tokens", "output_tokens": "output-tokens"}
_THOUSAND = 1000
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def path_is_known(path: str) -> bool:
    """Whether requests for answers are posted there."""
    return path == "/v1/messages"


def limit_headers(admission: Admission, now: int) -> str:
    """`anthropic-ratelimit-…` for the first rule of each resource, as of `now`.

    Resets are times in whole seconds, at which all of the limit is there again; what remains of
    tokens is rounded to thousands.
    """
    present = datetime.now(timezone.utc)
    lines = []
    for resource, count in admission.first_of_each().items():
        name = _NAMES.get(resource)
        if name is None:
            continue
        left = max(0, count.rule.amount - count.used(now))
        if resource != "requests":
            left = (left + _THOUSAND // 2) // _THOUSAND * _THOUSAND
        reset = present + timedelta(seconds=count.full_in(now) / _SECOND)
        lines += [
            f"anthropic-ratelimit-{name}-limit: {count.rule.amount}\r\n",
            f"anthropic-ratelimit-{name}-remaining: {left}\r\n",
            f"anthropic-ratelimit-{name}-reset: {reset:%Y-%m-%dT%H:%M:%SZ}\r\n",
        ]
    return "".join(lines)


def retry_headers(refusal: Refusal) -> str:
    """When to try again, in seconds, rounded up."""
    if refusal.wait_ns is None:
        return ""
    return f"retry-after: {-(-refusal.wait_ns // _SECOND)}\r\n"


def refusal_body(refusal: Refusal, model: str) -> bytes:
    """The body of a 429, with the number of the rule that refused."""
    rule = refusal.rule
    unit = rule.resource.replace("_", " ")
    if rule.resource == "concurrency":
        message = "Number of concurrent connections has exceeded your rate limit."
    else:
        message = (
            f"This request would exceed your organization's rate limit of {rule.amount:,} {unit} "
            f"per minute (model: {model})."
        )
    return error_body(message, "rate_limit_error", None)


def silent_refusal_body(model: str) -> bytes:
    """The body of a 429 of a provider that says nothing about its limits."""
    return error_body(f"Rate limited ({model}).", "rate_limit_error", None)


def failure_body(status: int) -> bytes:
    """The body of a failure that no limit has to do with."""
    messages = {529: "Overloaded", 429: "Your request rate has risen too quickly."}
    return error_body(messages.get(status, "Internal server error"), kind_of(status), None)


def kind_of(status: int) -> str:
    """What an error of this status is called."""
    return _KINDS.get(status, "api_error")


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """An error in Anthropic's shape, which has no codes."""
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def message(identity: str, model: str, words: list[str], tokens: TokenEstimate) -> dict[str, Any]:
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


def events_of(
    identity: str, model: str, words: list[str], tokens: TokenEstimate
) -> list[tuple[bytes, int]]:
    """All events of the answer of `words`, and how many tokens each brings."""
    whole = message(identity, model, words, tokens)
    begun = {
        **whole,
        "content": [],
        "stop_reason": None,
        "usage": {**_cache(), "input_tokens": tokens.prompt, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    events = [
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
