"""What a dialect is: the names and words of one provider, as the simulated one needs them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from headway.simulate.admission import Admission, Refusal
from headway.simulate.answers import Answer, Answers, model_of, models
from headway.simulate.forms import Form, go_duration
from headway.simulate.parsing import Request
from headway.simulate.tokens import TokenEstimate, estimate_tokens

Events = list[tuple[bytes, int]]
"""The events of a stream, and how many tokens each brings."""


@dataclass(frozen=True)
class Asked:
    """A well-formed request for an answer."""

    path: str
    query: str
    body: dict[str, Any]
    model: str
    tokens: TokenEstimate
    streams: bool


@dataclass(frozen=True)
class Told:
    """The headers, by name, in which answers tell of a limit; None where there is none.

    It is the first rule of `resource` that is not hidden and, where `period` is given, has that
    period in seconds: any other is enforced, and told in no header. What remains is rounded to
    the nearest multiple of `rounding`; a smaller burst is not told (real servers hide theirs).
    """

    resource: str
    limit: str | None = None
    remaining: str | None = None
    reset: str | None = None
    form: Form = go_duration
    period: float | None = None
    rounding: int = 1

    def lines(self, admission: Admission, now: int, present: int) -> str:
        """The header lines as of `now`; `present` is the same instant since the epoch."""
        count = admission.told(self.resource, self.period)
        if count is None:
            return ""
        left = max(0, count.rule.amount - count.used(now))
        left = (left + self.rounding // 2) // self.rounding * self.rounding
        values = (
            (self.limit, str(count.rule.amount)),
            (self.remaining, str(left)),
            (self.reset, self.form(count.full_in(now), present)),
        )
        return "".join(f"{name}: {value}\r\n" for name, value in values if name is not None)


def told_of(resource: str, names: str, form: Form = go_duration, **options: Any) -> Told:
    """Told in three headers, whose names are `names` with another word in place of the `*`."""
    limit, remaining, reset = (names.replace("*", word) for word in ("limit", "remaining", "reset"))
    return Told(resource, limit, remaining, reset, form, **options)


class Dialect(ABC):
    """The paths, headers, bodies, events and ways of counting of one provider.

    It decides nothing and keeps nothing. Most of it is data that a subclass sets; what more there
    is, it overrides.
    """

    prefixes: tuple[str, ...] = ("/v1/",)
    """What the paths of its API begin with."""
    key_header = "authorization"
    key_status = 401
    """With which a request without the right key is rejected."""
    told: tuple[Told, ...] = ()
    """What every answer that was counted, admitted or refused, has in its headers."""
    retry: tuple[tuple[str, Form], ...] = ()
    """The headers in which a refusal says when to try again."""
    error_type = "application/json"
    patience: tuple[int, float] | None = None
    """After more failures than so many in so many seconds, all is refused for as many seconds."""

    def takes(self, path: str) -> bool:
        """Whether requests for answers are posted there: everywhere, as in compatible APIs."""
        return path.startswith(self.prefixes)

    def lists_models(self, path: str) -> bool:
        """Whether there the models are listed."""
        return any(path == f"{prefix}models" for prefix in self.prefixes)

    def models(self) -> Answer:
        """The list of models."""
        return models()

    def key_of(self, request: Request) -> str:
        """The key that a request carries; empty where it carries none."""
        return request.headers.get(self.key_header, "").removeprefix("Bearer ")

    def model_in(self, path: str) -> str | None:
        """The model that a path names; None where it is for the body to name it."""
        return None

    def ask(self, request: Request, body: dict[str, Any]) -> Asked:
        """What this request asks for; ValueError where its maximum is none."""
        return Asked(
            request.path,
            request.query,
            body,
            self.model_in(request.path) or model_of(body),
            estimate_tokens(body),
            body.get("stream") is True,
        )

    def costs(self, asked: Asked) -> dict[str, int]:
        """What a request costs of each resource when it is counted; what comes out comes later."""
        return {
            "requests": 1,
            "tokens": asked.tokens.counted,
            "input_tokens": asked.tokens.prompt,
            "output_tokens": 0,
        }

    def limit_headers(self, asked: Asked, admission: Admission, now: int) -> str:
        """What an answer says about the limits, as of `now`."""
        present = time.time_ns()
        return "".join(each.lines(admission, now, present) for each in self.told)

    def retry_headers(self, refusal: Refusal) -> str:
        """When to try again, where an instant can be named."""
        wait = refusal.wait_ns
        if wait is None:
            return ""
        present = time.time_ns()
        return "".join(f"{name}: {form(wait, present)}\r\n" for name, form in self.retry)

    def refusal_status(self, refusal: Refusal) -> int:
        """The status of a refusal."""
        return 429

    @abstractmethod
    def refusal_body(self, refusal: Refusal, asked: Asked) -> bytes:
        """The body of a refusal, with what this provider tells of the limit that refused."""

    @abstractmethod
    def silent_refusal_body(self, model: str) -> bytes:
        """The body of a refusal that says nothing of any limit."""

    def impatient_body(self) -> bytes:
        """The body of a refusal for having failed too often, where `patience` is set."""
        return self.silent_refusal_body("")

    @abstractmethod
    def failure_body(self, status: int) -> bytes:
        """The body of a failure that no limit has to do with."""

    @abstractmethod
    def error_body(self, status: int, message: str, code: str | None = None) -> bytes:
        """The body of any other error."""

    @abstractmethod
    def whole(self, asked: Asked, answers: Answers, now: int) -> tuple[Answer, int]:
        """An answer in one piece, and how many tokens it has; `now` in seconds since the epoch."""

    @abstractmethod
    def events(self, asked: Asked, answers: Answers, now: int) -> Events:
        """An answer in pieces."""

    def events_type(self, asked: Asked) -> str:
        """The content type of an answer in pieces."""
        return "text/event-stream; charset=utf-8"


def name_in(path: str, before: str, behind: str) -> str | None:
    """What stands in a path between `before` and the next `behind`, with its escapes undone."""
    _, found, rest = path.partition(before)
    name, ended, _ = rest.partition(behind)
    return unquote(name) if found and ended and name else None
