"""submit: `await scheduler.submit_request` of an instant call, beside awaiting the call itself."""

from __future__ import annotations

import asyncio
import gc
import time
from statistics import median

from harness.apart import apart
from harness.options import Options
from harness.result import Result
from peers.submit import measure_peers, rates

MODES = ("basic", "intelligent", "account")
MOST_ADDED = 1_500.0
LEAST_RATE = 300_000.0

_METHOD = """
One task awaits scheduler.submit_request(metadata, call) again and again, one metadata, one bucket,
capacity free, the default options (time-outs, metrics, 100 at once) and limits of requests and
tokens; `call` returns at once. Floor: awaiting call(). {calls} calls a repetition, median of
{repetitions} repetitions in turns, garbage collector on. The figure is the difference.
"""
_RATE_METHOD = "The same: requests a second of one task on one bucket. Floor: awaiting call()."


def measure(options: Options) -> list[Result]:
    """Each mode's added time, and what one task can do in a second."""
    calls, repetitions = (20_000, 3) if options.quick else (200_000, 7)
    results = []
    for mode in MODES:
        ours, bare = apart(compare, mode, calls, repetitions)
        peers = measure_peers(mode, options.quick) if options.peers else {}
        results += [
            Result(
                row="submit",
                cell=f"{mode}: added",
                unit="ns",
                headway=ours - bare,
                floor=bare,
                goal=f"at most {MOST_ADDED:_.0f} added",
                met=ours - bare <= MOST_ADDED,
                method=_METHOD.format(calls=calls, repetitions=repetitions),
                peers=peers,
            ),
            Result(
                row="submit",
                cell=f"{mode}: rate",
                unit="requests/s",
                headway=1e9 / ours,
                floor=1e9 / bare,
                goal=f"at least {LEAST_RATE:_.0f}",
                met=1e9 / ours >= LEAST_RATE,
                method=_RATE_METHOD,
                peers=rates(peers),
            ),
        ]
    return results


def compare(mode: str, calls: int, repetitions: int) -> tuple[float, float]:
    """Nanoseconds a call: through a scheduler, and by itself."""
    return asyncio.run(_compare(mode, calls, repetitions))


async def _compare(mode: str, calls: int, repetitions: int) -> tuple[float, float]:
    from headway import RequestMetadata, create_scheduler

    async def call() -> int:
        return 1

    metadata = RequestMetadata("r", "m", "text", estimated_tokens=10, client_id="a")
    # A rate that these calls do not use up.
    limits = ["1_000_000_000_000 requests/min bucket", "1_000_000_000_000 tokens/min bucket"]
    ours: list[float] = []
    bare: list[float] = []
    async with create_scheduler(object(), mode=mode, limits=limits) as scheduler:
        for repetition in range(repetitions + 1):
            gc.collect()
            began = time.perf_counter_ns()
            for _ in range(calls):
                await call()
            between = time.perf_counter_ns()
            for _ in range(calls):
                await scheduler.submit_request(metadata, call)
            ended = time.perf_counter_ns()
            if repetition:  # the first warms up
                bare.append((between - began) / calls)
                ours.append((ended - between) / calls)
    return median(ours), median(bare)
