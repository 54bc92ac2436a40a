"""try-acquire: `limiter.try_acquire(1)` in Python, beside a hand-written call with that body."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from statistics import median

from harness.apart import apart
from harness.native import build_floor, load_floor
from harness.options import Options
from harness.result import Result
from peers.try_acquire import measure_peers

_METHOD = """
Limiter.try_acquire(1) on one `bucket` limit that admits every call. Floor: a METH_FASTCALL method
in C that reads the int, reads the clock, loads one word, compares and swaps it and returns a
bool. Called alike, net of the empty loop; {calls} calls a repetition, median of {repetitions}
repetitions in turns; garbage collector off (neither makes an object).
"""


def measure(options: Options) -> list[Result]:
    """The figures are net of the loop around the call."""
    calls, repetitions = (50_000, 5) if options.quick else (1_000_000, 11)
    headway, floor = apart(compare, build_floor(options), calls, repetitions)
    return [
        Result(
            row="try-acquire",
            cell="one bucket limit",
            unit="ns",
            headway=headway,
            floor=floor,
            goal="at most 2 x floor",
            met=headway <= 2 * floor,
            method=_METHOD.format(calls=calls, repetitions=repetitions),
            peers=measure_peers(calls, repetitions) if options.peers else {},
        )
    ]


def compare(floor: Path, calls: int, repetitions: int) -> tuple[float, float]:
    """Nanoseconds a call: of Headway's, and of the floor's."""
    from headway import Limiter

    # A step of 1 µs and a burst that these calls do not empty, for both.
    limiter = Limiter("1_000_000 requests/s bucket burst 100_000_000_000")
    word = load_floor(floor).Word(1_000, 100_000_000_000_000)

    def empty() -> None:
        for _ in repeat(None, calls):
            pass

    def ours() -> None:
        for _ in repeat(None, calls):
            limiter.try_acquire(1)

    def least() -> None:
        for _ in repeat(None, calls):
            word.try_acquire(1)

    assert limiter.try_acquire(1)
    assert word.try_acquire(1)
    loops, headway, bare = in_turns((empty, ours, least), calls, repetitions)
    return headway - loops, bare - loops


def in_turns(
    loops: tuple[Callable[[], None], ...], calls: int, repetitions: int
) -> tuple[float, ...]:
    """The median time of each loop's pass, in nanoseconds a call, the loops taking turns."""
    gc.disable()
    times: list[list[float]] = [[] for _ in loops]
    for _ in range(repetitions):
        for loop, found in zip(loops, times, strict=True):
            began = time.perf_counter_ns()
            loop()
            found.append((time.perf_counter_ns() - began) / calls)
    gc.enable()
    return tuple(median(found) for found in times)
