"""Calls of OpenAI's SDK, governed by a transport that is told more or less of the limits."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version

from harness.options import Options
from harness.result import Result
from peers import NOT_INSTALLED
from peers.naive import NAIVE
from quota.cells import SHAPES, Cell, quick_sdk_cells, sdk_cells
from quota.report import UNITS, Figures, Goal, figures_of, results_of
from quota.side_by_side import run_side_by_side

_MOST = 12
"""Cells at once: an SDK and its server take more of a processor than a plain client."""

_METHOD = """
A `headway simulate` process enforces both limits (requests and tokens, of the cell's shape) and
tells of them as OpenAI does; a client process of its own calls it with OpenAI's SDK {openai},
whose transport is an AsyncTransport with a scheduler that is given {told}, no buffer ratio, and
its provider's name, and always two windows' worth waiting. Tokens are counted by what a request
may use, which is more than its answer has used. {count} cells side by side, beginning one after
the other within one window so that their bursts do not meet; `more` says how busy the machine was.
Judged from the server's own decisions. use: admitted in the whole windows after the first ÷ rate x
time; pace: (m - 1) windows' worth ÷ rate x the time between the N-th and the m·N-th admission.
Floor: what the limit allows. Garbage collector on. Peers: `sdk-retries` is the SDK as it comes,
which tries twice more; `tenacity` is around it as in OpenAI's cookbook: six attempts, random
exponential waits of 1 to 60 s.
"""
_TOLD = {"limits": "the limits", "amounts": "the limits without their shape", "nothing": "nothing"}
_GOALS = {"limits": 0.98, "amounts": 0.95, "nothing": 0.95}
"""Of use and pace; the end of a window of tokens that no next request fits into is lost, 0.8 %."""
_NOT_ASKED: Figures = dict.fromkeys(
    UNITS, dict.fromkeys(NAIVE, "was run in discovered-quota, 0.05 s, requests, sdk, only")
)


def measure_sdk(row: str, told: str, options: Options) -> list[Result]:
    """The row's cells; with peers and nothing told, the naive ways among them."""
    cells = quick_sdk_cells(told) if options.quick else sdk_cells(told, 20)
    naive = [
        replace(cell, limiter=name)
        for name in NAIVE
        for cell in cells
        if options.peers and told == "nothing" and _is_compared(cell)
    ]
    goal = Goal(_GOALS[told], _GOALS[told])
    peers: dict[Cell, Figures] = {}
    ours = []
    # The naive ones first, so that those they are compared with run beside them.
    for batch in _batches([*naive, *cells]):
        windows, period = batch[0].windows, batch[0].period
        print(f"  {len(batch)} cells, {windows} windows of {period} s", file=sys.stderr, flush=True)
        outcomes, busy = run_side_by_side(batch)
        for outcome in outcomes:
            name = outcome.cell.limiter
            if name == "headway":
                ours.append((outcome, busy, len(batch)))
                continue
            of_cell = peers.setdefault(
                replace(outcome.cell, limiter="headway"), {unit: {} for unit in UNITS}
            )
            for unit, value in figures_of(outcome).items():
                missing = outcome.client.get("missing")
                of_cell[unit][name] = NOT_INSTALLED if missing else value
    return [
        each
        for outcome, busy, count in ours
        for each in results_of(
            row,
            outcome,
            goal=goal,
            method=_METHOD.format(openai=version("openai"), told=_TOLD[told], count=count),
            busy=busy,
            peers=peers.get(outcome.cell, _NOT_ASKED),
        )
    ]


def _is_compared(cell: Cell) -> bool:
    return (cell.latency, cell.bound, cell.call) == ("0.05", "requests", "sdk")


def _batches(cells: Sequence[Cell]) -> Iterator[Sequence[Cell]]:
    for first in range(0, len(cells), _MOST):
        yield cells[first : first + _MOST]


assert len(SHAPES) * (len(NAIVE) + 1) <= _MOST, "those that are compared fit into one batch"
