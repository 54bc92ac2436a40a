"""Measures every row of the goals beside its floor; README.md says how to read it.

build/venv/bin/python benchmarks/run.py [--peers] [--rows wake,idle] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

from harness.machine import describe
from harness.options import Options
from harness.result import Result
from harness.table import line, peer_lines, table

ROOT = Path(__file__).resolve().parent.parent
ROWS = (
    "core-reserve",
    "core-contended",
    "try-acquire",
    "submit",
    "stream",
    "wake",
    "idle",
    "lateness",
    "fairness",
    "known-quota",
    "unknown-shape",
    "discovered-quota",
    "idle-buckets",
    "redis-exact",
)


def main() -> int:
    """0 when everything was measured, whether or not a goal was met."""
    args = _arguments()
    options = Options(
        quick=args.quick,
        peers=args.peers,
        cpp=args.cpp,
        build=args.out.resolve().parent / "bench",
    )
    machine = describe()
    results: list[Result] = []
    lines: list[list[str]] = []
    began = time.monotonic()
    for row in args.rows:
        module = import_module(f"rows.{row.replace('-', '_')}")
        print(f"{row} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        found: list[Result] = module.measure(options)
        print(f"{row}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        results += found
        lines += module.table(found) if hasattr(module, "table") else map(line, found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    _write(args.out, [result.as_json(options.peers) for result in results])
    machine["seconds"] = round(time.monotonic() - began)
    machine["quick"] = options.quick
    _write(args.out.with_name(f"{args.out.stem}-machine.json"), machine)
    print(table(lines))
    if options.peers:
        print(peer_lines(results))
    missed = sum(result.met is False for result in results)
    print(
        f"{len(results)} figures in {machine['seconds']} s, {missed} below their goal: {args.out}"
    )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures every row beside its floor.")
    add = parser.add_argument
    add("--peers", action="store_true", help="measure other limiters, too")
    add("--rows", type=_rows, default=ROWS, metavar="A,B", help=f"of {', '.join(ROWS)}")
    add("--quick", action="store_true", help="short runs, to try things; no results")
    add(
        "--cpp",
        type=Path,
        default=ROOT / "build" / "bench" / "headway_benchmarks",
        help="the C++ benchmarks (%(default)s)",
    )
    add("--out", type=Path, default=ROOT / "build" / "bench.json", help="%(default)s")
    return parser.parse_args()


def _rows(text: str) -> tuple[str, ...]:
    return tuple(_row(word) for word in text.split(","))


def _row(word: str) -> str:
    """The row of that name, or the only one that begins with it."""
    found = [row for row in ROWS if row == word] or [row for row in ROWS if row.startswith(word)]
    if len(found) != 1:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(ROWS)}")
    return found[0]


def _write(path: Path, what: object) -> None:
    path.write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
