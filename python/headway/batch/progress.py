"""Says how far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from types import TracebackType
from typing import TextIO, final

from headway.batch.summary import Tally

REDRAW = 0.2
"""Seconds between two pictures of the bar."""

REPORT = 10.0
"""Seconds between two lines where there is no terminal."""

_BAR = 24
_LOOK_BACK = 60.0


@final
class Progress:
    """Shows `tally` on `stream` while entered.

    Where the stream is no terminal, a line each `report` seconds. Everything else that is said to
    people goes through `say`, so that the bar is not torn.
    """

    def __init__(self, stream: TextIO, tally: Tally, report: float = REPORT) -> None:
        self._stream = stream
        self._tally = tally
        self._terminal = stream.isatty()
        self._every = REDRAW if self._terminal else report
        self._began = time.monotonic()
        self._seen = deque([(self._began, 0)])  # when, how many had ended
        self._timer: asyncio.TimerHandle | None = None
        self._drawn = False

    def say(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        print(text, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._seen = deque([(self._began, 0)])
        if self._terminal:
            self._draw()
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._clear()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every, self._show)

    def _show(self) -> None:
        if self._terminal:
            self._draw()
        else:
            print(f"headway run: {self._state()}", file=self._stream, flush=True)
        self._wait()

    def _draw(self) -> None:
        share = min(1.0, self._tally.requests / self._tally.total) if self._tally.total else 0.0
        full = round(share * _BAR)
        line = f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}  {self._state()}"
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        self._stream.write(f"\r\x1b[K{line[: columns - 1]}")
        self._stream.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def _state(self) -> str:
        tally = self._tally
        done = tally.requests
        parts = [f"{done:,} of {self._tally.total:,}", f"{tally.in_flight:,} in flight"]
        for number, word in (
            (tally.failed, "failed"),
            (tally.refusals, "refused"),
            (tally.retries, "retries"),
        ):
            if number:
                parts.append(f"{number:,} {word}")
        left = self._seconds_left(done)
        if left is not None:
            parts.append(f"about {_clock(left)} left")
        return ", ".join(parts)

    def _seconds_left(self, done: int) -> float | None:
        """By the pace of the last minute, or of the later half where less time has passed.

        What the first burst let through at once will not come again.
        """
        now = time.monotonic()
        self._seen.append((now, done))
        oldest = now - min(_LOOK_BACK, (now - self._began) / 2)
        while len(self._seen) > 2 and self._seen[1][0] <= oldest:
            self._seen.popleft()
        when, before = self._seen[0]
        rest = self._tally.total - self._tally.broken - done
        if done == before or rest <= 0:
            return None
        return rest * (now - when) / (done - before)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
