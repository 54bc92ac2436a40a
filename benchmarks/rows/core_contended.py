"""core-contended: the same by two threads on one bucket."""

from __future__ import annotations

from harness.cpp import run_cpp
from harness.options import Options
from harness.result import Result
from peers import NO_CORE

_METHOD = """
As core-reserve, by two threads on one bucket; elapsed time a call. Floor: two threads, each with
the same number of contended atomics, as fetch_add (3 on the two words that they share), and the 1
on a word of its own. Median of {repetitions} repetitions of both in random order. Means something
only where each thread has a core to itself: see the load in the machine's file.
"""


def measure(options: Options) -> list[Result]:
    """Two threads that do nothing else."""
    repetitions = 3 if options.quick else 11
    found = run_cpp(options, "^BM_Contended(Floor)?/", repetitions)
    headway = found["Contended"].median("real_time")
    floor = found["ContendedFloor"].median("real_time")
    return [
        Result(
            row="core-contended",
            cell="two limits, two threads",
            unit="ns",
            headway=headway,
            floor=floor,
            goal="at most 4 x floor",
            met=headway <= 4 * floor,
            method=_METHOD.format(repetitions=repetitions),
            peers=NO_CORE,
        )
    ]
