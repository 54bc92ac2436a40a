"""Counts what happens in a run, and sums it up in the end."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from statistics import fmean, median
from typing import final

from headway._tokens import used_tokens
from headway.batch.groups import Group, Groups
from headway.batch.lines import Line
from headway.batch.plan import Plan
from headway.batch.results import Outcome


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of a run, by the names that `--summary` writes.

    requests: those that ended, succeeded or failed; a broken line is none. refusals: answers 429.
    retries: attempts beyond each request's first. tokens: what the answers say was used.
    elapsed_s: from the start to the last result. ideal_s: what the binding limit needs for the
    requests sent, with its first burst, plus the median latency of those that succeeded.
    use: ideal_s / elapsed_s. wait_p50_s, wait_p99_s: from the start, when all of them stood in the
    file, until a request was first let through.
    None where nothing was sent that could tell.
    """

    requests: int
    succeeded: int
    failed: int
    refusals: int
    retries: int
    tokens: int
    elapsed_s: float
    ideal_s: float | None
    use: float | None
    wait_p50_s: float | None
    wait_p99_s: float | None

    def as_dict(self) -> dict[str, int | float | None]:
        """For JSON, with times to the microsecond."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@final
class Tally:
    """What has happened so far to the `total` lines of a run.

    reasons: how many requests failed, by why. models, accounts: the same by the line's names.
    """

    def __init__(self, total: int, plan: Plan) -> None:
        self.total = total
        self._plan = plan
        self.succeeded = 0
        self.failed = 0
        self.broken = 0
        self.refusals = 0
        self.retries = 0
        self.tokens = 0
        self.in_flight = 0
        self.reasons: Counter[str] = Counter()
        self.models = Groups()
        self.accounts = Groups()
        self._taken: dict[str, Counter[str]] = {}  # by bucket
        # Eight bytes each, so a million requests are no burden.
        self._waits = array("d")
        self._latencies = array("d")
        self._began = self._ended = time.monotonic()
        self._began_wall = time.time()

    @property
    def requests(self) -> int:
        """How many requests have ended."""
        return self.succeeded + self.failed

    def begin(self) -> None:
        """The run begins now."""
        self._began = self._ended = time.monotonic()
        self._began_wall = time.time()

    def admit(self, line: Line, amounts: Mapping[str, int]) -> None:
        """`line` is let through for the first time; it took these amounts, by resource."""
        wait = time.monotonic() - self._began
        self._waits.append(wait)
        for group in self._groups_of(line):
            group.waits.append(wait)
        self._taken.setdefault(self._plan.bucket_of(line), Counter()).update(amounts)

    def settle(self, line: Line, amounts: Mapping[str, int], used: Mapping[str, int]) -> None:
        """Of the amounts that it took, so much is what `line` has used."""
        taken = self._taken[self._plan.bucket_of(line)]
        taken.update({name: amount - amounts.get(name, 0) for name, amount in used.items()})

    def attempt(self, outcome: Outcome) -> None:
        """An attempt has ended."""
        self.refusals += outcome.status == 429
        self.tokens += used_tokens(outcome.body)
        if outcome.succeeded and outcome.latency is not None:
            self._latencies.append(outcome.latency)

    def end(self, line: Line, outcome: Outcome) -> None:
        """`line` has ended, and its result is written."""
        failed = not outcome.succeeded
        if failed:
            self.failed += 1
            self.reasons[outcome.why] += 1
        else:
            self.succeeded += 1
        for group in self._groups_of(line):
            group.requests += 1
            group.failed += failed
        self._ended = time.monotonic()

    def _groups_of(self, line: Line) -> tuple[Group, Group]:
        return self.models.of(line.model), self.accounts.of(line.account or "")

    def binding(self) -> tuple[str, float] | None:
        """The limit that what was sent needs the most time for, and that time in seconds."""
        if not self._latencies:
            return None
        return self._plan.binding(self._taken, self._began_wall, fmean(self._latencies))

    def summary(self) -> Summary:
        """The numbers so far."""
        elapsed = self._ended - self._began
        bound = self.binding()
        ideal = None if bound is None else bound[1] + median(self._latencies)
        return Summary(
            requests=self.requests,
            succeeded=self.succeeded,
            failed=self.failed,
            refusals=self.refusals,
            retries=self.retries,
            tokens=self.tokens,
            elapsed_s=elapsed,
            ideal_s=ideal,
            use=ideal / elapsed if ideal is not None and elapsed > 0 else None,
            wait_p50_s=quantile(self._waits, 0.50),
            wait_p99_s=quantile(self._waits, 0.99),
        )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that `share` of the values do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[ceil(share * len(ordered)) - 1]
