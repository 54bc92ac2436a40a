"""idle for the peers: tasks that wait at a limiter which admits nobody."""

from __future__ import annotations

import asyncio

from peers.each import CannotError, each
from peers.gates import open_gate

_WAITING = 10_000
_DAY = 86_400.0


def measure_peers(seconds: float, quick: bool) -> dict[str, float | str]:
    """Milliseconds of CPU a second with 10 000 waiting, a tenth of what Headway has."""
    return each(_measure, 1_000 if quick else _WAITING, seconds)


def _measure(name: str, waiting: int, seconds: float) -> float:
    if name == "limits":
        raise CannotError("nobody waits in it: its user sleeps and asks again")
    return asyncio.run(_idle(name, waiting, seconds))


async def _idle(name: str, waiting: int, seconds: float) -> float:
    from rows.idle import cpu_share

    gate = await open_gate(name, "bucket", 1, _DAY)
    await gate.acquire(1)

    async def waiter() -> None:
        await gate.acquire(1)

    tasks = [asyncio.ensure_future(waiter()) for _ in range(waiting)]
    await asyncio.sleep(2.0)
    used = await cpu_share(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return used
