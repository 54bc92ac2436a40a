"""core-contended: the same by two threads on one bucket."""

from __future__ import annotations

import os

from harness.cpp import run_cpp
from harness.options import Options
from harness.result import Result
from peers import NO_CORE


def measure(options: Options) -> list[Result]:
    """Two threads that do nothing else."""
    found = run_cpp(options, "^BM_Contended(Floor)?/", 3 if options.quick else 15)
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
            method=(
                "As core-reserve, by two threads on one bucket; elapsed time of a call. Floor: two "
                "threads, each with the same number of contended atomics, as fetch_add (3 on the two "
                "words that they share), and the 2 on a word of its own. Median of 15 repetitions of "
                "both, in random order. Means something only where both threads have a core: see the "
                "load in the machine's file."
            ),
            more={"cores": os.cpu_count() or 0},
            peers=NO_CORE,
        )
    ]
