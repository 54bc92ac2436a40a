"""Calls of the SDKs, governed by a transport that is told more or less of the limits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

from harness.options import Options
from harness.result import Result
from peers import NOT_INSTALLED
from peers.sdk import NEEDS_LIMITS, WAYS
from quota.cells import Cell, quick_sdk_cells, sdk_cells
from quota.report import UNITS, Figures, Goal, figures_of, results_of
from quota.side_by_side import run_side_by_side

_MOST = 8
"""Cells at once: an SDK and its server take more of a processor than a plain client."""

_METHOD = """
A `headway simulate` process enforces both limits (requests and tokens, of the cell's shape) and
tells of them as OpenAI does, or Anthropic, whose tokens are what goes in; a client process of its
own calls it with OpenAI's SDK {openai} or Anthropic's {anthropic}, whose transport is an
AsyncTransport with a scheduler that is given {told}, no buffer ratio, and its provider's name, and
always two windows' worth waiting. Tokens are counted by what a request may use, which with OpenAI
is more than its answer has used. {count} cells side by side, beginning one after
the other within one window so that their bursts do not meet; `more` says how busy the machine was.
Judged from the server's own decisions. use: admitted in the whole windows after the first ÷ rate x
time; pace: (m - 1) windows' worth ÷ rate x the time between the N-th and the m·N-th admission.
Floor: what the limit allows. Garbage collector on. Peers, beside it in the same batch:
`sdk-retries` is the SDK as it comes, which tries twice more; `tenacity` is around it as in OpenAI's
cookbook: six attempts, random exponential waits of 1 to 60 s; the limiters are given the same, as
far as they can take it: adaptive-rate-limiter (intelligent mode) and chat-limiter know limits of a
minute, token-throttle one shape. chat-limiter makes the calls itself, the others use the SDK.
"""
_TOLD = {"limits": "the limits", "amounts": "the limits without their shape", "nothing": "nothing"}
_GOAL = Goal(0.99, 0.99)
_NOT_ASKED: Figures = dict.fromkeys(
    UNITS, dict.fromkeys(WAYS, "was run in the cells of 0.05 s, requests and of 2 s, tokens: sdk")
)


def measure_sdk(row: str, told: str, options: Options) -> list[Result]:
    """The row's cells; with peers, some of them in other ways, too."""
    cells = quick_sdk_cells(told) if options.quick else sdk_cells(told, 20)
    cannot = NEEDS_LIMITS if told == "nothing" else {}
    ways = [name for name in WAYS if options.peers and name not in cannot]
    groups = [
        [cell, *(replace(cell, limiter=name) for name in ways if _is_compared(cell))]
        for cell in cells
    ]
    peers: dict[Cell, Figures] = {
        cell: {unit: {**cannot} for unit in UNITS} for cell in cells if _is_compared(cell)
    }
    ours = []
    for batch in _batches(groups):
        windows, period = batch[0].windows, batch[0].period
        print(f"  {len(batch)} cells, {windows} windows of {period} s", file=sys.stderr, flush=True)
        outcomes, busy = run_side_by_side(batch)
        for outcome in outcomes:
            name = outcome.cell.limiter
            if name == "headway":
                ours.append((outcome, busy, len(batch)))
                continue
            of_cell = peers[replace(outcome.cell, limiter="headway")]
            for unit, value in figures_of(outcome).items():
                missing = outcome.client.get("missing")
                of_cell[unit][name] = NOT_INSTALLED if missing else value
    return [
        each
        for outcome, busy, count in ours
        for each in results_of(
            row,
            outcome,
            goal=_GOAL,
            method=_METHOD.format(
                openai=version("openai"),
                anthropic=version("anthropic"),
                told=_TOLD[told],
                count=count,
            ),
            busy=busy,
            peers=peers.get(outcome.cell, _NOT_ASKED),
        )
    ]


def _is_compared(cell: Cell) -> bool:
    kind = (cell.latency, cell.bound, cell.call)
    return kind in (("0.05", "requests", "sdk"), ("2", "tokens", "sdk"))


def _batches(groups: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """At most `_MOST` at once, as long as each other; those that are compared run side by side."""
    batches: list[list[Cell]] = []
    for group in sorted(groups, key=len, reverse=True):
        for batch in batches:
            if len(batch) + len(group) <= _MOST and batch[0].period == group[0].period:
                batch.extend(group)
                break
        else:
            batches.append([*group])
    return batches
