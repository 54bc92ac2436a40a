"""Which of several queues is served next, where each could be: five answers, and one by name.

A strategy belongs to one scheduler and is asked by one task at a time. What it remembers of queues
is forgotten for those that have gone, once they are many: their names may come from outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from headway.errors import ConfigurationError
from headway.types import QueueInfo

__all__ = [
    "AdaptiveStrategy",
    "BaseSchedulingStrategy",
    "DeficitRoundRobinStrategy",
    "FairQueueStrategy",
    "PriorityStrategy",
    "WeightedRoundRobinStrategy",
    "create_strategy",
]

_MANY = 10_000
"""So many names that are not asked about now are remembered at most."""


class BaseSchedulingStrategy(ABC):
    """Chooses among queues."""

    @abstractmethod
    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        """The one of `eligible` to take from next; None where nothing waits in any of them."""


class WeightedRoundRobinStrategy(BaseSchedulingStrategy):
    """In proportion to the requests a minute that each queue's limit allows.

    Evenly, without chance: each gains its weight a turn, the richest is served and pays for all.
    So credits add up to nothing, and none can grow for ever. last_selected: monotonic seconds, and
    selection_counts: times served; both by queue.
    """

    def __init__(self) -> None:
        self.last_selected: dict[str, float] = {}
        self.selection_counts: dict[str, int] = {}
        self._credits: dict[str, float] = {}

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        waiting = _waiting(eligible)
        if not waiting:
            return None
        weights = [max(0, info.rate_config.rpm_limit) / 100 for info in waiting]
        if not any(weights):
            weights = [1.0] * len(waiting)
        chosen = _richest(self._credits, waiting, weights)
        key = chosen.queue_key
        self.last_selected[key] = monotonic()
        self.selection_counts[key] = self.selection_counts.get(key, 0) + 1
        _forget_others(self._credits, eligible)
        _forget_others(self.last_selected, eligible)
        _forget_others(self.selection_counts, eligible)
        return chosen


class PriorityStrategy(BaseSchedulingStrategy):
    """The queue of the highest mean priority; among equals, in turn."""

    def __init__(self) -> None:
        self._turns = _Turns()

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        waiting = _waiting(eligible)
        if not waiting:
            return None
        highest = max(info.get_priority_for_scheduling() for info in waiting)
        equals = [info for info in waiting if info.get_priority_for_scheduling() == highest]
        return self._turns.next(equals, eligible)


class DeficitRoundRobinStrategy(BaseSchedulingStrategy):
    """In proportion to a quantum plus ten for each request that waits: the longer, the more often.

    Nobody is passed for ever however long another queue is, since the one served pays for what all
    have gained. deficits: what each is owed.
    """

    def __init__(self, quantum: float = 100.0) -> None:
        self.quantum = quantum
        self.deficits: dict[str, float] = {}

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        waiting = _waiting(eligible)
        if not waiting:
            return None
        gains = [self.quantum + 10.0 * _backlog(info) for info in waiting]
        chosen = _richest(self.deficits, waiting, gains)
        _forget_others(self.deficits, eligible)
        return chosen


class FairQueueStrategy(BaseSchedulingStrategy):
    """One after the other, however many come and go. last_index: where the last one stood."""

    def __init__(self) -> None:
        self.last_index = -1
        self._turns = _Turns()

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        waiting = _waiting(eligible)
        if not waiting:
            return None
        chosen = self._turns.next(waiting, eligible)
        self.last_index = next(i for i, info in enumerate(eligible) if info is chosen)
        return chosen


class AdaptiveStrategy(BaseSchedulingStrategy):
    """By a score: how many wait and for how long nothing was taken, more where that goes quickly.

    (alpha · waiting + beta · idle seconds) · (1 + rpm / 1000) · (1 + gamma · (mean / own - 1)), the
    last from response times told by `record_response_time`, the latest `max_response_times` of each
    model. The idle time has no upper bound, so that a short queue's turn comes too.
    """

    def __init__(self, alpha: float = 0.7, beta: float = 0.3, gamma: float = 0.2) -> None:
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.max_response_times = 100
        self._last: dict[str, float] = {}
        self._times: dict[str, deque[float]] = {}
        self._sum = 0.0
        self._samples = 0

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        waiting = _waiting(eligible)
        if not waiting:
            return None
        now = monotonic()
        # One that is new here has waited from now on.
        for info in waiting:
            self._last.setdefault(info.queue_key, now)
        chosen = max(waiting, key=lambda info: self._score(info, now))
        self._last[chosen.queue_key] = now
        _forget_others(self._last, eligible)
        return chosen

    async def record_response_time(self, model_id: str, seconds: float) -> None:
        """A call of that model took so long; what is no time is ignored."""
        if not 0 <= seconds < float("inf"):
            return
        # Taken out and put back at the end: the first is then the one told of least recently.
        times = self._times.pop(model_id, deque())
        self._times[model_id] = times
        times.append(seconds)
        self._sum += seconds
        self._samples += 1
        if len(times) > self.max_response_times:
            self._drop(times.popleft())
        if len(self._times) > _MANY:
            for old in self._times.pop(next(iter(self._times))):
                self._drop(old)

    def _drop(self, seconds: float) -> None:
        self._sum -= seconds
        self._samples -= 1

    def _score(self, info: QueueInfo, now: float) -> float:
        idle = now - self._last[info.queue_key]
        score = self.alpha * _backlog(info) + self.beta * idle
        score *= 1 + max(0, info.rate_config.rpm_limit) / 1000
        own = self._times.get(info.model_id)
        if own:
            own_mean = sum(own) / len(own)
            if own_mean > 0:
                score *= 1 + self.gamma * (self._sum / self._samples / own_mean - 1)
        return score


_STRATEGIES: dict[str, Callable[[], BaseSchedulingStrategy]] = {
    "weighted_round_robin": WeightedRoundRobinStrategy,
    "priority": PriorityStrategy,
    "deficit_round_robin": DeficitRoundRobinStrategy,
    "fair_queue": FairQueueStrategy,
    "adaptive": AdaptiveStrategy,
}
NAMES = tuple(_STRATEGIES)
"""What `create_strategy` takes."""


def create_strategy(name: str) -> BaseSchedulingStrategy:
    """A new strategy of that name, in any case of letters. ConfigurationError for another name."""
    make = _STRATEGIES.get(str(name).lower())
    if make is None:
        raise ConfigurationError(
            f"Unknown scheduling strategy: {name}. Available strategies: {list(NAMES)}"
        )
    return make()


class _Turns:
    """Whose turn it is: whoever was served, or first seen, the longest ago."""

    def __init__(self) -> None:
        self._turn = 0
        self._served: dict[str, int] = {}

    def next(self, candidates: Sequence[QueueInfo], known: Sequence[QueueInfo]) -> QueueInfo:
        # A newcomer stands behind all that wait, or a stream of them would keep the others waiting.
        for info in candidates:
            self._served.setdefault(info.queue_key, self._turn)
        chosen = min(candidates, key=lambda info: self._served[info.queue_key])
        self._turn += 1
        self._served[chosen.queue_key] = self._turn
        _forget_others(self._served, known)
        return chosen


def _backlog(info: QueueInfo) -> int:
    """How many wait, by whichever of its counts is kept: `queue` itself may be a stand-in."""
    return max(info.queue_depth, info.items_pending, info.current_size, 0)


def _waiting(eligible: Sequence[QueueInfo]) -> list[QueueInfo]:
    return [info for info in eligible if _backlog(info)]


def _richest(
    accounts: dict[str, float], candidates: Sequence[QueueInfo], gains: Sequence[float]
) -> QueueInfo:
    for info, gain in zip(candidates, gains, strict=True):
        accounts[info.queue_key] = accounts.get(info.queue_key, 0.0) + gain
    chosen = max(candidates, key=lambda info: accounts[info.queue_key])
    accounts[chosen.queue_key] -= sum(gains)
    return chosen


def _forget_others(notes: dict[str, Any], eligible: Sequence[QueueInfo]) -> None:
    if len(notes) > _MANY + len(eligible):
        kept = {info.queue_key for info in eligible}
        for key in [key for key in notes if key not in kept]:
            del notes[key]
