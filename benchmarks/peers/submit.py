"""The same through adaptive-rate-limiter, whose interface headway's scheduler has."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from harness.apart import apart
from peers.adaptive import MISSING, NAME, Scheduler, is_installed


def measure_peers(mode: str, quick: bool) -> dict[str, float | str]:
    """Nanoseconds from submission to the result of a call that returns at once."""
    if not is_installed():
        return {NAME: MISSING}
    return {NAME: apart(latency, mode, 20 if quick else 200)}


def rates(latencies: dict[str, float | str]) -> dict[str, float | str]:
    """How many a second of one task those are."""
    return {name: took if isinstance(took, str) else 1e9 / took for name, took in latencies.items()}


def latency(mode: str, calls: int) -> float | str:
    """The median over `calls` requests, one after another."""
    try:
        return asyncio.run(asyncio.wait_for(_latency(mode, calls), 120))
    except asyncio.TimeoutError:
        return "not through in 120 s"


async def _latency(mode: str, calls: int) -> float:
    times: list[float] = []

    async def call() -> int:
        return 1

    async with Scheduler(mode, 100_000_000, 100_000_000) as scheduler:
        for _ in range(calls):
            began = time.perf_counter_ns()
            await scheduler.submit(call)
            times.append(time.perf_counter_ns() - began)
    return median(times)
