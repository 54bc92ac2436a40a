"""Runs many cells at once, each with a server and a client in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.machine import CpuWatch
from headway.simulate import SimulatorProcess
from quota.cells import Cell
from quota.judge import Verdict, judge

_HERE = Path(__file__).parent.parent
_STARTERS = 4
"""Processes that are started at once."""
_SPREAD = 50.0
"""Seconds, at most, over which the cells of a batch begin."""


@dataclass(frozen=True)
class Outcome:
    """A cell's verdict, and what its client noticed of itself."""

    cell: Cell
    verdict: Verdict
    client: dict[str, Any]


class Running:
    """One cell: its server, and its client ready to begin."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.anchor = 0.0
        dialect = cell.sdk or "openai"
        self.server = SimulatorProcess(
            "--latency", cell.latency, "--decisions", "--dialect", dialect
        )
        self.server.start()
        self.client = subprocess.Popen(
            [sys.executable, "-m", "quota.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": _path()},
        )
        if self._read() != "ready":
            raise RuntimeError(f"the client of '{cell.name}' did not start")

    def begin(self, at: float) -> None:
        """Has the client begin at that monotonic instant, and the server count from now on."""
        # A `fixed` window begins with the cell: else those of all would begin together.
        began = time.time() + at - time.monotonic() - 0.1
        self.anchor = round(began % self.cell.period, 3)
        self.server.set_limits([*self.cell.limits(self.anchor)])
        told = {
            "cell": asdict(self.cell),
            "url": self.server.url,
            "limits": self.cell.given(self.anchor),
            "begin": at,
        }
        assert self.client.stdin is not None
        self.client.stdin.write(json.dumps(told) + "\n")
        self.client.stdin.flush()

    def end(self) -> Outcome:
        """Waits for the client, asks the server and ends both."""
        told = self._read()
        if not told:
            raise RuntimeError(f"the client of '{self.cell.name}' did not finish")
        report = json.loads(told)
        self.client.wait()
        decisions = self.server.stats(decisions=True)["decisions"]
        return Outcome(self.cell, judge(self.cell, decisions, self.anchor), report)

    def stop(self) -> None:
        """Ends both processes, whatever they do."""
        self.client.kill()
        self.client.communicate()
        self.server.stop()

    def _read(self) -> str:
        assert self.client.stdout is not None
        return self.client.stdout.readline().strip()


def run_side_by_side(cells: Sequence[Cell]) -> tuple[list[Outcome], dict[str, float]]:
    """The outcome of each cell, and how busy the machine was.

    The cells begin one after the other within the first of their windows, so that their bursts do
    not meet.
    """
    running: list[Running] = []
    try:
        with ThreadPoolExecutor(_STARTERS) as starters:
            for each in starters.map(Running, cells):
                running.append(each)
        return _let_run(running)
    finally:
        for each in running:
            each.stop()


def _let_run(running: Sequence[Running]) -> tuple[list[Outcome], dict[str, float]]:
    first = time.monotonic() + 1.0
    period, seconds = running[0].cell.period, running[0].cell.seconds
    for number, each in enumerate(running):
        each.begin(first + number * min(period, _SPREAD) / len(running))
    # The first window is the one in which all connections are made.
    time.sleep(max(0.0, first + period - time.monotonic()))
    with CpuWatch() as watch:
        time.sleep(max(0.0, first + seconds - time.monotonic()))
    with ThreadPoolExecutor(len(running)) as pool:
        return list(pool.map(Running.end, running)), watch.report()


def _path() -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_HERE), *([inherited] if inherited else [])])
