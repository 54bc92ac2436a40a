"""What a simulated provider has decided so far, and the most that it could have admitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from headway.simulate.admission import Admission
from headway.simulate.rules import Rule

Decision = tuple[float, int, int, str]
"""Monotonic seconds, HTTP status (0: dropped), tokens, x-client-request-id or else the path."""


class Tally:
    """Numbers of one stretch, from its first request on; a change of limits begins a new one.

    `report()` gives, as JSON:

    - `admitted`: requests that passed every rule; `failed`: those of them that were then made to
      fail; `refused`: requests that a rule refused. Requests that were no good (400, 401, 404)
      are only in `invalid`.
    - `refused_by`: of the refused, how many by which limit, in its own words: where several had
      no room, it is the one that would have had to be waited for longest.
    - `first`: the instant at which the first request was counted or refused; `last`: the instant
      at which the last one was admitted; both in seconds of this machine's monotonic clock, or
      null where there was none.
    - `by_rule`: in the order of the rules, whether it is `hidden`, `used`, what admitted requests
      took of the rule's resource, and `most`, the most that it would have let through from `first`
      to `last`, both included, had it counted nothing before `first` and had the costs been as
      small as is best: for `bucket` burst + floor(amount x (last - first) / period), for `window`
      amount x (floor((last - first) / period) + 1), for `fixed` amount x the number of windows
      that [first, last] touches. For `concurrency`, `used` is the most requests that were in
      flight at once and `most` the amount.
    - `most`: the most *requests* that the rate rules would have let through in that time: the
      least, over them, of the rule's `most` divided by what an admitted request took of it on
      average, rounded down; null without a rate rule or an admitted request.
    - `in_flight`: admitted requests that have not ended.

    Output tokens count as they come, so `used` of a rule of theirs may be more than `most`.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.admitted = 0
        self.refused = 0
        self.failed = 0
        self.invalid = 0
        self._refused_by: Counter[str] = Counter()
        self._first: int | None = None
        self._last: int | None = None
        self._taken = dict.fromkeys(("requests", "tokens", "input_tokens", "output_tokens"), 0)
        self._at_once = admission.in_flight

    def admit(self, now: int, costs: Mapping[str, int]) -> None:
        """Notes a request that the rules let through at `now` (nanoseconds)."""
        if self._first is None:
            self._first = now
        self._last = now
        self.admitted += 1
        for resource in self._taken:
            self._taken[resource] += costs.get(resource, 0)
        self._at_once = max(self._at_once, self._admission.in_flight)

    def produce(self, tokens: int) -> None:
        """Notes tokens of an answer."""
        self._taken["output_tokens"] += tokens

    def refuse(self, now: int, reason: str) -> None:
        """Notes a request that was refused at `now` (nanoseconds), and by what."""
        if self._first is None:
            self._first = now
        self.refused += 1
        self._refused_by[reason] += 1

    def report(self) -> dict[str, Any]:
        """The numbers as they are now; the class says what each one means."""
        by_rule: list[dict[str, Any]] = []
        bounds: list[int] = []
        for count in self._admission.rates:
            rule = count.rule
            used = self._taken[rule.resource]
            most = 0
            if self._first is not None and self._last is not None:
                most = count.most(self._first, self._last)
            if used:
                bounds.append(most * self.admitted // used)
            by_rule.append(_of_rule(rule, used, most))
        for rule in self._admission.concurrency:
            by_rule.append(_of_rule(rule, self._at_once, rule.amount))
        return {
            "admitted": self.admitted,
            "refused": self.refused,
            "refused_by": dict(self._refused_by),
            "failed": self.failed,
            "invalid": self.invalid,
            "most": min(bounds, default=None),
            "by_rule": by_rule,
            "first": _seconds(self._first),
            "last": _seconds(self._last),
            "in_flight": self._admission.in_flight,
        }


def _of_rule(rule: Rule, used: int, most: int) -> dict[str, Any]:
    return {
        "rule": str(rule),
        "resource": rule.resource,
        "hidden": rule.hidden,
        "used": used,
        "most": most,
    }


def _seconds(instant: int | None) -> float | None:
    return None if instant is None else instant / 1e9
