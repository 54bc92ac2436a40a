"""What OpenAI says about its limits and its errors: headers and error bodies."""

from __future__ import annotations

import json

from headway.simulate.admission import Admission, Refusal
from headway.simulate.rules import Rule, plain_number

_MILLISECOND = 1_000_000
_PERIODS = {1.0: "sec", 60.0: "min", 3600.0: "hour", 86400.0: "day"}
_LETTERS = {"requests": "R", "tokens": "T", "input_tokens": "IT", "output_tokens": "OT"}
KEY_HEADER = "authorization"


def path_is_known(path: str) -> bool:
    """Whether requests for answers are posted there: everywhere, as in compatible APIs."""
    return path.startswith("/v1/")


def kind_of(status: int) -> str:
    """What a request that is no good is called."""
    return "invalid_request_error"


def go_duration(nanoseconds: int) -> str:
    """A duration as Go writes it, rounded up to whole milliseconds: `12ms`, `6m0s`, `1h0m2.5s`."""
    milliseconds = -(-nanoseconds // _MILLISECOND)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def limit_headers(admission: Admission, now: int) -> str:
    """`x-ratelimit-…` for the first rule of requests and the first of tokens, as of `now`.

    `remaining` is what is left of the limit's amount (a smaller burst is not told: real servers
    hide theirs), `reset` the time until all of it is.
    """
    return "".join(
        f"x-ratelimit-limit-{resource}: {count.rule.amount}\r\n"
        f"x-ratelimit-remaining-{resource}: {max(0, count.rule.amount - count.used(now))}\r\n"
        f"x-ratelimit-reset-{resource}: {go_duration(count.full_in(now))}\r\n"
        for resource, count in admission.first_of_each().items()
    )


def retry_headers(refusal: Refusal) -> str:
    """When to try again, in seconds and in milliseconds, both rounded up."""
    if refusal.wait_ns is None:
        return ""
    milliseconds = -(-refusal.wait_ns // _MILLISECOND)
    return f"retry-after: {-(-milliseconds // 1000)}\r\nretry-after-ms: {milliseconds}\r\n"


def refusal_body(refusal: Refusal, model: str) -> bytes:
    """The body of a 429, with the numbers of the rule that refused."""
    rule = refusal.rule
    where = f"for {model} in organization org-simulated on {_unit(rule)}"
    if refusal.never:
        message = (
            f"Request too large {where}: Limit {rule.capacity}, Requested {refusal.cost}. The "
            "input or output tokens must be reduced in order to run successfully."
        )
    else:
        again = "later" if refusal.wait_ns is None else f"in {go_duration(refusal.wait_ns)}"
        message = (
            f"Rate limit reached {where}: Limit {rule.amount}, Used {refusal.used}, "
            f"Requested {refusal.cost}. Please try again {again}. Visit "
            "https://platform.openai.com/account/rate-limits to learn more."
        )
    kind = "tokens" if rule.resource == "tokens" else "requests"
    return error_body(message, kind, "rate_limit_exceeded")


def silent_refusal_body(model: str) -> bytes:
    """The body of a 429 of a provider that says nothing about its limits."""
    return error_body(f"Rate limit reached for {model}.", "requests", "rate_limit_exceeded")


def failure_body(status: int) -> bytes:
    """The body of a failure that no limit has to do with."""
    if status == 429:
        return error_body(
            "Rate limit reached for another reason.", "requests", "rate_limit_exceeded"
        )
    if status in (503, 529):
        return error_body(
            "The engine is currently overloaded, please try again later.", "server_error", None
        )
    if status < 500:
        return error_body("The request failed.", "invalid_request_error", None)
    return error_body(
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
        None,
    )


def error_body(message: str, kind: str, code: str | None, param: str | None = None) -> bytes:
    """An error in OpenAI's shape."""
    fault = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": fault}, indent=2).encode()


def _unit(rule: Rule) -> str:
    if rule.resource == "concurrency":
        return "concurrent requests"
    period = _PERIODS.get(rule.per_seconds)
    if period is None:
        return f"{rule.resource} per {plain_number(rule.per_seconds)}s"
    return f"{rule.resource} per {period} ({_LETTERS[rule.resource]}P{period[0].upper()})"
