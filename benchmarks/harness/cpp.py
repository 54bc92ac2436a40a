"""Runs the C++ benchmarks and reads what they say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.options import Options


@dataclass(frozen=True)
class CppRun:
    """The repetitions of one C++ benchmark."""

    runs: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, parts: Iterable[CppRun]) -> CppRun:
        """The repetitions of several runs."""
        return cls(tuple(run for part in parts for run in part.runs))

    def median(self, name: str) -> float:
        """The median over the repetitions of `real_time`, `cpu_time` (ns) or a counter."""
        return median(float(run[name]) for run in self.runs)

    def highest(self, name: str) -> float:
        """The largest value."""
        return max(float(run[name]) for run in self.runs)


def run_cpp(options: Options, pattern: str, repetitions: int) -> dict[str, CppRun]:
    """Runs the benchmarks whose names match, their repetitions mixed; by name up to a slash."""
    if not options.cpp.exists():
        raise SystemExit(f"{options.cpp} is not built: `make bench` builds it")
    command = [
        str(options.cpp),
        f"--benchmark_filter={pattern}",
        f"--benchmark_repetitions={repetitions}",
        "--benchmark_enable_random_interleaving=true",
        f"--benchmark_min_time={0.05 if options.quick else 0.2}",
        "--benchmark_format=json",
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for run in json.loads(done.stdout)["benchmarks"]:
        if run["run_type"] != "iteration":
            continue
        if run.get("error_occurred"):
            raise RuntimeError(f"{run['name']}: {run['error_message']}")
        found.setdefault(_name(run["run_name"]), []).append(run)
    return {name: CppRun(tuple(runs)) for name, runs in found.items()}


def _name(full: str) -> str:
    """`BM_Wake/10000/iterations:20/manual_time` as `BM_Wake/10000`."""
    parts = full.removeprefix("BM_").split("/")
    return "/".join(parts[:1] + [part for part in parts[1:2] if part.isdigit()])
