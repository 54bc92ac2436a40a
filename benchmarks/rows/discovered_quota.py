"""discovered-quota: an SDK whose transport is given no limit and finds them out."""

from __future__ import annotations

from harness.options import Options
from harness.result import Result
from quota.by_sdk import measure_sdk
from quota.report import table

__all__ = ["measure", "table"]


def measure(options: Options) -> list[Result]:
    """Before servers of every shape."""
    return measure_sdk("discovered-quota", "nothing", options)
