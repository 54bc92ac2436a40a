"""A cell's outcome as figures, and the figures of a cell as one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.result import Result
from quota.side_by_side import Outcome

UNITS = ("use", "pace", "refusals")
Figures = dict[str, dict[str, float | str]]
"""By unit, what each peer did."""


@dataclass(frozen=True)
class Goal:
    """What a cell has to reach, beside no refusal."""

    use: float
    pace: float


def figures_of(outcome: Outcome) -> dict[str, float]:
    """By unit."""
    verdict = outcome.verdict
    return dict(zip(UNITS, (verdict.use, verdict.pace, float(verdict.refusals)), strict=True))


def results_of(
    row: str,
    outcome: Outcome,
    *,
    goal: Goal,
    method: str,
    busy: Mapping[str, float],
    peers: Figures,
) -> list[Result]:
    """Three figures of one cell."""
    cell, verdict = outcome.cell, outcome.verdict
    more = {**busy, "first_burst": verdict.first_burst, "client": outcome.client}
    floors = (1.0, 1.0, 0.0)
    texts = (f"at least {goal.use}", f"at least {goal.pace}", "none")
    met = (verdict.use >= goal.use, verdict.pace >= goal.pace, not verdict.refusals)
    return [
        Result(
            row=row,
            cell=cell.name,
            unit=unit,
            headway=value,
            floor=floor,
            goal=text,
            met=reached,
            method=method,
            more=more,
            peers=peers[unit],
        )
        for (unit, value), floor, text, reached in zip(
            figures_of(outcome).items(), floors, texts, met, strict=True
        )
    ]


def table(results: Sequence[Result]) -> list[list[str]]:
    """One line a cell instead of three."""
    lines: dict[str, list[Result]] = {}
    for result in results:
        lines.setdefault(result.cell, []).append(result)
    missed = Counter(result.cell for result in results if not result.met)
    return [
        [
            three[0].row,
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
