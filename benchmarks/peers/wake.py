"""wake for the peers: many tasks that wait at a limiter which then admits as fast as it can."""

from __future__ import annotations

import asyncio
import gc
import time

from peers import NAMES
from peers.each import CannotError, each
from peers.gates import open_gate

_LARGEST = {"aiolimiter": 100_000, "asynciolimiter": 100_000}
"""How many waiters are tried of each; 10 000 of the others."""
_SECONDS = 60.0


def measure_peers(size: int, collector: bool, quick: bool) -> dict[str, float | str]:
    """Nanoseconds a waiter."""
    if quick and size > 10_000:
        return dict.fromkeys(NAMES, "was not asked: --quick")
    return each(_measure, size, collector)


def _measure(name: str, size: int, collector: bool) -> float:
    if name == "limits":
        raise CannotError("nobody waits in it: its user sleeps and asks again")
    largest = _LARGEST.get(name, 10_000)
    if size > largest:
        raise CannotError(f"tried with {largest} at most, where it is already the slower for more")
    return asyncio.run(_admitted(name, size, collector))


async def _admitted(name: str, size: int, collector: bool) -> float:
    """All is taken; the limit refills within a second, so that from then on nothing but its own
    work holds the waiters up. Timed from the first that is admitted to the last that has finished.
    """
    gate = await open_gate(name, "bucket", size, 1.0)
    await gate.acquire(size)
    first = 0.0

    async def waiter() -> None:
        nonlocal first
        await gate.acquire(1)
        first = first or time.perf_counter()

    if not collector:
        gc.disable()
    tasks = [asyncio.ensure_future(waiter()) for _ in range(size)]
    await asyncio.sleep(0)
    # Not letting the loop run is the only way to refill all of them alike.
    time.sleep(1.0)  # noqa: ASYNC251
    began = time.perf_counter()
    await asyncio.wait_for(asyncio.gather(*tasks), _SECONDS)
    return (time.perf_counter() - began) / size * 1e9
