"""Admission over several rules: look at all of them first, then take from all or from none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headway.simulate.counting import Count, count_of
from headway.simulate.rules import Rule


@dataclass(frozen=True)
class Refusal:
    """Why a request was not admitted: the rule that it would have to wait for longest."""

    rule: Rule
    used: int
    cost: int
    wait_ns: int | None
    """Nanoseconds until the cost would fit; None where no instant can be named."""

    @property
    def never(self) -> bool:
        """The cost is larger than the rule will ever let through."""
        return self.cost > self.rule.capacity


class Admission:
    """All rules of one provider, and how many admitted requests have not ended yet.

    `count_refused`: a refused request is counted as a request too (never its tokens).
    """

    def __init__(
        self, rules: Iterable[Rule], epoch_at_zero: int, *, count_refused: bool = False
    ) -> None:
        self._epoch_at_zero = epoch_at_zero
        self._count_refused = count_refused
        self.in_flight = 0
        self.rates: list[Count] = []
        self.concurrency: list[Rule] = []
        self.change(rules, 0)

    def decide(self, now: int, costs: Mapping[str, int]) -> Refusal | None:
        """Counts a request that arrived at `now` against every rule, or says why against none.

        A request that is admitted is in flight until `end()`.
        """
        worst: Refusal | None = None
        longest = -1.0
        for count in self.rates:
            cost = costs[count.rule.resource]
            # What an answer will have is not known yet: something must be left.
            least = 1 if count.rule.resource == "output_tokens" else cost
            wait = count.wait(now, least)
            if wait != 0:
                length = float("inf") if wait is None else float(wait)
                if length > longest:
                    longest = length
                    worst = Refusal(count.rule, count.used(now), cost, wait)
        if worst is None:
            worst = self._crowded()
        if worst is None:
            for count in self.rates:
                count.take(now, costs[count.rule.resource])
            self.in_flight += 1
        elif self._count_refused:
            for count in self.rates:
                if count.rule.resource == "requests":
                    count.take_refused(now, 1)
        return worst

    def told(self, resource: str, period: float | None = None) -> Count | None:
        """The first of the rates of this resource and period: what answers tell of."""
        for count in self.rates:
            rule = count.rule
            if rule.resource == resource and period in (None, rule.per_seconds):
                return count
        return None

    def produce(self, now: int, tokens: int) -> None:
        """Counts tokens of an answer as they come, whether or not they fit."""
        for count in self.rates:
            if count.rule.resource == "output_tokens":
                count.take(now, tokens)

    def end(self) -> None:
        """An admitted request has been answered, or nobody is there any more to answer."""
        self.in_flight -= 1

    def change(self, rules: Iterable[Rule], now: int) -> None:
        """Enforces `rules` from `now` on.

        A rule that differs from one before only in its amount or burst goes on with what that
        one has counted, in units; any other starts empty.
        """
        before: dict[object, list[Count]] = {}
        for count in self.rates:
            before.setdefault(_identity(count.rule), []).append(count)
        self.rates = []
        self.concurrency = []
        for rule in rules:
            if rule.shape == "concurrency":
                self.concurrency.append(rule)
                continue
            kept = before.get(_identity(rule))
            if kept:
                kept[0].change(rule, now)
                self.rates.append(kept.pop(0))
            else:
                self.rates.append(count_of(rule, self._epoch_at_zero))

    def _crowded(self) -> Refusal | None:
        for rule in self.concurrency:
            if self.in_flight >= rule.amount:
                return Refusal(rule, self.in_flight, 1, None)
        return None


def _identity(rule: Rule) -> tuple[str, str, int, float | None]:
    return rule.resource, rule.shape, rule.period_ns, rule.anchor
