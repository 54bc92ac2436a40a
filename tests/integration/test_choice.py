"""Scheduling strategies: who goes next of several buckets that are ready at one instant."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from users import run_without_reader

from headway import (
    ConfigurationError,
    ManualClock,
    RateLimiterConfig,
    RequestMetadata,
    _core,
    create_scheduler,
)
from headway.scheduler import Scheduler
from headway.strategies import BaseSchedulingStrategy, create_strategy
from headway.types import QueueInfo


def make(strategy: Any, **options: Any) -> Scheduler:
    limits = options.pop("limits", None)
    config = RateLimiterConfig(
        max_concurrent_executions=1, rate_limit_buffer_ratio=1.0, max_queue_size=10_000, **options
    )
    # On a clock that stands still the core does at once what it is asked for.
    return create_scheduler(
        object(),
        config=config,
        scheduling_strategy=strategy,
        limits=limits,
        clock=ManualClock(),
    )


async def served(scheduler: Scheduler, requests: list[tuple[str, int]]) -> list[str]:
    """The models in the order in which they run, when all of them have been submitted first."""
    order: list[str] = []
    hold = asyncio.Event()

    def call(model: str) -> Callable[[], Awaitable[None]]:
        async def append() -> None:
            order.append(model)

        return append

    async with scheduler:
        first = asyncio.ensure_future(
            scheduler.submit_request(RequestMetadata("0", "first", "text"), hold.wait)
        )
        await asyncio.sleep(0)
        tasks = [
            asyncio.ensure_future(
                scheduler.submit_request(
                    RequestMetadata("r", model, "text", priority=priority), call(model)
                )
            )
            for model, priority in requests
        ]
        while len(tasks) > sum(  # noqa: ASYNC110 - the queue has no event for its tests
            bucket["queue_depth"] for bucket in scheduler.get_metrics()["buckets"].values()
        ):
            await asyncio.sleep(0)
        hold.set()
        await asyncio.wait_for(asyncio.gather(first, *tasks), 30)
    return order


class Last(BaseSchedulingStrategy):
    """The last by name."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[str, int]]] = []

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        self.seen.append([(info.queue_key, info.queue_depth) for info in eligible])
        return max(eligible, key=lambda info: info.queue_key)


def test_it_decides_between_buckets_that_are_ready_at_once() -> None:
    strategy = Last()
    requests = [(model, 0) for model in "abcabcabc"]
    order = asyncio.run(served(make(strategy), requests))
    assert order == list("cccbbbaaa")
    assert strategy.seen[0] == [("a", 3), ("b", 3), ("c", 3)], "who has waited longest is first"
    assert all(len(each) > 1 for each in strategy.seen), "one alone is no decision"


def test_it_decides_on_a_loop_that_watches_no_descriptors() -> None:
    requests = [(model, 0) for model in "abcabcabc"]
    assert run_without_reader(served(make(Last()), requests)) == list("cccbbbaaa")


class Timing(Last):
    """Is told how long calls took, and which queue was served when."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, float]] = []
        self.last: dict[str, Any] = {}

    async def record_response_time(self, model_id: str, seconds: float) -> None:
        self.told.append((model_id, seconds))

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        self.last.update({info.queue_key: info.last_request_time for info in eligible})
        return await super().select(eligible)


def test_it_is_told_how_long_calls_took_and_when_one_was_let_through() -> None:
    strategy = Timing()
    clock = ManualClock()
    config = RateLimiterConfig(max_concurrent_executions=1, max_retries=0)
    scheduler = create_scheduler(None, config=config, scheduling_strategy=strategy, clock=clock)

    def take(seconds: float, error: Exception | None = None) -> Any:
        clock.advance(seconds)
        if error is not None:
            raise error
        return "an answer"

    async def run() -> None:
        async def slow() -> Any:
            await asyncio.sleep(0)  # so that the others have to wait
            return take(10)

        async def fails() -> Any:
            return take(3, ValueError("no answer"))

        async with scheduler:
            await scheduler.submit_request(RequestMetadata("r", "x", "text"), slow)
            await asyncio.to_thread(
                scheduler.submit_sync, RequestMetadata("r", "y", "text"), lambda: take(5)
            )
            with pytest.raises(ValueError, match="no answer"):
                await scheduler.submit_request(RequestMetadata("r", "x", "text"), fails)
            requests = [
                scheduler.submit_request(RequestMetadata("r", model, "text"), slow)
                for model in "abcabc"
            ]
            assert await asyncio.wait_for(asyncio.gather(*requests), 10) == ["an answer"] * 6

    asyncio.run(run())
    assert strategy.told[:3] == [("x", 10.0), ("y", 5.0), ("a", 10.0)]
    assert strategy.last["c"] is not None


def test_one_that_fails_to_be_told_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    class Deaf(Timing):
        async def record_response_time(self, model_id: str, seconds: float) -> None:
            raise RuntimeError("no ears")

    scheduler = make(Deaf())
    requests = [(model, 0) for model in "abcabcabc"]
    assert asyncio.run(served(scheduler, requests)) == list("cccbbbaaa")
    assert scheduler.get_metrics()["user_code_errors"]["strategy"] > 0
    (told,) = [each for each in caplog.messages if "record_response_time" in each]
    assert told.startswith("record_response_time of strategy 'Deaf' raised RuntimeError: no ears")


def test_without_one_it_is_by_priority_and_age() -> None:
    requests = [("a", 0), ("b", 0), ("a", 0), ("c", 2), ("b", 1)]
    assert asyncio.run(served(make(None), requests)) == ["c", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    "name", ["weighted_round_robin", "priority", "deficit_round_robin", "fair_queue", "adaptive"]
)
def test_each_that_comes_with_headway_serves_everybody(name: str) -> None:
    limits = {"big": ["3_000 requests/min"], "small": ["1_000 requests/min"]}
    requests = [(model, 3 if model == "small" else 0) for model in ["big", "small"] * 40]
    order = asyncio.run(served(make(name, limits=limits), requests))
    assert Counter(order) == {"big": 40, "small": 40}
    first = Counter(order[:40])
    if name == "weighted_round_robin":
        assert 28 <= first["big"] <= 32
    elif name == "priority":
        assert first["small"] >= 39
    elif name in ("fair_queue", "deficit_round_robin"):
        assert 18 <= first["big"] <= 22


@pytest.mark.parametrize("how", ["raises", "none", "nonsense", "hangs"])
def test_one_that_does_not_work_holds_nobody_up(
    how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.scheduler.choice.PATIENCE", 0.01)

    class Broken(BaseSchedulingStrategy):
        async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
            if how == "raises":
                raise RuntimeError("mine")
            if how == "hangs":
                await asyncio.sleep(60)
            return None if how == "none" else 42  # type: ignore[return-value]

    scheduler = make(Broken())
    with caplog.at_level(logging.WARNING, "headway"):
        order = asyncio.run(served(scheduler, [(model, 0) for model in "aabb"]))
    assert sorted(order) == list("aabb")
    if how != "none":
        assert "select of strategy 'Broken'" in caplog.text
        assert scheduler.get_metrics()["user_code_errors"]["strategy"] >= 1


def test_what_is_none_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match="Unknown scheduling strategy: nonsense"):
        make("nonsense")
    with pytest.raises(
        ConfigurationError, match=r"scheduling_strategy 42: must have `async select"
    ):
        make(42)
    assert isinstance(create_strategy("FAIR_QUEUE"), BaseSchedulingStrategy)


def real(strategy: Any) -> Scheduler:
    """On the clock by which patience is measured."""
    config = RateLimiterConfig(max_concurrent_executions=1, rate_limit_buffer_ratio=1.0)
    return create_scheduler(object(), config=config, scheduling_strategy=strategy)


async def submit_all(scheduler: Scheduler, models: str) -> None:
    async def call() -> int:
        await asyncio.sleep(0)
        return 1

    results = await asyncio.wait_for(
        asyncio.gather(
            *(
                scheduler.submit_request(RequestMetadata("r", model, "text"), call)
                for model in models
            )
        ),
        20,
    )
    assert results == [1] * len(models)


def in_threads(scheduler: Scheduler, models: str) -> tuple[list[threading.Thread], list[str]]:
    """Threads that submit one each, begun; and the models in the order in which they ran."""
    order: list[str] = []

    def work(model: str) -> None:
        scheduler.submit_sync(RequestMetadata("r", model, "text"), lambda: order.append(model))

    threads = [threading.Thread(target=work, args=(m,), daemon=True) for m in models]
    for thread in threads:
        thread.start()
    return threads, order


def test_it_goes_on_deciding_on_the_next_loop() -> None:
    strategy = Last()
    scheduler = make(strategy)

    async def first() -> None:
        await scheduler.start()
        await submit_all(scheduler, "abcabc")

    async def again() -> None:
        await submit_all(scheduler, "abcabc")

    async def last() -> None:
        await scheduler.stop()

    asyncio.run(first())
    for _ in range(2):
        before = len(strategy.seen)
        assert before
        asyncio.run(again())
        assert len(strategy.seen) > before
    asyncio.run(last())


@pytest.mark.parametrize("closed", [False, True])
def test_where_its_loop_stands_still_or_was_closed_another_one_asks_it(
    closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.scheduler.choice.PATIENCE", 20.0)  # it is not the core that helps
    strategy = Last()
    scheduler = real(strategy)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(scheduler.start())
    loop.run_until_complete(submit_all(scheduler, "abcabc"))
    before = len(strategy.seen)
    if closed:
        loop.close()
    # From a thread that holds the only place until all of them wait.
    holds = threading.Event()
    asked = threading.Event()

    def hold() -> None:
        holds.set()
        asked.wait(20)

    held = threading.Thread(
        target=scheduler.submit_sync,
        args=(RequestMetadata("r", "first", "text"), hold),
        daemon=True,
    )
    held.start()
    assert holds.wait(20)  # or one of the others may have the place first, and be over
    threads, order = in_threads(scheduler, "abcabc")
    while sum(b["queue_depth"] for b in scheduler.get_metrics()["buckets"].values()) < 6:
        time.sleep(0)
    asked.set()
    for thread in (held, *threads):
        thread.join(20)
        assert not thread.is_alive()
    assert order == list("ccbbaa")
    between = len(strategy.seen)
    assert between > before
    if not closed:
        # It runs again: what it had begun is over, and nothing is asked by two.
        loop.run_until_complete(submit_all(scheduler, "abcabc"))
        assert len(strategy.seen) > between
        assert not [
            task
            for task in asyncio.all_tasks(loop)
            if getattr(task.get_coro(), "__qualname__", "") == "Choice.run"
        ]
        loop.run_until_complete(scheduler.stop())
        loop.close()
    else:
        scheduler.stop_sync()


def test_while_its_loop_is_blocked_the_core_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scheduler.choice.PATIENCE", 0.05)
    strategy = Last()

    async def run() -> None:
        async with real(strategy) as scheduler:
            threads, order = in_threads(scheduler, "abcabcabc")
            for thread in threads:  # on the loop
                thread.join(20)
            assert sorted(order) == sorted("abcabcabc")
            before = len(strategy.seen)
            await submit_all(scheduler, "abcabc")
            assert len(strategy.seen) > before, "it decides again"

    asyncio.run(run())


class Odd:
    """Cannot be compared, nor be a key."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")


@pytest.mark.parametrize("how", ["odd", "spoils", "equal", "key"])
def test_one_odd_answer_is_counted_and_the_next_is_asked_for(how: str) -> None:
    class Sometimes(Last):
        async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
            chosen = await super().select(eligible)
            assert chosen is not None
            if len(self.seen) != 2:
                return chosen
            if how == "odd":
                return Odd()  # type: ignore[return-value]
            if how == "equal":
                return copy.copy(chosen)
            if how == "key":
                chosen.queue_key = Odd()  # type: ignore[assignment]
                eligible.clear()
            if how == "spoils":
                chosen.total_dequeued = None  # type: ignore[assignment]
            return chosen

    strategy = Sometimes()
    scheduler = make(strategy)
    order = asyncio.run(served(scheduler, [(model, 0) for model in "abcabcabc"]))
    assert Counter(order) == {"a": 3, "b": 3, "c": 3}
    assert len(strategy.seen) >= 6
    errors = scheduler.get_metrics()["user_code_errors"].get("strategy", 0)
    assert errors == (how != "key")


def test_without_a_descriptor_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scheduler.choice.PATIENCE", 0.01)
    strategy = Last()
    left = 2

    def refuse() -> _core.Mailbox:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(24, "Too many open files")
        return _core.Mailbox()

    monkeypatch.setattr("headway.scheduler.user_code._core", SimpleNamespace(Mailbox=refuse))

    async def run() -> None:
        async with make(strategy) as scheduler:
            while not strategy.seen:
                await submit_all(scheduler, "abcabc")
            assert scheduler.get_metrics()["user_code_errors"]["strategy"] == 2

    asyncio.run(run())


class Slow(BaseSchedulingStrategy):
    """Decides when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.decides = asyncio.Event()

    async def select(self, eligible: list[QueueInfo]) -> QueueInfo | None:
        self.asked.set()
        await self.decides.wait()
        return eligible[0]


def test_who_is_left_alone_while_it_decides_goes() -> None:
    async def run() -> None:
        strategy = Slow()
        hold = asyncio.Event()

        async def at_once() -> int:
            return 1

        async with make(strategy) as scheduler:

            def submit(model: str, function: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
                metadata = RequestMetadata("r", model, "text")
                return asyncio.ensure_future(scheduler.submit_request(metadata, function))

            first = submit("first", hold.wait)
            await asyncio.sleep(0)
            gone, left = submit("gone", at_once), submit("left", at_once)
            await asyncio.sleep(0)
            hold.set()
            await first
            await strategy.asked.wait()
            gone.cancel()
            await asyncio.wait([gone])
            strategy.decides.set()
            assert await asyncio.wait_for(left, 10) == 1

    asyncio.run(run())
