"""What people see of a run where there is no terminal, and how the time that is left is told."""

from __future__ import annotations

import asyncio
import io

import pytest

from headway.batch import progress as progress_module
from headway.batch.lines import Line
from headway.batch.plan import Plan
from headway.batch.progress import Progress
from headway.batch.results import Outcome
from headway.batch.summary import Tally

OK = Outcome(status=200)
LINE = Line(1, "a", "/v1/chat/completions", {})


class Lines(io.StringIO):
    """Remembers what is written, and tells when so many lines are there."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted
        self.enough = asyncio.Event()

    def flush(self) -> None:
        if self.getvalue().count("\n") >= self.wanted:
            self.enough.set()


def test_a_line_now_and_then_says_how_far_it_is() -> None:
    async def main() -> None:
        tally = Tally(1300, Plan())
        for _ in range(1200):
            tally.end(LINE, OK)
        tally.end(LINE, Outcome(error=("timeout", "")))
        tally.in_flight, tally.refusals, tally.retries = 7, 2, 3
        stream = Lines(wanted=3)
        with Progress(stream, tally, report=0.01):
            await stream.enough.wait()
        lines = stream.getvalue().splitlines()
        assert lines[0].startswith(
            "headway run: 1,201 of 1,300, 7 in flight, 1 failed, 2 refused, 3 retries, about 0:"
        )
        assert "\r" not in stream.getvalue()
        said = len(lines)
        await asyncio.sleep(0.05)
        assert len(stream.getvalue().splitlines()) == said

    asyncio.run(main())


def test_what_is_said_is_a_line_of_its_own() -> None:
    stream = io.StringIO()
    Progress(stream, Tally(1, Plan())).say("broken line 1: no")
    assert stream.getvalue() == "broken line 1: no\n"


def test_the_time_left_is_told_by_the_pace_after_the_first_burst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    tally = Tally(1000, Plan())
    progress = Progress(io.StringIO(), tally)
    assert progress._seconds_left(0) is None
    # A burst of 100 at once, then one a second.
    for second in range(1, 101):
        now = float(second)
        left = progress._seconds_left(100 + second)
        if second >= 4:
            assert left == pytest.approx(1000 - 100 - second)
    now = 200.0
    assert progress._seconds_left(200) is None  # nothing has moved lately
    assert progress._seconds_left(1000) is None  # nothing is left
