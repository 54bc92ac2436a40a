"""known-quota: a client that is given the limits, against a server that enforces them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.options import Options
from harness.result import Result
from peers import NAMES, NOT_INSTALLED
from quota.cells import SHAPES, Cell, all_cells, quick_cells
from quota.side_by_side import Outcome, run_side_by_side

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


Figures = dict[str, dict[str, float | str]]
"""By unit, what each peer did."""
_NOT_ASKED: Figures = dict.fromkeys(
    ("use", "pace", "refusals"),
    dict.fromkeys(NAMES, "was run in the cells of 0.05 s, requests, opaque, 6 s windows only"),
)


@dataclass(frozen=True)
class Goal:
    """What a cell has to reach."""

    use: float
    pace: float

    @classmethod
    def of(cls, cell: Cell) -> Goal:
        if cell.call == "opaque" and cell.latency.startswith("lognormal"):
            return cls(0.9, 0.9)
        return cls(0.99, 0.99)


def measure(options: Options) -> list[Result]:
    """One batch of cells for each length of window; with peers, a third one."""
    batches = [quick_cells()] if options.quick else [all_cells(6, 20), all_cells(60, 3)]
    peers = _peers(options) if options.peers else {}
    results = []
    for cells in batches:
        outcomes, busy = _run(cells)
        for outcome in outcomes:
            results += _results(outcome, len(cells), busy, peers.get(outcome.cell, _NOT_ASKED))
    return results


def _run(cells: Sequence[Cell]) -> tuple[list[Outcome], dict[str, float]]:
    period, windows = cells[0].period, cells[0].windows
    print(f"  {len(cells)} cells, {windows} windows of {period} s", file=sys.stderr, flush=True)
    return run_side_by_side(cells)


def _results(outcome: Outcome, count: int, busy: dict[str, float], peers: Figures) -> list[Result]:
    cell, verdict, goal = outcome.cell, outcome.verdict, Goal.of(outcome.cell)
    method = _METHOD.format(call=_CALLS[cell.call], count=count)
    more = {**busy, "first_burst": verdict.first_burst, "client": outcome.client}
    figures = (
        ("use", verdict.use, 1.0, f"at least {goal.use}", verdict.use >= goal.use),
        ("pace", verdict.pace, 1.0, f"at least {goal.pace}", verdict.pace >= goal.pace),
        ("refusals", verdict.refusals, 0.0, "none", not verdict.refusals),
    )
    return [
        Result(
            row="known-quota",
            cell=cell.name,
            unit=unit,
            headway=value,
            floor=floor,
            goal=text,
            met=met,
            method=method,
            more=more,
            peers=peers[unit],
        )
        for unit, value, floor, text, met in figures
    ]


def _peers(options: Options) -> dict[Cell, Figures]:
    """An opaque call of 50 ms, bound by requests, in windows of 6 s, of each shape."""
    windows = 4 if options.quick else 20
    cells = [Cell(shape, "0.05", "requests", "opaque", 6, windows) for shape in SHAPES]
    found: dict[Cell, Figures] = {cell: {unit: {} for unit in _NOT_ASKED} for cell in cells}
    outcomes, _ = _run([replace(cell, limiter=name) for name in NAMES for cell in cells])
    for outcome in outcomes:
        name, verdict = outcome.cell.limiter, outcome.verdict
        figures = found[replace(outcome.cell, limiter="headway")]
        if outcome.client.get("missing"):
            for each in figures.values():
                each[name] = NOT_INSTALLED
            continue
        figures["use"][name] = verdict.use
        figures["pace"][name] = verdict.pace
        figures["refusals"][name] = float(verdict.refusals)
    return found


def table(results: Sequence[Result]) -> list[list[str]]:
    """One line a cell instead of three."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(result.cell, []).append(result)
    missed = Counter(result.cell for result in results if not result.met)
    return [
        [
            "known-quota",
            cell,
            "use / pace / refusals",
            " / ".join(f"{each.headway:.4g}" for each in three),
            "1 / 1 / 0",
            "",
            " / ".join(each.goal.removeprefix("at least ") for each in three),
            "NO" if missed[cell] else "yes",
        ]
        for cell, three in lines.items()
    ]
