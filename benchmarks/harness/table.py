"""Results as text."""

from __future__ import annotations

from collections.abc import Sequence

from harness.result import Result

_HEAD = ["row", "cell", "unit", "headway", "floor", "ratio", "goal", "met"]


def line(result: Result) -> list[str]:
    """One result's cells."""
    met = {True: "yes", False: "NO", None: "-"}[result.met]
    return [
        result.row,
        result.cell,
        result.unit,
        _figure(result.headway),
        "-" if result.floor is None else _figure(result.floor),
        "-" if result.ratio is None else f"{result.ratio:.2f}",
        result.goal,
        met,
    ]


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table in columns."""
    every = [_HEAD, *lines]
    widths = [max(len(row[i]) for row in every) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    )


def peer_lines(results: Sequence[Result]) -> str:
    """What the peers did, a line a result; why some could not is in the JSON."""
    out = []
    for result in results:
        told = [
            f"{name} {_figure(value)}"
            for name, value in result.peers.items()
            if not isinstance(value, str)
        ]
        if told:
            out.append(f"{result.row}, {result.cell}, {result.unit}: {', '.join(told)}")
    return "\n".join(out)


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
