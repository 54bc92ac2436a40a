"""idle-buckets: the memory of a million buckets that were used once."""

from __future__ import annotations

import gc

from harness.apart import apart
from harness.cpp import CppRun, run_cpp
from harness.memory import resident_bytes
from harness.options import Options
from harness.result import Result
from peers import NO_PART
from peers.idle_buckets import measure_peers

LIMIT = 256.0
WORDS = 16.0

_METHOD = """
C++: growth of the process's resident memory by 1 000 000 buckets, each of which reserved and
settled once, divided by their number; median of {repetitions} processes. Floor: the two words.
`more`: the same as the allocator counts it.
"""
_GROWTH_METHOD = """
Growth of resident memory while the same buckets serve 1 000 000 requests more; the worst
repetition. Floor: none.
"""
_OBJECTS_METHOD = """
Growth of a Python process's resident memory by {count} Limiters of the same two limits, each used
once. Floor: the two words. Garbage collector off.
"""


def measure(options: Options) -> list[Result]:
    """In C++, a million buckets; then what a Limiter object around one adds."""
    repetitions = 1 if options.quick else 3
    # A process each: the second time, memory would be there already.
    found = CppRun.of(
        run_cpp(options, "^BM_IdleBuckets/", 1)["IdleBuckets/1000000"] for _ in range(repetitions)
    )
    headway = found.median("resident")
    growth = found.highest("resident_growth")
    count = 10_000 if options.quick else 100_000
    objects = apart(limiters, count)
    peers = measure_peers(options.quick) if options.peers else {}
    return [
        Result(
            row="idle-buckets",
            cell="1_000_000 buckets of two `bucket` limits",
            unit="bytes a bucket",
            headway=headway,
            floor=WORDS,
            goal="at most 256 MB",
            met=headway <= LIMIT,
            method=_METHOD.format(repetitions=repetitions),
            more={"allocated": found.median("allocated")},
            peers=peers,
        ),
        Result(
            row="idle-buckets",
            cell="growth with requests served",
            unit="bytes a request",
            headway=growth,
            floor=0.0,
            goal="nothing grows",
            met=growth <= 0.01 and found.highest("allocated_growth") <= 0.0,
            method=_GROWTH_METHOD,
            more={"allocated": found.highest("allocated_growth")},
            peers=NO_PART,
        ),
        Result(
            row="idle-buckets",
            cell="as Limiter objects in Python",
            unit="bytes a limiter",
            headway=objects,
            floor=WORDS,
            goal="to be read: the goal is for buckets",
            met=None,
            method=_OBJECTS_METHOD.format(count=count),
            peers=peers,
        ),
    ]


def limiters(count: int) -> float:
    """Bytes of this process for each of `count` Limiters."""
    from headway import Limit, Limiter

    limits = [
        Limit.parse("1_000_000 requests/s bucket"),
        Limit.parse("1_000_000 tokens/s bucket"),
    ]
    first = Limiter(limits)
    assert first.try_acquire(1, 10)
    gc.disable()
    before = resident_bytes()
    kept = [Limiter(limits) for _ in range(count)]
    for each in kept:
        assert each.try_acquire(1, 10)
    return (resident_bytes() - before) / count
