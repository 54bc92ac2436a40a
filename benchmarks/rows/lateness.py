"""lateness: how much later than its instant an admission reaches who waits, beside a timer."""

from __future__ import annotations

import asyncio
import os
import time
from itertools import islice
from pathlib import Path

from harness.apart import apart
from harness.cpp import run_cpp
from harness.native import Floor, build_floor, load_floor
from harness.options import Options
from harness.result import Result
from harness.statistics import quantile
from peers import NO_PART
from peers.lateness import measure_peers

STEP = 5_000_000
CHUNK = 25
MARGIN = 100.0
GOAL = "p99 at most the floor's + 100 µs; never early"

_METHOD = """
{count} admissions of a `bucket` of 200/s, one each 5 ms, all waiting at once: from the ideal
instant (the first plus multiples of 5 ms; burst 2, so that being late moves no later instant) to
the task's next step. Floor: a thread that sleeps in ppoll until each such instant with the same
timer slack of 1 ns and writes an eventfd that the same kind of loop watches, a future, a task's
next step. In turns, {chunk} of each; p99 of all. Garbage collector on.
"""
_CORE_METHOD = """
The same without Python: 1 000 admissions posted to a thread's mailbox, and 1 000 ticks of a
thread in ppoll that writes the same kind of descriptor, in turns.
"""


def measure(options: Options) -> list[Result]:
    """Into an event loop, as users see it, and into a blocked thread, in C++."""
    rounds = 8 if options.quick else 40
    ours, floor = apart(compare, build_floor(options), rounds)
    result = _result(
        "into an event loop",
        ours,
        floor,
        _METHOD.format(count=len(ours), chunk=CHUNK),
        measure_peers(options.quick) if options.peers else {},
    )
    found = run_cpp(options, "^BM_Lateness", 1)["Lateness"]
    core = Result(
        row="lateness",
        cell="into a blocked thread, C++",
        unit="µs, p99",
        headway=found.median("p99_us"),
        floor=found.median("floor_p99_us"),
        goal=GOAL,
        met=found.median("p99_us") <= found.median("floor_p99_us") + MARGIN
        and not found.median("early"),
        method=_CORE_METHOD,
        peers=NO_PART,
        more={
            "p50": found.median("p50_us"),
            "floor_p50": found.median("floor_p50_us"),
            "early": found.median("early"),
        },
    )
    return [result, core]


def _result(
    cell: str, ours: list[float], floor: list[float], method: str, peers: dict[str, float | str]
) -> Result:
    headway, bare = quantile(ours, 0.99), quantile(floor, 0.99)
    early = sum(late < 0 for late in ours)
    return Result(
        row="lateness",
        cell=cell,
        unit="µs, p99",
        headway=headway,
        floor=bare,
        goal=GOAL,
        met=headway <= bare + MARGIN and not early,
        method=method,
        more={
            "p50": quantile(ours, 0.5),
            "floor_p50": quantile(floor, 0.5),
            "earliest": min(ours),
            "early": early,
        },
        peers=peers,
    )


def compare(floor: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Microseconds late: of Headway's admissions, and of the floor's ticks."""

    async def main() -> tuple[list[float], list[float]]:
        module = load_floor(floor)
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            ours += await _admissions()
            bare += await _ticks(module)
        return ours, bare

    return asyncio.run(main())


async def _admissions() -> list[float]:
    from headway import Limiter

    limiter = Limiter("200 requests/s bucket burst 2")
    late: list[float] = []

    async def waiter(ideal: int) -> None:
        await limiter.acquire(1)
        late.append((time.monotonic_ns() - ideal) / 1e3)

    # The core reads its clock after this, so that no admission can seem earlier than it is.
    start = time.monotonic_ns()
    assert limiter.try_acquire(2)
    await asyncio.gather(*(waiter(start + i * STEP) for i in range(1, CHUNK + 1)))
    return late


async def _ticks(floor: Floor) -> list[float]:
    loop = asyncio.get_running_loop()
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    late: list[float] = []
    ticks = [loop.create_future() for _ in range(CHUNK)]
    due = iter(ticks)

    def ready() -> None:
        for future in islice(due, os.eventfd_read(fd)):
            future.set_result(None)

    async def waiter(tick: asyncio.Future[None], ideal: int) -> None:
        await tick
        late.append((time.monotonic_ns() - ideal) / 1e3)

    loop.add_reader(fd, ready)
    start = time.monotonic_ns()
    ticker = floor.Ticker(fd, start, STEP, CHUNK)
    await asyncio.gather(*(waiter(t, start + i * STEP) for i, t in enumerate(ticks, 1)))
    ticker.join()
    loop.remove_reader(fd)
    os.close(fd)
    return late
