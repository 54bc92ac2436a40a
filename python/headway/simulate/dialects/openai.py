"""What OpenAI says, and with other headers and errors all who are compatible with it.

As https://platform.openai.com/docs/guides/rate-limits and recorded answers tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from headway.simulate.admission import Refusal
from headway.simulate.answers import Answer, Answers
from headway.simulate.dialects.base import Asked, Dialect, Events, told_of
from headway.simulate.forms import go_duration, milliseconds, seconds
from headway.simulate.rules import Rule, plain_number
from headway.simulate.streams import events_of

_PERIODS = {1.0: "sec", 60.0: "min", 3600.0: "hour", 86400.0: "day"}
_LETTERS = {"requests": "R", "tokens": "T", "input_tokens": "IT", "output_tokens": "OT"}


class Compatible(Dialect):
    """Paths, answers, events and errors like OpenAI's; what it tells of limits is its own."""

    periods: Mapping[float, str] = _PERIODS
    """What periods in seconds are called in its messages."""

    def silent_refusal_body(self, model: str) -> bytes:
        message = f"Rate limit reached for {model}."
        return openai_error(message, "requests", "rate_limit_exceeded")

    def failure_body(self, status: int) -> bytes:
        message, kind = failure_words(status)
        return openai_error(message, kind, "rate_limit_exceeded" if status == 429 else None)

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return openai_error(message, "invalid_request_error", code)

    def whole(self, asked: Asked, answers: Answers, now: int) -> tuple[Answer, int]:
        body = answers.answer(asked.path, asked.body, asked.tokens, now)
        usage = body["usage"]
        return body, usage["total_tokens"] - usage.get("prompt_tokens", usage.get("input_tokens"))

    def events(self, asked: Asked, answers: Answers, now: int) -> Events:
        head = answers.head(asked.path, asked.body, now)
        return events_of(head, answers.words(asked.tokens), asked.tokens, asked.body)

    def unit(self, rule: Rule) -> str:
        """What a rule counts, as in `tokens per min (TPM)`."""
        if rule.resource == "concurrency":
            return "concurrent requests"
        period = self.periods.get(rule.per_seconds)
        if period is None:
            return f"{rule.resource} per {plain_number(rule.per_seconds)}s"
        return f"{rule.resource} per {period} ({_LETTERS[rule.resource]}P{period[0].upper()})"


class OpenAI(Compatible):
    """A reset is a Go duration until all of the limit is there again, in milliseconds."""

    told = (
        told_of("requests", "x-ratelimit-*-requests"),
        told_of("tokens", "x-ratelimit-*-tokens"),
    )
    retry = (("retry-after", seconds), ("retry-after-ms", milliseconds))

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        rule = refusal.rule
        where = f"for {asked.model} in organization org-simulated on {self.unit(rule)}"
        if refusal.never:
            message = (
                f"Request too large {where}: Limit {rule.capacity}, Requested {refusal.cost}. The "
                "input or output tokens must be reduced in order to run successfully."
            )
        else:
            message = (
                f"Rate limit reached {where}: {numbers_of(refusal)} Visit "
                "https://platform.openai.com/account/rate-limits to learn more."
            )
        return openai_error(message, kind_of(rule), "rate_limit_exceeded")


def numbers_of(refusal: Refusal) -> str:
    """The numbers of the rule that refused, and when to try again."""
    again = "later" if refusal.wait_ns is None else f"in {go_duration(refusal.wait_ns)}"
    return (
        f"Limit {refusal.rule.amount}, Used {refusal.used}, Requested {refusal.cost}. "
        f"Please try again {again}."
    )


def kind_of(rule: Rule) -> str:
    """The type of error that a refusal by this rule is."""
    return "tokens" if rule.resource == "tokens" else "requests"


def failure_words(status: int) -> tuple[str, str]:
    """The message and the type of a failure that no limit has to do with."""
    if status == 429:
        return "Rate limit reached for another reason.", "requests"
    if status in (503, 529):
        return "The engine is currently overloaded, please try again later.", "server_error"
    if status < 500:
        return "The request failed.", "invalid_request_error"
    return (
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
    )


def openai_error(message: str, kind: str | None, code: str | None) -> bytes:
    """An error in OpenAI's shape."""
    fault = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": fault}, indent=2).encode()
