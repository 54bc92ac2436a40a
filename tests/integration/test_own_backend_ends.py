"""A user's own backend hears of each grant once, however and whenever things end."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from own_backend import Recorder, asks, make

from headway import RateLimiterError
from headway.scheduler import Scheduler

MODELS = 3
REQUESTS = 25


@dataclass
class Counts:
    """What the request functions have seen."""

    ran: int = 0
    reserved: int = 0
    used: int = 0


class Round:
    """A scheduler from its start to its stop, or until its loop is gone, and requests meanwhile."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, counts: Counts) -> None:
        self.scheduler = scheduler
        self.rng = rng
        self.counts = counts
        self.threads: list[threading.Thread] = []
        self.ended: list[Any] = []

    def _function(self, tokens: int) -> Any:
        pauses = [self.rng.choice([0.0, 0.001, 0.004]) for _ in range(self.rng.randrange(3))]
        usage = self.rng.choice([None, self.rng.randrange(2 * tokens)])
        fails = self.rng.random() < 0.1

        async def function() -> Any:
            self._begin(tokens)
            for pause in pauses:
                await asyncio.sleep(pause)
            if fails:
                raise ValueError
            if usage is None:
                return None
            self.counts.used += usage - tokens
            return {"usage": {"total_tokens": usage}}

        return function

    def _begin(self, tokens: int) -> None:
        self.counts.ran += 1
        self.counts.reserved += tokens
        self.counts.used += tokens

    def _submit(self) -> asyncio.Task[Any]:
        tokens = self.rng.randrange(1, 30)
        model = f"m{self.rng.randrange(MODELS)}"
        metadata = asks(tokens, model, priority=self.rng.randrange(3))
        request = self.scheduler.submit_request(metadata, self._function(tokens))
        return asyncio.ensure_future(request)

    def _submit_in_thread(self) -> None:
        tokens = self.rng.randrange(1, 30)

        def work() -> None:
            try:
                self.scheduler.submit_sync(asks(tokens, "m0"), lambda: self._begin(tokens))
            except RateLimiterError as error:
                self.ended.append(error)
            else:
                self.ended.append(None)

        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    async def run(self, stops: bool) -> None:
        rng, scheduler = self.rng, self.scheduler
        await scheduler.start()
        tasks: list[asyncio.Task[Any]] = []
        for _ in range(rng.randrange(REQUESTS)):
            tasks.append(self._submit())
            if rng.random() < 0.1:
                self._submit_in_thread()
            if rng.random() < 0.2:
                await asyncio.sleep(rng.choice([0.0, 0.001, 0.002]))
            if rng.random() < 0.2:
                rng.choice(tasks).cancel()
        for _ in range(rng.randrange(10)):
            await asyncio.sleep(0)
        if not stops:
            return
        patience = rng.choice([0.0, 0.0, 0.003, 10.0])
        if rng.random() < 0.3:
            await asyncio.to_thread(scheduler.stop_sync, patience)
        else:
            await scheduler.stop(patience)
        done, lost = await asyncio.wait(tasks, timeout=10) if tasks else (set(), set())
        assert not lost, "a request hangs"
        for task in done:
            error = None if task.cancelled() else task.exception()
            assert error is None or isinstance(error, (RateLimiterError, ValueError))

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)
        assert len(self.ended) == len(self.threads), "a thread hangs"


def threads_of_chores() -> int:
    return sum(thread.name == "headway-chores" for thread in threading.enumerate())


def live(seed: int, strategy: str | None) -> None:
    rng = random.Random(seed)
    backend = Recorder(seed)
    scheduler = make(backend, at_once=rng.choice([1, 3, 100]), scheduling_strategy=strategy)
    counts = Counts()
    before = threads_of_chores()  # what other tests have left
    for stops in (rng.random() < 0.7, rng.random() < 0.7, True):
        one = Round(scheduler, rng, counts)
        asyncio.run(one.run(stops))
        one.join()
        if stops:
            assert backend.ended.keys() == backend.granted.keys(), "each grant is told of"
            assert threads_of_chores() == before
        assert backend.wrong == []
    granted = backend.granted.values()
    assert counts.ran <= sum(requests for _, requests, _ in granted), "nobody goes unasked"
    assert counts.reserved <= sum(tokens for _, _, tokens in granted)
    assert counts.used == sum(used or 0 for used in backend.ended.values())


@pytest.mark.parametrize("strategy", [None, "fair_queue"])
def test_each_grant_is_told_of_once_whenever_a_stop_comes(strategy: str | None) -> None:
    for seed in range(40):
        try:
            live(seed, strategy)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
