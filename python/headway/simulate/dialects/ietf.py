"""What the IETF's draft says: RateLimit-Policy and RateLimit, and problems as bodies.

draft-ietf-httpapi-ratelimit-headers-11.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from headway.simulate.admission import Admission, Refusal
from headway.simulate.dialects.base import Asked
from headway.simulate.dialects.openai import Compatible, failure_words
from headway.simulate.forms import seconds
from headway.simulate.rules import Rule

_PROBLEMS = "https://iana.org/assignments/http-problem-types#"
_EXCEEDED = "Request cannot be satisfied as assigned quota has been exceeded"


class IETF(Compatible):
    """Every limit of requests is told that has a period of whole seconds, all at once.

    There is no unit for tokens: limits of them are enforced, and not told.
    """

    retry = (("retry-after", seconds),)
    error_type = "application/problem+json"

    def limit_headers(self, asked: Asked, admission: Admission, now: int) -> str:
        told = [count for count in admission.rates if _policy_of(count.rule) is not None]
        if not told:
            return ""
        policies, states = [], []
        for count in told:
            name, rule = f'"{_policy_of(count.rule)}"', count.rule
            left = max(0, rule.amount - count.used(now))
            policies.append(f"{name};q={rule.amount};w={int(rule.per_seconds)}")
            states.append(f"{name};r={left};t={seconds(count.full_in(now))}")
        return f"ratelimit-policy: {', '.join(policies)}\r\nratelimit: {', '.join(states)}\r\n"

    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        names = [_policy_of(each.rule) for each in (refusal, *refusal.also)]
        violated = [name for name in names if name is not None]
        return _problem(429, _EXCEEDED, "quota-exceeded", violated)

    def silent_refusal_body(self, model: str) -> bytes:
        return _problem(429, _EXCEEDED, "quota-exceeded")

    def failure_body(self, status: int) -> bytes:
        kind = {429: "abnormal-usage-detected", 503: "temporary-reduced-capacity"}.get(status)
        return _problem(status, failure_words(status)[0], kind)

    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        return _problem(status, HTTPStatus(status).phrase, detail=message)


def _policy_of(rule: Rule) -> str | None:
    """What the policy is called that tells of this rule, which none does of some."""
    told = rule.resource == "requests" and not rule.hidden and rule.per_seconds % 1 == 0
    return f"{rule.shape}-{int(rule.per_seconds)}s" if told else None


def _problem(
    status: int,
    title: str,
    kind: str | None = None,
    violated: list[str] | None = None,
    detail: str | None = None,
) -> bytes:
    problem: dict[str, object] = {
        "type": "about:blank" if kind is None else f"{_PROBLEMS}{kind}",
        "title": title,
        "status": status,
    }
    if violated:
        problem["violated-policies"] = violated
    if detail is not None:
        problem["detail"] = detail
    return json.dumps(problem).encode()
