"""`python -m headway.simulate`: the same as `headway simulate`."""

from __future__ import annotations

import argparse
import sys

from headway.cli.simulate import add_options, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m headway.simulate")
    add_options(parser)
    sys.exit(run(parser.parse_args()))
