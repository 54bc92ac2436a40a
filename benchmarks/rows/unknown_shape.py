"""unknown-shape: an SDK whose transport is given the limits, but not how they are counted."""

from __future__ import annotations

from harness.options import Options
from harness.result import Result
from quota.by_sdk import measure_sdk
from quota.report import table

__all__ = ["measure", "table"]


def measure(options: Options) -> list[Result]:
    """Before servers of every shape."""
    return measure_sdk("unknown-shape", "amounts", options)
