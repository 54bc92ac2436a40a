"""An SDK that was given nothing, before servers that never say what they count."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from watching import ask, kept_busy, openai_at, scheduler_of

from headway import Limiter
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

LIMIT = 240
CALLS = 1_500


@pytest.mark.parametrize("latency", ["0.05", "1"])
def test_a_burst_meets_a_silent_server_by_and_by(latency: str) -> None:
    """A thousand would be refused; what is not sent as the first refusal comes waits instead."""

    async def main(simulator: SimulatorProcess) -> tuple[int, int, float]:
        async with (
            scheduler_of() as scheduler,
            openai_at(
                simulator, AsyncTransport(scheduler, None, "openai"), max_retries=0
            ) as client,
        ):
            tasks = [asyncio.ensure_future(ask(client)) for _ in range(CALLS)]
            # All of a window within some rounds of answers, and then nothing for a minute.
            await asyncio.wait(tasks, timeout=4 + 9 * float(latency))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            metrics = scheduler.get_metrics()
            bucket = metrics["buckets"]["m"]
            stats = simulator.stats()
            # What was called off before it was sent is no attempt.
            assert bucket["attempts"] == stats["admitted"] + stats["refused"]
            return stats["admitted"], stats["refused"], bucket["in_flight"]

    options = ("--no-headers", "--limits", f"{LIMIT} requests/min window", "--latency", latency)
    with SimulatorProcess(*options) as simulator:
        admitted, refused, in_flight = asyncio.run(asyncio.wait_for(main(simulator), 60))
    assert admitted == LIMIT
    assert 2 <= refused <= LIMIT / 2
    assert in_flight == 0


def test_a_limiters_calls_are_called_off_and_asked_for_again() -> None:
    """Each is sent in the end, and what was given back was given back once."""

    async def main(simulator: SimulatorProcess) -> None:
        limiter = Limiter(["1_000 requests/min window", "200 concurrency"])
        async with openai_at(
            simulator, AsyncTransport(limiter, None, "openai"), max_retries=0
        ) as client:
            # Who has to connect first does not wait for a turn.
            first = await asyncio.gather(*(ask(client) for _ in range(20)))
            answered = await asyncio.gather(*(ask(client) for _ in range(180)))
        stats = simulator.stats()
        assert sum(first) + sum(answered) == stats["admitted"] == 30
        assert stats["refused"] == 170
        used = {each.limit.resource: each.used for each in limiter.explain(1).limits}
        assert used == {"requests": 200, "concurrency": 0}

    options = ("--no-headers", "--limits", "30 requests/min window", "--latency", "0.02")
    with SimulatorProcess(*options) as simulator:
        asyncio.run(asyncio.wait_for(main(simulator), 60))


@pytest.mark.soak
@pytest.mark.parametrize("latency", ["0.05", "2"])
def test_a_silent_server_refuses_one_in_a_half_minute_at_most(latency: str) -> None:
    shapes = ("window", "fixed", "bucket")
    minutes = 8

    async def main(simulators: list[SimulatorProcess]) -> None:
        async with AsyncExitStack() as stack:
            for simulator in simulators:
                scheduler = await stack.enter_async_context(scheduler_of())
                client = openai_at(
                    simulator, AsyncTransport(scheduler, None, "openai"), max_retries=0
                )
                await stack.enter_async_context(client)
                await stack.enter_async_context(kept_busy(client, 300))
            await asyncio.sleep(minutes * 60)

    simulators = [
        SimulatorProcess(
            *("--no-headers", "--decisions", "--latency", latency),
            *("--limits", f"{LIMIT} requests/min {shape}"),
        )
        for shape in shapes
    ]
    for simulator in simulators:
        simulator.start()
    began = time.monotonic()
    try:
        asyncio.run(main(simulators))
        for shape, simulator in zip(shapes, simulators, strict=True):
            decisions = simulator.stats(decisions=True)["decisions"]
            since = [(at - began, status) for at, status, *_ in decisions]
            # A burst or two to find out.
            assert sum(status == 429 and at < 120 for at, status in since) <= LIMIT, shape
            halves = Counter(int(at // 30) for at, status in since if status == 429 and at >= 120)
            print(f"{shape} at {latency}: refused by half minute {dict(halves)}")
            assert sum(halves.values()) <= 2 * (minutes - 2), shape
            assert max(halves.values(), default=0) <= 3, shape
            used = sum(status == 200 and at >= 180 for at, status in since)
            print(f"{shape} at {latency}: {used / (LIMIT * (minutes - 3)):.3f} used")
            assert used >= 0.85 * LIMIT * (minutes - 3), shape
    finally:
        for simulator in simulators:
            simulator.stop()
