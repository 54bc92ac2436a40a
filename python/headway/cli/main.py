"""`headway`: the command, and what it does with its arguments."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version

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
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run.add_parser(subparsers)
    simulate.add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"headway {version('headway')}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
