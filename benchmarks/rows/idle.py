"""idle: what a full queue costs while nothing can be admitted."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from harness.apart import apart
from harness.options import Options
from harness.result import Result
from peers.idle import measure_peers

GOAL = 1.0

_METHOD = """
{waiting} tasks wait on an empty `bucket` that admits the next one in days; CPU time of the whole
process, all threads, over {seconds:g} s. Floor: a process whose event loop sleeps for that time
with no task, beside it. Garbage collector on.
"""


def measure(options: Options) -> list[Result]:
    """Both processes idle side by side."""
    waiting, seconds = (10_000, 2.0) if options.quick else (100_000, 10.0)
    with ThreadPoolExecutor() as pool:
        ours = pool.submit(apart, idle, waiting, seconds)
        floor = pool.submit(apart, idle, 0, seconds)
        headway, bare = ours.result(), floor.result()
    return [
        Result(
            row="idle",
            cell=f"{waiting:_} waiting",
            unit="ms of CPU a second",
            headway=headway,
            floor=bare,
            goal="less than 1 ms a second",
            met=headway < GOAL,
            method=_METHOD.format(waiting=waiting, seconds=seconds),
            peers=measure_peers(seconds, options.quick) if options.peers else {},
        )
    ]


def idle(waiting: int, seconds: float) -> float:
    """Milliseconds of CPU a second of this process while `waiting` tasks wait."""
    from headway import Limiter

    async def main() -> float:
        limiter = Limiter("1 requests/31day bucket")
        assert limiter.try_acquire(1)

        async def waiter() -> None:
            await limiter.acquire(1)

        tasks = [asyncio.ensure_future(waiter()) for _ in range(waiting)]
        await asyncio.sleep(0.5)
        used = await cpu_share(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return used

    return asyncio.run(main())


async def cpu_share(seconds: float) -> float:
    """Milliseconds of CPU a second that this process uses during the next `seconds`."""
    before = time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - before) / seconds * 1e3
