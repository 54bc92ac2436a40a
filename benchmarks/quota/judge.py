"""What a server's decisions say about a client: use, pace and refusals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from quota.cells import Cell

REFUSED = 429
Decision = Sequence[object]
"""Monotonic seconds, status, tokens, name: as `/_stats?decisions=1` gives it."""


@dataclass(frozen=True)
class Verdict:
    """use: admitted in the whole windows after the first, as a share of rate x time. pace: (m - 1)
    windows' worth as a share of rate x the time between the N-th and the m·N-th admission, where N
    is a window's worth. first_burst: the share of N that went out in the first second.
    """

    use: float
    pace: float
    refusals: int
    first_burst: float


def judge(cell: Cell, decisions: Sequence[Decision], anchor: float) -> Verdict:
    """The verdict on one cell. `anchor`: when a `fixed` window begins, seconds since the epoch."""
    admitted = [
        (float(str(at)), 1 if cell.bound == "requests" else int(str(tokens)))
        for at, status, tokens, _ in decisions
        if status != REFUSED
    ]
    refusals = len(decisions) - len(admitted)
    if not admitted:
        return Verdict(0.0, 0.0, refusals, 0.0)
    return Verdict(
        _use(cell, admitted, anchor),
        _pace(cell, admitted),
        refusals,
        sum(n for at, n in admitted if at < admitted[0][0] + 1.0) / cell.amount,
    )


def _use(cell: Cell, admitted: list[tuple[float, int]], anchor: float) -> float:
    first = admitted[0][0]
    end = first + cell.seconds
    begin = first
    if cell.shape == "fixed":
        # The server's own windows.
        zero = anchor - (time.time() - time.monotonic())
        begin = first - (first - zero) % cell.period
    whole = int((end - begin) / cell.period + 1e-6) - 1
    begin += cell.period
    taken = sum(n for at, n in admitted if begin <= at < begin + whole * cell.period)
    return taken / (cell.amount * whole)


def _pace(cell: Cell, admitted: list[tuple[float, int]]) -> float:
    total = list(accumulate(n for _, n in admitted))
    whole = total[-1] // cell.amount
    if whole < 2:
        return 0.0

    def at(worth: int) -> float:
        return next(t for (t, _), sum_ in zip(admitted, total, strict=True) if sum_ >= worth)

    elapsed = at(whole * cell.amount) - at(cell.amount)
    return (whole - 1) * cell.period / elapsed
