"""Batch: sends every request of a file as soon as its limits let it through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import count
from typing import final

from headway import CapacityExceededError, Limiter
from headway.batch.attempt import Attempts
from headway.batch.lines import Broken, Line
from headway.batch.results import Outcome, Results
from headway.batch.summary import Tally
from headway.batch.tokens import cost
from headway.retry import RetryBudget, backoff

READ_AHEAD = 1024
"""Requests that may have been read and not gone out yet.

They are what the limiter hands out while the event loop is busy with others, so there must be more
of them than can be sent in the longest time that it is; a loop sends about 2000 a second.
"""

_START_AT_ONCE = 4
"""Requests begun in one turn of the event loop.

If a whole burst began in one turn, each step of each request would wait for that step of all the
others: connections would look slow and requests would go out late and out of order.
"""


@final
class Batch:
    """One run. Made and used in one event loop.

    max_retries: attempts after the first, for each request. most_at_once: requests that may be
    begun and not ended, for reasons other than limits (open files). say: tells people something.
    """

    def __init__(
        self,
        limiter: Limiter,
        attempts: Attempts,
        results: Results,
        tally: Tally,
        say: Callable[[str], None],
        *,
        max_retries: int,
        most_at_once: int,
    ) -> None:
        self._limiter = limiter
        self._attempts = attempts
        self._results = results
        self._tally = tally
        self._say = say
        self._max_retries = max_retries
        self._most_at_once = most_at_once
        self._budget = RetryBudget()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent: set[asyncio.Task[None]] = set()  # of the tasks: nothing went out yet
        self._waiting: set[asyncio.Task[None]] = set()  # of the tasks: nothing is in flight
        self._change = asyncio.Event()  # there is more room, fewer tasks, or an interrupt
        self._fault: BaseException | None = None
        self._told_of_files = False
        self._told_of_budget = False
        self._closing = False  # nothing new starts
        self._abandoned = False  # nor does anything go on
        self.interrupted = False

    async def run(self, lines: Iterable[Line | Broken]) -> None:
        """Sends the lines; returns when each has its result or the run was interrupted.

        Raises what `lines` raises when nothing is in flight any more, and OSError where a result
        cannot be written, with everything cancelled.
        """
        self._tally.begin()
        try:
            await self._start_all(lines)
        except Exception as error:
            self._fault = error
            self._start_nothing_more()
        while self._tasks:
            self._change.clear()
            await self._change.wait()
        if self._fault is not None:
            raise self._fault

    def interrupt(self) -> None:
        """Starts nothing new and lets what is in flight end; the second time, cancels that too."""
        if self.interrupted:
            self._abandon()
            return
        self.interrupted = True
        self._start_nothing_more()
        flying = len(self._tasks) - len(self._waiting)
        self._say(
            f"interrupted: {flying} in flight are finished and written; "
            "interrupt again to cancel them"
        )

    def _start_nothing_more(self) -> None:
        self._closing = True
        for task in tuple(self._waiting):
            task.cancel()
        self._change.set()

    def _abandon(self) -> None:
        self._abandoned = self._closing = True
        for task in tuple(self._tasks):
            task.cancel()
        self._change.set()

    async def _start_all(self, lines: Iterable[Line | Broken]) -> None:
        for number, line in enumerate(lines):
            if isinstance(line, Broken):
                self._tally.broken += 1
                self._say(f"broken {line}")
            else:
                await self._room()
            if number % _START_AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._closing:
                return
            if isinstance(line, Line):
                self._start(line)

    async def _room(self) -> None:
        """Returns when another request may begin, or nothing new may."""
        while not self._closing:
            full = len(self._tasks) >= self._most_at_once
            if full and not self._told_of_files:
                self._told_of_files = True
                self._say(
                    f"no more than {self._most_at_once} requests at once: the system allows this "
                    "process no more open files (see `ulimit -n`)"
                )
            if not full and len(self._unsent) < READ_AHEAD:
                return
            self._change.clear()
            await self._change.wait()

    def _start(self, line: Line) -> None:
        self._budget.note_request()
        task = asyncio.get_running_loop().create_task(self._carry_out(line))
        for those in (self._tasks, self._unsent, self._waiting):
            those.add(task)
        task.add_done_callback(self._ended)

    async def _carry_out(self, line: Line) -> None:
        """One request, from its turn until its result is written."""
        task = asyncio.current_task()
        assert task is not None

        def sent() -> None:
            self._unsent.discard(task)
            self._change.set()

        resources = self._limiter.resources
        amounts = cost(resources, line)
        outcome: Outcome | None = None
        for retry in count():
            try:
                if outcome is not None:
                    await asyncio.sleep(backoff(retry, outcome.told))
                # A retry has waited for its turn before.
                reservation = await self._limiter.acquire(*amounts, priority=min(retry, 1))
            except CapacityExceededError as error:
                outcome = Outcome(error=("capacity_exceeded", str(error)))
                break
            except asyncio.CancelledError:
                if outcome is None or self._abandoned:
                    raise
                break  # interrupted before it could try again: its last answer stands
            self._waiting.discard(task)
            if retry == 0:
                self._tally.admit(resources, amounts)
            else:
                self._tally.retries += 1
            self._tally.in_flight += 1
            try:
                outcome = await self._attempts.make(line, reservation, sent)
            except Exception as error:  # nobody foresaw it; the other requests go on
                outcome = Outcome(error=("internal_error", f"{type(error).__name__}: {error}"))
            finally:
                self._tally.in_flight -= 1
            self._tally.attempt(outcome)
            if not outcome.retried or self._closing:
                break
            if retry == self._max_retries:
                break
            if not self._budget.take():
                self._tell_of_budget()
                break
            self._waiting.add(task)
        assert outcome is not None
        self._results.write(line.custom_id, outcome)
        self._tally.end(outcome)

    def _tell_of_budget(self) -> None:
        if not self._told_of_budget:
            self._told_of_budget = True
            self._say(
                "so many calls have failed that the budget for retries is used up for now: "
                "what fails meanwhile is not tried again"
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        for those in (self._tasks, self._unsent, self._waiting):
            those.discard(task)
        self._change.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._fault is None:
            self._fault = error
            self._abandon()
