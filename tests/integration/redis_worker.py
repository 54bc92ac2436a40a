"""A process of the tests of RedisBackend: waits at a limiter, and writes down each admission.

redis_worker.py URL OUTPUT LIMITS TASKS SECONDS HEARTBEAT HOLD: a line of OUTPUT for each admission:
its beginning and end in ns of CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from headway import Limiter
from headway.backends.redis import RedisBackend


async def main() -> None:
    url, output, limits, tasks, seconds, heartbeat, hold = sys.argv[1:]
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    backend = RedisBackend(url, heartbeat=float(heartbeat))
    limiter = Limiter(limits.split(","), backend=backend, name="shared")
    end = time.monotonic() + float(seconds)

    async def work() -> None:
        while time.monotonic() < end:
            async with limiter.acquire():
                began = time.monotonic_ns()
                os.write(log, f"{began} 0\n".encode())
                if float(hold):
                    await asyncio.sleep(float(hold))
                    os.write(log, f"{began} {time.monotonic_ns()}\n".encode())

    waiting = [asyncio.ensure_future(work()) for _ in range(int(tasks))]
    await asyncio.sleep(float(seconds))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    backend.close()


asyncio.run(main())
