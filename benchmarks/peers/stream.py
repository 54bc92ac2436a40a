"""stream for adaptive-rate-limiter, which settles streams, too; the others know none."""

from __future__ import annotations

import asyncio

from harness.apart import apart
from peers import NO_PART
from peers.adaptive import MISSING, NAME, Scheduler, is_installed


def measure_peers(kind: str, chunks: int, repetitions: int) -> dict[str, float | str]:
    """Nanoseconds added to a chunk."""
    if not is_installed():
        return {**NO_PART, NAME: MISSING}
    return {**NO_PART, NAME: apart(_added, kind, chunks, repetitions)}


def _added(kind: str, chunks: int, repetitions: int) -> float:
    return asyncio.run(_compare(kind, chunks, repetitions))


async def _compare(kind: str, chunks: int, repetitions: int) -> float:
    from rows.stream import timed

    async with Scheduler("intelligent", 100_000_000, 100_000_000) as scheduler:
        theirs, bare = await timed(kind, chunks, repetitions, scheduler.submit)
    return theirs - bare
