"""Which queue is next."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

import headway.strategies
from headway.strategies import (
    AdaptiveStrategy,
    BaseSchedulingStrategy,
    DeficitRoundRobinStrategy,
    FairQueueStrategy,
    PriorityStrategy,
    WeightedRoundRobinStrategy,
    create_strategy,
)
from headway.types import TEXT, QueueInfo, RateLimitBucket

NAMES = ["weighted_round_robin", "priority", "deficit_round_robin", "fair_queue", "adaptive"]


def queue(key: str, depth: int = 1, rpm: int = 1000, priority: float = 0.0) -> QueueInfo:
    # Its `queue` stays empty, as a scheduler's stand-in does.
    info = QueueInfo(key, key, TEXT, asyncio.PriorityQueue(), RateLimitBucket(key, TEXT, rpm))
    info.queue_depth = info.total_enqueued = depth
    info.priority_sum = priority * depth
    return info


async def serve(strategy: BaseSchedulingStrategy, queues: list[QueueInfo], times: int) -> list[str]:
    keys = []
    for _ in range(times):
        chosen = await strategy.select(queues)
        assert chosen is not None
        keys.append(chosen.queue_key)
    return keys


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_finds_what_waits_behind_a_queue_that_is_a_stand_in(name: str) -> None:
    async def main() -> None:
        strategy = create_strategy(name.upper())
        assert await strategy.select([]) is None
        assert await strategy.select([queue("empty", depth=0)]) is None
        waiting = queue("waiting")
        for _ in range(5):
            assert await strategy.select([queue("empty", depth=0), waiting]) is waiting

    asyncio.run(main())


@pytest.mark.parametrize("name", NAMES)
def test_no_strategy_remembers_names_without_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headway.strategies, "_MANY", 50)

    async def main() -> None:
        strategy = create_strategy(name)
        for number in range(500):
            await strategy.select([queue(f"q{number}"), queue(f"p{number}")])
            if isinstance(strategy, AdaptiveStrategy):
                await strategy.record_response_time(f"m{number}", 1.0)
        notes = [each for each in vars(strategy).values() if isinstance(each, dict)]
        notes += [
            each._served
            for each in vars(strategy).values()
            if isinstance(each, headway.strategies._Turns)
        ]
        assert notes
        assert all(len(each) <= 54 for each in notes)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["weighted_round_robin", "deficit_round_robin", "fair_queue"])
def test_a_strategy_by_turns_serves_a_short_queue_beside_an_endless_one(name: str) -> None:
    async def main() -> None:
        queues = [queue("long", depth=400), queue("short", depth=1)]
        assert "short" in await serve(create_strategy(name), queues, 100)

    asyncio.run(main())


def test_weighted_turns_are_in_proportion_to_the_limits_and_evenly_spread() -> None:
    async def main() -> None:
        strategy = WeightedRoundRobinStrategy()
        queues = [queue("a", rpm=600), queue("b", rpm=300), queue("c", rpm=100), queue("d", rpm=0)]
        served = await serve(strategy, queues, 1000)
        assert Counter(served) == {"a": 600, "b": 300, "c": 100}
        assert Counter(served[:10]) == {"a": 6, "b": 3, "c": 1}
        assert strategy.selection_counts == {"a": 600, "b": 300, "c": 100}
        assert set(strategy.last_selected) == {"a", "b", "c"}

    asyncio.run(main())


def test_weighted_turns_go_on_where_every_limit_is_zero() -> None:
    async def main() -> None:
        queues = [queue("a", rpm=0), queue("b", rpm=0)]
        assert Counter(await serve(WeightedRoundRobinStrategy(), queues, 10)) == {"a": 5, "b": 5}

    asyncio.run(main())


def test_the_highest_priority_is_next_and_equals_take_turns() -> None:
    async def main() -> None:
        strategy = PriorityStrategy()
        low, high, other = queue("low"), queue("high", priority=5), queue("other", priority=5)
        assert await serve(strategy, [low, high, other], 4) == ["high", "other", "high", "other"]
        high.queue_depth = high.total_enqueued = 0
        assert await serve(strategy, [low, high, other], 2) == ["other", "other"]

    asyncio.run(main())


def test_deficits_are_in_proportion_to_what_waits_and_stay_bounded() -> None:
    async def main() -> None:
        strategy = DeficitRoundRobinStrategy()
        assert strategy.quantum == 100.0
        queues = [queue("a", depth=20), queue("b", depth=0 + 5)]  # gains of 300 and 150
        served = Counter(await serve(strategy, queues, 3000))
        assert served == {"a": 2000, "b": 1000}
        assert all(abs(each) <= 450 for each in strategy.deficits.values())

    asyncio.run(main())


def test_fair_turns_survive_that_queues_come_and_go() -> None:
    async def main() -> None:
        strategy = FairQueueStrategy()
        assert strategy.last_index == -1
        a, b, c = queue("a"), queue("b"), queue("c")
        assert await serve(strategy, [a, b, c], 4) == ["a", "b", "c", "a"]
        assert strategy.last_index == 0
        # A place in the list says nothing: b and c have waited longer.
        assert await serve(strategy, [c, a, b], 3) == ["b", "c", "a"]

    asyncio.run(main())


def test_a_stream_of_newcomers_does_not_keep_a_queue_from_its_turn() -> None:
    async def main() -> None:
        strategy = FairQueueStrategy()
        old = queue("old")
        await strategy.select([old])
        served = [await strategy.select([queue(f"new{n}"), old]) for n in range(4)]
        assert old in served

    asyncio.run(main())


def test_adaptive_prefers_what_is_long_then_what_has_waited_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(headway.strategies, "monotonic", lambda: now[0])

    async def main() -> None:
        strategy = AdaptiveStrategy()
        assert (strategy.alpha, strategy.beta, strategy.gamma) == (0.7, 0.3, 0.2)
        long, short = queue("long", depth=100), queue("short")
        served = []
        for _ in range(400):
            now[0] += 1
            chosen = await strategy.select([long, short])
            assert chosen is not None
            served.append(chosen.queue_key)
        assert served[0] == "long"
        assert 1 <= Counter(served)["short"] <= 2

    asyncio.run(main())


def test_adaptive_prefers_a_model_that_answers_quickly() -> None:
    async def main() -> None:
        strategy = AdaptiveStrategy()
        for _ in range(250):
            await strategy.record_response_time("slow", 10.0)
            await strategy.record_response_time("quick", 1.0)
        for nonsense in (-1.0, math.nan, math.inf):
            await strategy.record_response_time("quick", nonsense)
        assert len(strategy._times["quick"]) == strategy.max_response_times == 100
        assert strategy._samples == 200
        queues = [queue("slow", depth=5), queue("quick", depth=5)]
        assert await serve(strategy, queues, 1) == ["quick"]

    asyncio.run(main())


def test_an_unknown_strategy_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(ValueError) as error:
        create_strategy("random")
    assert str(error.value).startswith("Unknown scheduling strategy: random. Available strategies:")
    for name in NAMES:
        assert name in str(error.value)
