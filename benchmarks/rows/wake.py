"""wake: what it costs that a queued task is admitted and goes on, beside a bare future's."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from statistics import median

from harness.apart import apart
from harness.cpp import run_cpp
from harness.memory import resident_bytes
from harness.options import Options
from harness.result import Result
from peers import NO_PART
from peers.wake import IN_SCHEDULER, measure_peers, measure_scheduler

GOAL = "at most 1.25 x floor"
FLAT = 1.25
MODES = ("basic", "intelligent", "account")
BY_PRIORITY = 5
CORE_BYTES = 200

_METHOD = """
{size} tasks await limiter.acquire(1) on a drained `bucket`, on the real clock; all of it is given
back at once, and the time runs from then until the last task has finished. Floor: as many tasks
on bare futures, resolved one by one in a loop. Garbage collector {state}, run once just before;
median of {repetitions} repetitions in turns, in one process.
"""
_MODE_METHOD = """
The same through scheduler.submit_request(metadata, call) with a call that returns at once, {size}
tasks, collector on, median of {repetitions} repetitions. Floor: as many tasks on bare futures that
then await the call. All options as they are by default, but for room in the queue and as many at
once. adaptive-rate-limiter, which looks at its queues each 10 ms: {theirs} tasks, from the first
call to the last result.
"""
_CORE_METHOD = """
C++: the scheduler takes in, admits, hands over and lets go of all waiters in one Advance. Floor:
the same with 10 000. Median of {repetitions} repetitions in random order. `more`: the parts,
queueing (not in the figure) too.
"""
_PRIORITY_METHOD = """
C++: as the core's part, with each of 100 000 waiters of a priority of its own. Floor: the same with
one priority. The order is kept in a tree; a look at every priority that somebody waits at would
take thousands of times the floor. Median of {repetitions} repetitions in random order.
"""
_MEMORY_METHOD = """
C++: what the allocator has given out for 1 000 000 waits, its own overhead included. `more`:
growth of a Python process's resident memory with {waiters} tasks waiting in a Limiter, and with
as many on bare futures.
"""


def measure(options: Options) -> list[Result]:
    """End to end by number and collector; then the core's part of it, and its memory."""
    sizes = (10_000, 100_000) if options.quick else (10_000, 100_000, 1_000_000)
    ends = [_end_to_end(size, collector, options) for size in sizes for collector in (True, False)]
    modes = [_through(mode, options) for mode in MODES]
    return [*ends, *modes, *_core(options)]


def _through(mode: str, options: Options) -> Result:
    repetitions = 3 if options.quick else 5
    size = 10_000 if options.quick else 100_000
    headway, floor = apart(compare, size, True, repetitions, mode)
    return Result(
        row="wake",
        cell=f"{size:_} waiting in a scheduler, {mode}",
        unit="ns a waiter",
        headway=headway,
        floor=floor,
        goal=GOAL,
        met=headway <= 1.25 * floor,
        method=_MODE_METHOD.format(size=size, repetitions=repetitions, theirs=IN_SCHEDULER),
        peers=measure_scheduler(mode, options.quick) if options.peers else {},
    )


def _end_to_end(size: int, collector: bool, options: Options) -> Result:
    repetitions = 3 if options.quick or size > 100_000 else 5
    headway, floor = apart(compare, size, collector, repetitions)
    state = "on, as Python sets it" if collector else "off"
    return Result(
        row="wake",
        cell=f"{size:_} waiting, collector {'on' if collector else 'off'}",
        unit="ns a waiter",
        headway=headway,
        floor=floor,
        goal=GOAL,
        met=headway <= 1.25 * floor,
        method=_METHOD.format(size=size, state=state, repetitions=repetitions),
        peers=measure_peers(size, collector, options.quick) if options.peers else {},
    )


def _core(options: Options) -> list[Result]:
    repetitions = 3 if options.quick else 5
    found = run_cpp(options, "^BM_Wake", repetitions)
    small, middle, large = (found[f"Wake/{size}"] for size in (10_000, 100_000, 1_000_000))
    by_priority = found["WakeByPriority/100000"]
    apiece = by_priority.median("real_time") / middle.median("real_time")
    flat = large.median("real_time") / small.median("real_time")
    waiters = 20_000 if options.quick else 100_000
    process = apart(resident, waiters, True)
    futures = apart(resident, waiters, False)
    return [
        Result(
            row="wake",
            cell="the core's part, 1_000_000 waiting",
            unit="ns a waiter",
            headway=large.median("real_time"),
            floor=small.median("real_time"),
            goal=f"flat: at most {FLAT} x that at 10_000",
            met=flat <= FLAT,
            peers=NO_PART,
            method=_CORE_METHOD.format(repetitions=repetitions),
            more={
                f"{name} at {size:_}": run.median(f"{name}_ns")
                for name in ("queue", "admit", "claim")
                for size, run in ((10_000, small), (100_000, middle), (1_000_000, large))
            },
        ),
        Result(
            row="wake",
            cell="the core's part, 100_000 waiting, a priority each",
            unit="ns a waiter",
            headway=by_priority.median("real_time"),
            floor=middle.median("real_time"),
            goal=f"at most {BY_PRIORITY} x that of one priority",
            met=apiece <= BY_PRIORITY,
            peers=NO_PART,
            method=_PRIORITY_METHOD.format(repetitions=repetitions),
            more={"admit at 10_000": found["WakeByPriority/10000"].median("admit_ns")},
        ),
        Result(
            row="wake",
            cell="the core's memory",
            unit="bytes a waiter",
            headway=large.median("bytes"),
            floor=None,
            goal=f"at most {CORE_BYTES}",
            met=large.median("bytes") <= CORE_BYTES,
            peers=NO_PART,
            method=_MEMORY_METHOD.format(waiters=waiters),
            more={"process_with_limiter": process, "process_with_bare_futures": futures},
        ),
    ]


def compare(
    size: int, collector: bool, repetitions: int, mode: str | None = None
) -> tuple[float, float]:
    """Nanoseconds a waiter: through a Limiter, or a scheduler, and on bare futures."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(repetitions):
        if mode is None:
            bare.append(asyncio.run(timed(_bare, size, collector)))
            ours.append(asyncio.run(timed(_limiter, size, collector)))
        else:
            bare.append(asyncio.run(timed(_bare_call, size, collector)))
            ours.append(asyncio.run(timed(lambda n: _scheduler(n, mode), size, collector)))
    return median(ours), median(bare)


Opening = Callable[[], object]
"""What lets the waiters go."""
Way = Callable[[int], tuple[Callable[[int], Awaitable[object]], Opening]]
"""Given their number: what the i-th one awaits, and the opening."""


async def timed(way: Way, size: int, collector: bool) -> float:
    """From the opening to the end of the last task, in nanoseconds a task."""
    wait, let_go = way(size)
    done = asyncio.get_running_loop().create_future()
    left = size

    async def waiter(i: int) -> None:
        nonlocal left
        await wait(i)
        left -= 1
        if not left:
            done.set_result(None)

    gc.disable()
    tasks = [asyncio.ensure_future(waiter(i)) for i in range(size)]
    await asyncio.sleep(0.05)
    gc.collect()
    if collector:
        gc.enable()
    began = time.perf_counter_ns()
    let_go()
    await done
    elapsed = time.perf_counter_ns() - began
    del tasks
    return elapsed / size


def _bare(size: int) -> tuple[Callable[[int], Awaitable[object]], Opening]:
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(size)]

    def resolve() -> None:
        for future in futures:
            future.set_result(None)

    return futures.__getitem__, resolve


def _limiter(size: int) -> tuple[Callable[[int], Awaitable[object]], Opening]:
    from headway import Limiter, Reservation

    limiter = Limiter(f"{size} requests/31day bucket")
    all_of_it = limiter.try_reserve(size)
    assert isinstance(all_of_it, Reservation)
    return lambda _: limiter.acquire(1), all_of_it.cancel


async def _call() -> int:
    return 1


def _bare_call(size: int) -> tuple[Callable[[int], Awaitable[object]], Opening]:
    wait, resolve = _bare(size)

    async def wait_and_call(i: int) -> int:
        await wait(i)
        return await _call()

    return wait_and_call, resolve


def _scheduler(size: int, mode: str) -> tuple[Callable[[int], Awaitable[object]], Opening]:
    from headway import RateLimiterConfig, RequestMetadata, Reservation, create_scheduler

    config = RateLimiterConfig(
        max_concurrent_executions=size, max_queue_size=size, rate_limit_buffer_ratio=1.0
    )
    scheduler = create_scheduler(
        object(), mode=mode, config=config, limits=[f"{size} requests/31day bucket"]
    )
    # Its life is not what is measured: what it would do at its start, it need not.
    scheduler._run(True)
    metadata = RequestMetadata("r", "m", "text", client_id="a")
    bucket = scheduler._find.known(metadata)
    assert bucket is not None
    all_of_it = bucket.try_reserve(size, 0)
    assert isinstance(all_of_it, Reservation)
    return lambda _: scheduler.submit_request(metadata, _call), all_of_it.cancel


def resident(size: int, with_limiter: bool) -> float:
    """By how many bytes a task the process has grown when all of them wait."""

    async def grow() -> float:
        way = _limiter if with_limiter else _bare
        # The first waiter's costs (the thread, the mailbox) are not a waiter's.
        await timed(way, 10, False)
        before = resident_bytes()
        wait, _ = way(size)

        async def waiter(i: int) -> None:
            await wait(i)

        tasks = [asyncio.ensure_future(waiter(i)) for i in range(size)]
        await asyncio.sleep(0.05)
        grown = resident_bytes() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return grown / size

    gc.disable()
    return asyncio.run(grow())
