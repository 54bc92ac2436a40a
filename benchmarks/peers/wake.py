"""wake for the peers: many tasks that wait at a limiter which then admits as fast as it can."""

from __future__ import annotations

import asyncio
import gc
import time

from harness.apart import apart
from peers import NAMES, NO_PART
from peers.adaptive import MISSING, NAME, Scheduler, is_installed
from peers.each import CannotError, each
from peers.gates import open_gate

_LARGEST = {"aiolimiter": 100_000, "asynciolimiter": 100_000}
"""How many waiters are tried of each; 10 000 of the others."""
_SECONDS = 60.0
PLENTY = 100_000_000
IN_SCHEDULER = 2_000
"""How many wait in adaptive-rate-limiter: it starts one or three of a queue each 10 ms."""


def measure_peers(size: int, collector: bool, quick: bool) -> dict[str, float | str]:
    """Nanoseconds a waiter."""
    if quick and size > 10_000:
        return dict.fromkeys(NAMES, "was not asked: --quick")
    return each(_measure, size, collector)


def measure_scheduler(mode: str, quick: bool) -> dict[str, float | str]:
    """Nanoseconds a waiter of the one whose interface headway's scheduler has."""
    if not is_installed():
        return {**NO_PART, NAME: MISSING}
    if mode == "basic":
        return {**NO_PART, NAME: "cannot: nobody waits in it: the call is made as it is submitted"}
    size = 200 if quick else IN_SCHEDULER
    try:
        return {**NO_PART, NAME: apart(through, mode, size)}
    except (TimeoutError, asyncio.TimeoutError):
        return {**NO_PART, NAME: f"{size} were not through in {_SECONDS:.0f} s"}


def through(mode: str, size: int) -> float:
    """From the first of `size` calls to the last one's result, all submitted before the first."""
    return asyncio.run(asyncio.wait_for(_through(mode, size), _SECONDS))


async def _through(mode: str, size: int) -> float:
    """Its limits are out of reach, so that nothing but its own work holds the waiters up."""
    first = 0.0
    # It makes one call at a time before it has read an answer's headers.
    told = {
        f"x-ratelimit-{word}-{resource}": "60" if word == "reset" else f"{PLENTY}"
        for word in ("limit", "remaining", "reset")
        for resource in ("requests", "tokens")
    }

    async def call() -> object:
        nonlocal first
        first = first or time.perf_counter()
        return {"_response_headers": told}

    room = {"max_queue_size": size, "max_concurrent_executions": size}
    async with Scheduler(mode, PLENTY, PLENTY, **room) as scheduler:
        await asyncio.gather(*(scheduler.submit(call) for _ in range(size)))
        return (time.perf_counter() - first) / size * 1e9


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
