"""Four workers, whose SDKs and schedulers try again, before a provider in trouble."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from watching import Exchange, Watched, ask, openai_at, scheduler_of

from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

WORKERS = 4
CALLS = 60
OUR_RETRIES = 3
SDK_RETRIES = 4
BUDGET = CALLS + 10 + CALLS // 5
"""Requests of a worker's calls, by docs/scheduler.md: 10 retries, and one for every five calls."""
SILENT = "0 requests/min"
"""What a limit of 0 refuses is refused without a word of when to come again."""
SAYS_WHEN = "1 requests/2s window"


@dataclass
class Worker:
    exchanges: list[Exchange]
    answered: int
    submitted: int
    retries: int
    out_of_budget: int


async def work(simulator: SimulatorProcess, number: int, over: threading.Event) -> Worker:
    """All calls of one worker: half of them at once, and half when the trouble is over."""
    watched = Watched(f"w{number}")
    async with (
        scheduler_of(max_retries=OUR_RETRIES, max_backoff=0.5) as scheduler,
        openai_at(
            simulator, AsyncTransport(scheduler, watched, "openai"), max_retries=SDK_RETRIES
        ) as client,
    ):
        early = [asyncio.ensure_future(ask(client, f"{number}-{i}")) for i in range(CALLS // 2)]
        await asyncio.to_thread(over.wait)
        late = [ask(client, f"{number}-{i}") for i in range(CALLS // 2, CALLS)]
        answered = sum(await asyncio.gather(*early, *late))
        metrics = scheduler.get_metrics()
    return Worker(
        watched.exchanges,
        answered,
        metrics["requests_scheduled"],
        metrics["retries"],
        metrics["retry_budget_used_up"],
    )


def in_trouble(trouble: str, seconds: float) -> tuple[list[Worker], int]:
    """What each worker has done, and how many requests the provider was sent."""
    over = threading.Event()
    with (
        SimulatorProcess("--hidden", trouble, "--latency", "0.05") as simulator,
        ThreadPoolExecutor(WORKERS) as pool,
    ):
        futures = [
            pool.submit(asyncio.run, work(simulator, number, over)) for number in range(WORKERS)
        ]
        try:
            over.wait(seconds)  # nobody sets it before: the provider is in trouble for so long
            simulator.set_limits(["100_000 requests/min bucket"])
        finally:
            over.set()
        workers = [future.result(120) for future in futures]
        total = simulator.stats()["total"]
    return workers, total["admitted"] + total["refused"]


def judge(workers: list[Worker], sent: int, trouble: str) -> None:
    for worker in workers:
        statuses = Counter(each.status for each in worker.exchanges)
        print(
            f"{statuses}, {worker.answered} answered, {worker.submitted} submitted, "
            f"{worker.retries} retries, {worker.out_of_budget} not made for want of budget"
        )
    assert sent == sum(len(worker.exchanges) for worker in workers)
    assert sent <= WORKERS * BUDGET
    if trouble == SILENT:
        assert any(worker.out_of_budget for worker in workers), "or the budget was not tried"
    for worker in workers:
        assert len(worker.exchanges) <= BUDGET
        assert any(each.status == 429 for each in worker.exchanges)
        of_each = Counter(each.call for each in worker.exchanges)
        assert max(of_each.values()) <= 1 + OUR_RETRIES
        assert worker.submitted == CALLS, "the SDK has not begun anew"
        assert worker.answered >= CALLS // 2, "what comes when the trouble is over is answered"


@pytest.mark.long
@pytest.mark.parametrize("trouble", [SILENT, SAYS_WHEN], ids=["silent", "says-when"])
def test_a_provider_in_trouble_for_seconds_is_not_asked_beyond_the_budget(trouble: str) -> None:
    judge(*in_trouble(trouble, 6), trouble)


@pytest.mark.soak
@pytest.mark.parametrize("trouble", [SILENT, SAYS_WHEN], ids=["silent", "says-when"])
def test_a_provider_in_trouble_for_half_a_minute_is_not_either(trouble: str) -> None:
    judge(*in_trouble(trouble, 30), trouble)
