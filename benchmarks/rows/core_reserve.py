"""core-reserve: what one call's reservation costs in the core, beside its atomics alone."""

from __future__ import annotations

from harness.cpp import run_cpp
from harness.options import Options
from harness.result import Result
from peers import NO_CORE

_METHOD = """
C++, release build: Bucket::TryReserve on two `bucket` limits and Reservation::Settle with fewer
tokens than estimated, time passed in. Floor: the 4 atomic read-modify-writes that this executes
(a compare-and-swap on each meter's word, an exchange of the reservation's state, a compare-and-swap
for the refund) on words laid out alike. CPU time, median of
{repetitions} repetitions of both in random order. No Python, so no garbage collector.
"""


def measure(options: Options) -> list[Result]:
    """One thread, nobody else on the bucket."""
    repetitions = 3 if options.quick else 11
    found = run_cpp(options, "^BM_Reserve(Floor)?$", repetitions)
    headway = found["Reserve"].median("cpu_time")
    floor = found["ReserveFloor"].median("cpu_time")
    return [
        Result(
            row="core-reserve",
            cell="two limits, one thread",
            unit="ns",
            headway=headway,
            floor=floor,
            goal="at most 2 x floor",
            met=headway <= 2 * floor,
            method=_METHOD.format(repetitions=repetitions),
            peers=NO_CORE,
        )
    ]
