"""What the Gemini API says, as https://ai.google.dev/api and recorded answers tell."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

from headway.simulate.admission import Refusal
from headway.simulate.answers import Answer, Answers
from headway.simulate.dialects.base import Asked, Dialect, Events, name_in
from headway.simulate.forms import SECOND, seconds
from headway.simulate.parsing import Request
from headway.simulate.rules import Rule
from headway.simulate.tokens import TokenEstimate, estimate_tokens

_DAY = 86400.0
_MINUTE = 60 * SECOND
_TYPE = "type.googleapis.com/google.rpc."
_METRIC = "generativelanguage.googleapis.com/generate_content_free_tier_"
_EXHAUSTED = (
    "You exceeded your current quota, please check your plan and billing details. For more "
    "information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Gemini(Dialect):
    """No header tells of a limit; a refusal's body does, by the names of the quotas.

    Tokens are those of the input. A period of a day or more is called a day, any other a minute.
    `RetryInfo` is there for a day's quota, too, and is then none the longer: it is of the minute.
    """

    prefixes = ("/v1beta/", "/v1/")
    key_header = "x-goog-api-key"
    key_status = 400

    def takes(self, path: str) -> bool:
        return path.endswith((":generateContent", ":streamGenerateContent"))

    def models(self) -> Answer:
        methods = ["generateContent"]
        return {"models": [{"name": "models/simulated", "supportedGenerationMethods": methods}]}

    def key_of(self, request: Request) -> str:
        return super().key_of(request) or parse_qs(request.query).get("key", [""])[-1]

    def ask(self, request: Request, body: dict[str, Any]) -> Asked:
        config = body.get("generationConfig")
        settings = config if isinstance(config, dict) else {}
        fields = ("contents", "systemInstruction", "system_instruction")
        tokens = TokenEstimate(
            estimate_tokens(body, fields).prompt,
            estimate_tokens(settings, (), ("maxOutputTokens",)).maximum,
        )
        model = name_in(request.path, "/models/", ":") or "simulated"
        streams = request.path.endswith(":streamGenerateContent")
        return Asked(request.path, request.query, body, model, tokens, streams)

    def costs(self, asked: Asked) -> dict[str, int]:
        return {**super().costs(asked), "tokens": asked.tokens.prompt}

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        full = [
            (each, quota)
            for each in (refusal, *refusal.also)
            if (quota := _quota_of(each.rule)) is not None and not each.rule.hidden
        ]
        if not full:
            return self.silent_refusal_body(asked.model)
        wait = min(each.wait_ns or 0 for each, _ in full)
        wait = wait if wait <= _MINUTE else wait % _MINUTE
        message = "".join(
            f"\n* Quota exceeded for metric: {metric}, limit: {each.rule.amount}, "
            f"model: {asked.model}"
            for each, (metric, _) in full
        )
        violations = [
            {
                "quotaMetric": metric,
                "quotaId": quota,
                "quotaDimensions": {"location": "global", "model": asked.model},
                "quotaValue": str(each.rule.amount),
            }
            for each, (metric, quota) in full
        ]
        details: list[dict[str, object]] = [
            {"@type": f"{_TYPE}QuotaFailure", "violations": violations},
            {"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{seconds(wait)}s"},
        ]
        text = f"{_EXHAUSTED} {message}\nPlease retry in {wait / SECOND}s."
        return _error(429, text, details)

    def silent_refusal_body(self, model: str) -> bytes:
        return _error(429, "Resource has been exhausted (e.g. check quota).")

    def failure_body(self, status: int) -> bytes:
        overloaded = "The model is overloaded. Please try again later."
        return _error(status, overloaded if status == 503 else "An internal error has occurred.")

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return _error(status, message)

    def whole(self, asked: Asked, answers: Answers, now: int) -> tuple[Answer, int]:
        words = answers.words(asked.tokens)
        return _part(asked, answers.identity(), " ".join(words), len(words), True), len(words)

    def events(self, asked: Asked, answers: Answers, now: int) -> Events:
        identity, words = answers.identity(), answers.words(asked.tokens) or [""]
        parts = [
            _part(asked, identity, word if at == 0 else f" {word}", at + 1, at + 1 == len(words))
            for at, word in enumerate(words)
        ]
        tokens = [1 if word else 0 for word in words]
        if _by_events(asked):
            return [
                (b"data: %b\r\n\r\n" % json.dumps(part).encode(), some)
                for part, some in zip(parts, tokens, strict=True)
            ]
        # Without alt=sse it is one JSON array, which comes piece by piece.
        marks = ["[", *[",\r\n"] * (len(parts) - 1)]
        pieces = [mark + json.dumps(part) for mark, part in zip(marks, parts, strict=True)]
        pieces[-1] += "]"
        return [(piece.encode(), some) for piece, some in zip(pieces, tokens, strict=True)]

    def events_type(self, asked: Asked) -> str:
        return "text/event-stream" if _by_events(asked) else "application/json; charset=UTF-8"


def _by_events(asked: Asked) -> bool:
    return parse_qs(asked.query).get("alt", [""])[-1] == "sse"


def _quota_of(rule: Rule) -> tuple[str, str] | None:
    """The metric and the id of the quota that is this rule; None where neither is known."""
    period = "Day" if rule.per_seconds >= _DAY else "Minute"
    if rule.resource == "requests":
        return f"{_METRIC}requests", f"GenerateRequestsPer{period}PerProjectPerModel-FreeTier"
    if rule.resource in ("tokens", "input_tokens"):
        name = f"GenerateContentInputTokensPerModelPer{period}-FreeTier"
        return f"{_METRIC}input_token_count", name
    return None


def _part(asked: Asked, identity: str, text: str, words: int, last: bool) -> Answer:
    candidate: Answer = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "MAX_TOKENS" if words == asked.tokens.maximum else "STOP"
    usage = {
        "promptTokenCount": asked.tokens.prompt,
        "candidatesTokenCount": words,
        "totalTokenCount": asked.tokens.prompt + words,
    }
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": asked.model,
        "responseId": identity,
    }


def _error(status: int, message: str, details: list[dict[str, object]] | None = None) -> bytes:
    fault: dict[str, object] = {
        "code": status,
        "message": message,
        "status": _STATUSES.get(status, "INTERNAL"),
    }
    if details:
        fault["details"] = details
    return json.dumps({"error": fault}, indent=2).encode()
