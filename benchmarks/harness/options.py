"""What was asked for on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """`quick`: fewer and shorter repetitions, to try things; its figures are no results.

    `peers`: the other limiters, too. `cpp`: the built C++ benchmarks. `build`: where the floor in C
    is built.
    """

    quick: bool
    peers: bool
    cpp: Path
    build: Path
