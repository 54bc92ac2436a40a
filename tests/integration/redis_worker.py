"""A process of the tests of RedisBackend: waits at a limiter, and writes down each admission.

redis_worker.py URL OUTPUT LIMITS TASKS SECONDS HEARTBEAT HOLD STAND AT: a line of OUTPUT for each
admission: its beginning and end in ns of CLOCK_MONOTONIC, which all processes of a host share.
HOLD: seconds for which each keeps its place. STAND: for so long its event loop stands still, each
second. AT: "limiter", or "scheduler", of whose bucket of that name it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from headway import TEXT, Limiter, RateLimiterConfig, RequestMetadata, create_scheduler
from headway.backends.redis import RedisBackend


async def main() -> None:
    url, output, limits, tasks, seconds, heartbeat, hold, stand, at = sys.argv[1:]
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    backend = RedisBackend(url, heartbeat=float(heartbeat))
    end = time.monotonic() + float(seconds)

    async def call() -> None:
        began = time.monotonic_ns()
        os.write(log, f"{began} 0\n".encode())
        if float(hold):
            await asyncio.sleep(float(hold))
            os.write(log, f"{began} {time.monotonic_ns()}\n".encode())

    if at == "scheduler":
        config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
        scheduler = create_scheduler(None, config=config, limits=limits.split(","), backend=backend)
        await scheduler.start()

        async def work() -> None:
            while time.monotonic() < end:
                await scheduler.submit_request(RequestMetadata("r", "shared", TEXT), call)

    else:
        limiter = Limiter(limits.split(","), backend=backend, name="shared")

        async def work() -> None:
            while time.monotonic() < end:
                async with limiter.acquire():
                    await call()

    async def stand_still() -> None:
        while float(stand):
            await asyncio.sleep(1)
            time.sleep(float(stand))  # noqa: ASYNC251 - the loop is to stand still

    standing = asyncio.ensure_future(stand_still())
    waiting = [asyncio.ensure_future(work()) for _ in range(int(tasks))]
    await asyncio.sleep(float(seconds))
    for task in (standing, *waiting):
        task.cancel()
    await asyncio.gather(standing, *waiting, return_exceptions=True)
    backend.close()


asyncio.run(main())
