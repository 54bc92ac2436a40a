"""Which limits a run keeps, and for which of its lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headway import Limit
from headway.batch.failures import MayPass
from headway.batch.ideal import Work, least_seconds
from headway.batch.keys import Keys
from headway.batch.lanes import MOST_HELD
from headway.batch.lines import Broken, Line
from headway.providers import ProviderTable
from headway.providers.table import table_named
from headway.scheduler import RateLimiterConfig, Scheduler, SchedulerMode
from headway.scheduler.answers import read_usage
from headway.scheduler.streams import at_least
from headway.transports._requests import Outputs, asked_of_model, cost_of
from headway.types import TEXT, RequestMetadata

_MOST_AT_ONCE = 2**53
_NEVER = 2**31


@dataclass(frozen=True)
class Plan:
    """The limits, and how lines are scheduled.

    limits: of all models together that have none of their own. Without any, those of each such
    model are found out from answers; basic mode finds out nothing, and such a line fails there.
    by_model: those of a model alone. concurrency: how many may be under way at once over all.
    weights: by account. found: by bucket, what has been found out. table: of the provider. learnt:
    by bucket, what had been found out before. outputs: how long answers are.
    """

    limits: tuple[Limit, ...] = ()
    by_model: Mapping[str, tuple[Limit, ...]] = field(default_factory=dict)
    concurrency: int | None = None
    mode: SchedulerMode = SchedulerMode.INTELLIGENT
    keys: Keys = field(default_factory=Keys)
    weights: Mapping[str, float] = field(default_factory=dict)
    found: dict[str, tuple[Limit, ...]] = field(default_factory=dict)
    table: ProviderTable = field(default_factory=lambda: table_named("generic"))
    learnt: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: Outputs = field(default_factory=Outputs)

    @property
    def discovers(self) -> bool:
        """Whether limits of models that have none of their own are found out."""
        return not self.limits and self.mode is not SchedulerMode.BASIC

    def finds_out(self, line: Line) -> bool:
        """Whether the limits of its model are found out."""
        return self.discovers and line.model not in self.by_model

    @property
    def shared(self) -> str:
        """The bucket of models that have no limits of their own."""
        name = "every other model" if self.by_model else "every model"
        while name in self.by_model:
            name += "'"
        return name

    @property
    def lane_of(self) -> Callable[[Line], Hashable] | None:
        """Which lines must not wait behind others in the file; None where all are alike."""
        if not self.by_model and not self.discovers and self.keys == Keys():
            return None
        return lambda line: (self.bucket_of(line), line.account, line.priority)

    def bucket_of(self, line: Line) -> str:
        """What counts `line`."""
        if line.model in self.by_model:
            return line.model
        if not self.discovers:
            return self.shared
        return self.table.bucket_for(line.model)

    def check(self, lines: Iterable[Line | Broken]) -> Iterator[Line | Broken]:
        """The lines; those that no limit holds for are wrong."""
        unlimited = not self.limits and self.concurrency is None and not self.discovers
        for line in lines:
            if unlimited and isinstance(line, Line) and line.model not in self.by_model:
                text = f"line {line.number}: model {line.model!r} has no --model-limits, and there "
                yield replace(line, wrong=("no_limits", text + "are no --limits for all others"))
            else:
                yield line

    def in_turns(self, lines: Iterable[Line]) -> list[Line]:
        """The lines as they would go out if they all waited: by priority, and by accounts' shares.

        Shares of their number: what they cost is not looked at.
        """
        before: Counter[tuple[int, str | None]] = Counter()

        def turn(line: Line) -> tuple[int, float]:
            whose = (line.priority, line.account)
            before[whose] += 1
            weight = self.weights.get(line.account, 1.0) if line.account is not None else 1.0
            return -line.priority, (before[whose] - 1) / weight

        return sorted(lines, key=turn)

    def amounts_of(self, line: Line) -> dict[str, int]:
        """What `line` costs, by resource."""
        amounts = {"requests": 1, "concurrency": 1}
        limits = self.by_model.get(line.model, self.limits)
        unknown = self.finds_out(line)
        if unknown or any(limit.resource == "tokens" for limit in limits):
            asked = asked_of_model(line.model, line.url, line.body)
            cost = cost_of(asked, self.table, self.outputs)
            amounts.update(cost if unknown else {"tokens": cost["tokens"]})
        return amounts

    def used_by(self, line: Line, body: object, amounts: Mapping[str, int]) -> dict[str, int]:
        """Of what was taken for `line`, what its answer says was used, by resource.

        Of tokens that are counted as one, what was asked stays spent: providers count it when it
        arrives, and give nothing back for an answer that turned out shorter.
        """
        used = read_usage(body)
        self.outputs.note(line.model, used.get("output_tokens"))
        used.pop("tokens", None)
        return at_least(used, amounts, self.table.kept)

    def metadata_of(self, line: Line, amounts: Mapping[str, int]) -> RequestMetadata:
        """`line` as a scheduler sees it."""
        return RequestMetadata(
            request_id=line.custom_id,
            model_id=self.bucket_of(line),
            resource_type=TEXT,
            estimated_tokens=amounts.get("tokens"),
            cost=amounts if self.finds_out(line) else None,
            priority=line.priority,
            timeout=None,
            client_id=line.account,
        )

    def scheduler(self, most_at_once: int, **options: Any) -> Scheduler:
        """A scheduler that keeps it. most_at_once: for other reasons than limits."""
        at_once = min(self.concurrency or _MOST_AT_ONCE, most_at_once, _MOST_AT_ONCE)
        config = RateLimiterConfig(
            mode=self.mode,
            max_concurrent_executions=at_once,
            max_queue_size=MOST_HELD,
            overflow_policy="wait",
            rate_limit_buffer_ratio=1.0,
            # Lines that fail while a server is in trouble are for the retries to save.
            max_failures=_NEVER,
            max_backoff=30.0,
            metrics_enabled=False,
            **options,
        )
        limits: dict[str, tuple[Limit, ...]] = dict(self.by_model)
        if not self.discovers:
            limits[self.shared] = self.limits
        scheduler = Scheduler(
            None,
            config,
            self.table,
            limits=limits or None,
            learnt_limits=self.learnt,
            accounts=dict(self.weights),
            retry_on=(MayPass,),
        )
        scheduler._hears_transport = self.discovers
        return scheduler

    def binding(
        self, taken: Mapping[str, Counter[str]], began: float, latency: float
    ) -> tuple[str, float]:
        """The limit that needs the most time for what was taken by bucket, and that time."""
        found: list[tuple[str, float]] = []
        for bucket, amounts in taken.items():
            work = Work(dict(amounts), began, latency)
            of = f" of {bucket}" if bucket in self.by_model or bucket in self.found else ""
            for limit in self.by_model.get(bucket, self.found.get(bucket, self.limits)):
                found.append((f"{limit}{of}", least_seconds(limit, work)))
        if self.concurrency is not None:
            at_once = Limit(self.concurrency, "concurrency", shape="concurrency")
            total = sum(amounts["concurrency"] for amounts in taken.values())
            work = Work({"concurrency": total}, began, latency)
            found.append((str(at_once), least_seconds(at_once, work)))
        return max(found, key=lambda each: each[1], default=("-", 0.0))
