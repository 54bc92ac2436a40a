"""lateness for the peers."""

from __future__ import annotations

import asyncio
import time

from harness.statistics import quantile
from peers.each import CannotError, each
from peers.gates import open_gate

_RATE = 200
_STEP = 1e9 / _RATE


def measure_peers(quick: bool) -> dict[str, float | str]:
    """The 99th percentile, in µs, of 1 000 admissions at 200/s."""
    return each(_measure, 200 if quick else 1_000)


def _measure(name: str, admissions: int) -> float:
    if name == "limits":
        raise CannotError("nobody waits in it: its user sleeps and asks again")
    return asyncio.run(_late(name, admissions))


async def _late(name: str, admissions: int) -> float:
    """A second's worth is taken, and the k-th that waits is due k steps later. The worst is told:
    an admission that is too early counts with how early it is."""
    gate = await open_gate(name, "bucket", _RATE, 1.0)
    late: list[float] = []
    start = 0

    async def waiter() -> None:
        await gate.acquire(1)
        late.append((time.monotonic_ns() - start - (len(late) + 1) * _STEP) / 1e3)

    start = time.monotonic_ns()
    await gate.acquire(_RATE)
    await asyncio.wait_for(asyncio.gather(*(waiter() for _ in range(admissions))), 60.0)
    return quantile(map(abs, late), 0.99)
