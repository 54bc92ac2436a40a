"""`headway`: the command, and what it does with its arguments."""

from __future__ import annotations

import argparse
import sys

from headway import __version__
from headway.cli import run, simulate


def main(argv: list[str] | None = None) -> int:
    """Runs the subcommand that `argv` (None: the process's own arguments) names; its exit code."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as end:  # argparse has said all there is to say
        return end.code if isinstance(end.code, int) else 2
    try:
        status: int = args.run(args)
    except KeyboardInterrupt:
        return run.INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headway",
        description="Keeps outgoing calls just under every limit that their provider counts.",
    )
    parser.add_argument("--version", action="version", version=f"headway {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run.add_parser(subparsers)
    simulate.add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
