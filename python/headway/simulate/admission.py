"""Admission over several rules: look at all of them first, then take from all or from none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from headway.simulate.counting import Count, count_of
from headway.simulate.rules import Rule
from headway.simulate.timetable import replaced


@dataclass(frozen=True)
class Refusal:
    """Why a request was not admitted: the rule that it would have to wait for longest."""

    rule: Rule
    used: int
    cost: int
    wait_ns: int | None
    """Nanoseconds until the cost would fit; None where no instant can be named."""
    full_ns: int = 0
    """Nanoseconds until all of the limit is there again, if nothing more is taken."""
    also: tuple[Refusal, ...] = ()
    """The other rules that have no room for it."""

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
        refusals: list[Refusal] = []
        for count in self.rates:
            cost = costs[count.rule.resource]
            # What an answer will have is not known yet: something must be left.
            least = 1 if count.rule.resource == "output_tokens" else cost
            wait = count.wait(now, least)
            if wait != 0:
                used, full = count.used(now), count.full_in(now)
                refusals.append(Refusal(count.rule, used, cost, wait, full))
        if not refusals:
            refusals = self._crowded()
        if not refusals:
            for count in self.rates:
                count.take(now, costs[count.rule.resource])
            self.in_flight += 1
        elif self._count_refused:
            for count in self.rates:
                if count.rule.resource == "requests":
                    count.take_refused(now, 1)
        if not refusals:
            return None
        worst, *others = sorted(refusals, key=_length, reverse=True)
        return replace(worst, also=tuple(others))

    def told(self, resource: str, period: float | None = None) -> Count | None:
        """The first of the rates of this resource and period that is not hidden."""
        for count in self.rates:
            rule = count.rule
            fits = rule.resource == resource and period in (None, rule.per_seconds)
            if fits and not rule.hidden:
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
        before, self.rates = self.rates, []
        self.concurrency = []
        for rule in rules:
            if rule.shape == "concurrency":
                self.concurrency.append(rule)
                continue
            kept = next((each for each in before if each.rule.counts_like(rule)), None)
            if kept is None:
                kept = count_of(rule, self._epoch_at_zero)
            else:
                before.remove(kept)
                kept.change(rule, now)
            self.rates.append(kept)

    def turn(self, rule: Rule, now: int) -> None:
        """Enforces `rule` from `now` on, in place of the one that a `Change` to it is of.

        What that one has counted stays counted, in units, be the new one of another kind.
        """
        if rule.shape == "concurrency":
            at = replaced(self.concurrency, rule)
            if at is None:
                self.concurrency.append(rule)
            else:
                self.concurrency[at] = rule
            return
        at = replaced([count.rule for count in self.rates], rule)
        if at is None:
            self.rates.append(count_of(rule, self._epoch_at_zero))
        elif self.rates[at].rule.counts_like(rule):
            self.rates[at].change(rule, now)
        else:
            new = count_of(rule, self._epoch_at_zero)
            new.succeed(self.rates[at], now)
            self.rates[at] = new

    def _crowded(self) -> list[Refusal]:
        return [
            Refusal(rule, self.in_flight, 1, None)
            for rule in self.concurrency
            if self.in_flight >= rule.amount
        ]


def _length(refusal: Refusal) -> float:
    return float("inf") if refusal.wait_ns is None else refusal.wait_ns
