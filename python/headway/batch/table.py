"""The table that a run ends with."""

from __future__ import annotations

from headway.batch.groups import Group, Groups
from headway.batch.summary import Summary, Tally, quantile

MOST_ROWS = 20
"""Rows of a table by model or by account; the rest is one row."""

_LONGEST_NAME = 40


def table(summary: Summary, tally: Tally, bound: str | None, path: str) -> str:
    """`summary` for people; `bound` is the limit that set the pace, `path` the file of results."""
    rows = [
        ("requests", f"{summary.requests:,}"),
        ("succeeded", f"{summary.succeeded:,}"),
        ("failed", f"{summary.failed:,}"),
    ]
    reasons = ", ".join(f"{number:,} {why}" for why, number in tally.reasons.most_common())
    rows += [("failed because", reasons)] * bool(reasons)
    # Only where there were some: neither are requests that ended.
    rows += [("broken lines", f"{tally.broken:,}")] * (tally.broken > 0)
    missing = tally.total - tally.broken - summary.requests
    rows += [("without result", f"{missing:,}")] * (missing > 0)
    rows += [
        ("refusals (429)", f"{summary.refusals:,}"),
        ("retries", f"{summary.retries:,}"),
        ("tokens used", f"{summary.tokens:,}"),
        ("elapsed", _seconds(summary.elapsed_s)),
        ("ideal", _seconds(summary.ideal_s)),
        ("use", "-" if summary.use is None else f"{summary.use:.1%}"),
        ("wait p50", _seconds(summary.wait_p50_s)),
        ("wait p99", _seconds(summary.wait_p99_s)),
        ("bound by", bound or "-"),
        ("results", path),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for what, groups in (("model", tally.models), ("account", tally.accounts)):
        if len(groups) > 1:
            lines += ["", *_by_group(what, groups)]
    return "\n".join(lines)


def _by_group(what: str, groups: Groups) -> list[str]:
    """A row for each of the largest groups, and one for how many others there are."""
    rows: list[tuple[str, ...]] = [(what, "requests", "failed", "wait p50", "wait p99")]
    rows += [_row(name, group) for name, group in list(groups)[:MOST_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [f"{row[0]:<{widths[0]}}"]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    if len(groups) > MOST_ROWS:
        lines.append(f"and {len(groups) - MOST_ROWS:,} more")
    return lines


def _row(name: str, group: Group) -> tuple[str, ...]:
    # Names come from the file: nothing in them may move a terminal's cursor.
    shown = name if name.isprintable() else ascii(name)
    if len(shown) > _LONGEST_NAME:
        shown = f"{shown[: _LONGEST_NAME - 1]}…"
    waits = (_seconds(quantile(group.waits, share)) for share in (0.50, 0.99))
    return (shown or "(none)", f"{group.requests:,}", f"{group.failed:,}", *waits)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} s"
