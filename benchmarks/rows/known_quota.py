"""known-quota: a client that is given the limits, against a server that enforces them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.options import Options
from harness.result import Result
from peers import NAMES, NOT_INSTALLED
from quota.by_sdk import measure_sdk
from quota.cells import SHAPES, Cell, all_cells, quick_cells
from quota.report import UNITS, Figures, Goal, figures_of, results_of, table
from quota.side_by_side import Outcome, run_side_by_side

__all__ = ["measure", "table"]

_MOST = 12
"""Cells at once: of three times as many, a client and a server each, two processors are full."""

_METHOD = """
A `headway simulate` process enforces both limits (requests and tokens, of the cell's shape); a
client process of its own (httpx) has the same limits, and always two windows' worth waiting.
{call} {count} cells side by side, beginning one after the other within one window so that their
bursts do not meet; `more` says how busy the machine was. Judged from the server's own decisions.
use: admitted in the whole windows after the first ÷ rate x time; pace: (m - 1) windows' worth ÷
rate x the time between the N-th and the m·N-th admission. Floor: what the limit allows. Garbage
collector on.
"""
_CALLS = {
    "transport": "Through the transport's marks.",
    "opaque": "Opaque: `async with limiter.acquire(...)` around the call.",
}

_NOT_ASKED: Figures = dict.fromkeys(
    UNITS,
    dict.fromkeys(NAMES, "was run in the cells of 0.05 s, requests, opaque, 6 s windows only"),
)


def measure(options: Options) -> list[Result]:
    """Each length of window, as long as each other side by side; then those of an SDK."""
    batches = [quick_cells()] if options.quick else [all_cells(6, 20), all_cells(60, 3)]
    peers = _peers(options) if options.peers else {}
    results = []
    for cells in batches:
        for outcome, busy, count in _run(cells):
            results += results_of(
                "known-quota",
                outcome,
                goal=_goal(outcome.cell),
                method=_METHOD.format(call=_CALLS[outcome.cell.call], count=count),
                busy=busy,
                peers=peers.get(outcome.cell, _NOT_ASKED),
            )
    return results + measure_sdk("known-quota", "limits", options)


def _goal(cell: Cell) -> Goal:
    if cell.call == "opaque" and cell.latency.startswith("lognormal"):
        return Goal(0.9, 0.9)
    return Goal(0.99, 0.99)


def _run(cells: Sequence[Cell]) -> Iterator[tuple[Outcome, dict[str, float], int]]:
    """Each cell's outcome, how busy the machine was meanwhile, and with how many at once."""
    period, windows = cells[0].period, cells[0].windows
    for first in range(0, len(cells), _MOST):
        batch = cells[first : first + _MOST]
        print(f"  {len(batch)} cells, {windows} windows of {period} s", file=sys.stderr, flush=True)
        outcomes, busy = run_side_by_side(batch)
        for outcome in outcomes:
            yield outcome, busy, len(batch)


def _peers(options: Options) -> dict[Cell, Figures]:
    """An opaque call of 50 ms, bound by requests, in windows of 6 s, of each shape."""
    windows = 4 if options.quick else 20
    cells = [Cell(shape, "0.05", "requests", "opaque", 6, windows) for shape in SHAPES]
    found: dict[Cell, Figures] = {cell: {unit: {} for unit in _NOT_ASKED} for cell in cells}
    for outcome, *_ in _run([replace(cell, limiter=name) for name in NAMES for cell in cells]):
        name = outcome.cell.limiter
        figures = found[replace(outcome.cell, limiter="headway")]
        if outcome.client.get("missing"):
            for each in figures.values():
                each[name] = NOT_INSTALLED
            continue
        for unit, value in figures_of(outcome).items():
            figures[unit][name] = value
    return found
