"""The table that a run ends with."""

from __future__ import annotations

from headway.batch.summary import Summary, Tally


def table(summary: Summary, tally: Tally, bound: str | None, path: str) -> str:
    """`summary` for people; `bound` is the limit that set the pace, `path` the file of results."""
    rows = [
        ("requests", f"{summary.requests:,}"),
        ("succeeded", f"{summary.succeeded:,}"),
        ("failed", f"{summary.failed:,}"),
    ]
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
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} s"
