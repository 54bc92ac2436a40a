"""Batch: sends every request of a file as soon as its limits let it through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import final

from headway import CapacityExceededError, RequestTimeoutError, Reservation
from headway._core import WithReservation
from headway.batch.attempt import Attempts
from headway.batch.failures import Failed, MayPass
from headway.batch.keys import Keys
from headway.batch.lanes import ENOUGH, MOST_HELD, Lanes
from headway.batch.lines import Broken, Line
from headway.batch.plan import Plan
from headway.batch.results import Outcome, Results
from headway.batch.summary import Tally
from headway.retry import told_wait
from headway.scheduler import Scheduler
from headway.scheduler.buckets import Bucket
from headway.scheduler.failures import REFUSED
from headway.transports._requests import CLAMPS, HOLD, clamp

_START_AT_ONCE = 4
"""Lines taken, or started, in one turn of the event loop.

If a whole burst began in one turn, each step of each request would wait for that step of all the
others: connections would look slow and requests would go out late and out of order.
"""
_MOST_TURNS = 5
"""A line that is refused for now, and no more, is submitted anew so often.

The budget for retries is for failures. A refusal that says when to come back costs the provider one
request a wait, since all others of its bucket wait as well; and what a file asks for is to be done.
"""


@final
class Batch:
    """One run, over a scheduler that runs. Made and used in one event loop.

    most_at_once: requests that may be under way, for reasons other than limits (open files). say:
    tells people something.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        attempts: Attempts,
        results: Results,
        tally: Tally,
        say: Callable[[str], None],
        *,
        plan: Plan,
        most_at_once: int,
    ) -> None:
        self._scheduler = scheduler
        self._attempts = attempts
        self._results = results
        self._tally = tally
        self._say = say
        self._plan = plan
        self._most_at_once = most_at_once
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # of the tasks: nothing is in flight
        self._change = asyncio.Event()  # there is more room, fewer tasks, or an interrupt
        self._fault: BaseException | None = None
        self._told_of_files = False
        self._steps = 0
        self._closing = False  # nothing new starts
        self._abandoned = False  # nor does anything go on
        self.interrupted = False

    async def run(self, lanes: Lanes) -> None:
        """Sends the lines; returns when each has its result or the run was interrupted.

        Raises what reading them raises when nothing is in flight any more, and OSError where a
        result cannot be written, with everything cancelled.
        """
        self._tally.begin()
        try:
            await self._start_all(lanes)
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

    async def _start_all(self, lanes: Lanes) -> None:
        await self._start_first(lanes)
        while not self._closing and not lanes.done:
            # What waits to be tried again has left its lane, and must not pile up either.
            if lanes.full or len(self._waiting) >= 2 * MOST_HELD:
                self._change.clear()
                await self._change.wait()
                continue
            line = await self._take(lanes)
            if line is not None and not self._closing:
                self._start(line, lanes)

    async def _start_first(self, lanes: Lanes) -> None:
        """Where lines have turns, reads some before any is started.

        As long as there is room each goes out as it is started, and so nobody waits whom an urgent
        one could pass.
        """
        if self._plan.keys == Keys():
            return
        first: list[Line] = []
        for _ in range(ENOUGH):
            if self._closing or lanes.done or lanes.full:
                break
            line = await self._take(lanes)
            if line is not None:
                first.append(line)
        for line in self._plan.in_turns(first):
            await self._breathe()
            if self._closing:
                return
            self._start(line, lanes)

    async def _take(self, lanes: Lanes) -> Line | None:
        """The next line; None where it was passed over, or is broken."""
        await self._breathe()
        line = lanes.take()
        if isinstance(line, Broken):
            self._tally.broken += 1
            self._say(f"broken {line}")
            return None
        return line

    async def _breathe(self) -> None:
        if self._steps % _START_AT_ONCE == 0:
            await asyncio.sleep(0)
        self._steps += 1

    def _start(self, line: Line, lanes: Lanes) -> None:
        if line.wrong is not None:
            self._end(line, Outcome(error=line.wrong))
            return
        turn = _Turn(line, lanes)
        task = asyncio.get_running_loop().create_task(self._carry_out(turn))
        self._tasks.add(task)
        self._waiting.add(task)

        def ended(_: object) -> None:
            turn.leave()
            self._ended(task)

        task.add_done_callback(ended)

    async def _carry_out(self, turn: _Turn) -> None:
        """One request, from its turn until its result is written."""
        task = asyncio.current_task()
        assert task is not None
        amounts = self._plan.amounts_of(turn.line)

        # Gives nothing: of what an attempt gives, a scheduler looks for failures to try again.
        async def attempt(reservation: Reservation) -> None:
            self._waiting.discard(task)
            turn.attempts += 1
            if turn.attempts == 1:
                self._tally.admit(turn.line, amounts)
            else:
                self._tally.retries += 1
            self._tally.in_flight += 1
            self._watch_files()
            try:
                outcome = await self._make(turn, reservation, amounts)
            except asyncio.CancelledError:
                # Its time was over, or it is abandoned, and then nobody asks for this.
                turn.outcome = self._timed_out()
                if self._closing:
                    asyncio.get_running_loop().call_soon(self._give_up, task)
                raise
            finally:
                self._tally.in_flight -= 1
                self._waiting.add(task)
            turn.outcome = outcome
            self._tally.attempt(outcome)
            if not outcome.succeeded:
                raise (MayPass if outcome.may_pass else Failed)(outcome, final=self._closing)

        try:
            for turns_left in reversed(range(_MOST_TURNS)):
                try:
                    await self._submit(turn.line, amounts, WithReservation(attempt))
                    break
                except (Failed, RequestTimeoutError):
                    if not turns_left or not self._comes_back(turn):
                        break  # the outcome says it
        except CapacityExceededError as error:
            turn.outcome = Outcome(error=("capacity_exceeded", str(error)))
        except asyncio.CancelledError:
            # Interrupted before it could try again: its last answer stands.
            if turn.outcome is None or self._abandoned:
                raise
        except Exception as error:  # nobody foresaw it; the other requests go on
            turn.outcome = _internal(error)
        assert turn.outcome is not None
        # Of what was only told to come later, whoever goes on with the rest wants no result.
        if not (self._closing and _is_told_to_wait(turn.outcome)):
            self._end(turn.line, turn.outcome)

    def _comes_back(self, turn: _Turn) -> bool:
        if self._closing or not self._scheduler.config.max_retries or turn.outcome is None:
            return False
        return _is_told_to_wait(turn.outcome)

    async def _submit(self, line: Line, amounts: dict[str, int], function: WithReservation) -> None:
        """Has it done in its turn. Where limits are found out, none of them makes it impossible."""
        for tries in range(CLAMPS):
            bucket = self._bucket_of(line)
            if bucket is not None:
                clamp(amounts, bucket.limits())
            metadata = self._plan.metadata_of(line, amounts)
            try:
                await self._scheduler.submit_request(metadata, function)
                return
            except CapacityExceededError:
                # A limit was learnt while it waited.
                if tries + 1 == CLAMPS or not self._plan.finds_out(line):
                    raise

    async def _make(
        self, turn: _Turn, reservation: Reservation, amounts: Mapping[str, int]
    ) -> Outcome:
        line = turn.line
        bucket = self._bucket_of(line)
        hear = None

        def sent() -> None:
            turn.leave()
            self._change.set()

        if bucket is not None:
            hear = partial(self._scheduler._observations.hear, bucket, reservation)
            reservation._let_others_wait(HOLD)
        try:
            outcome = await self._attempts.make(line, reservation, sent, hear)
        except Exception as error:
            return _internal(error)
        if bucket is not None and outcome.succeeded:
            used = self._plan.used_by(line, outcome.body, amounts)
            reservation.settle_used(used)
            self._tally.settle(line, amounts, used)
        return outcome

    def _bucket_of(self, line: Line) -> Bucket | None:
        """What counts it, once that is there, where its limits are found out."""
        if not self._plan.finds_out(line):
            return None
        return self._scheduler._buckets.get(self._plan.bucket_of(line))

    def _end(self, line: Line, outcome: Outcome) -> None:
        bucket = self._bucket_of(line)
        if bucket is not None:
            self._plan.found[bucket.name] = tuple(bucket.limits())
        self._results.write(line.custom_id, outcome)
        self._tally.end(line, outcome)

    def _timed_out(self) -> Outcome:
        seconds = self._scheduler.config.request_timeout
        return Outcome(error=("timeout", f"no answer within {seconds:g} s"), may_pass=True)

    def _give_up(self, task: asyncio.Task[None]) -> None:
        """Of an attempt that has ended after the interrupt: there is no other."""
        if task in self._waiting:
            task.cancel()

    def _watch_files(self) -> None:
        at_once = self._tally.in_flight
        if at_once >= self._most_at_once and at_once < len(self._tasks) and not self._told_of_files:
            self._told_of_files = True
            self._say(
                f"no more than {self._most_at_once} requests at once: the system allows this "
                "process no more open files (see `ulimit -n`)"
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._waiting.discard(task)
        self._change.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._fault is None:
            self._fault = error
            self._abandon()


@final
class _Turn:
    """A line on its way. outcome: of its last attempt."""

    __slots__ = ("_lanes", "attempts", "line", "outcome")

    def __init__(self, line: Line, lanes: Lanes) -> None:
        self.line = line
        self.attempts = 0
        self.outcome: Outcome | None = None
        self._lanes: Lanes | None = lanes

    def leave(self) -> None:
        """Lets another line be read; does nothing the second time."""
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.leave(self.line)


def _is_told_to_wait(outcome: Outcome) -> bool:
    return outcome.status == REFUSED and told_wait(outcome.headers) is not None


def _internal(error: Exception) -> Outcome:
    return Outcome(error=("internal_error", f"{type(error).__name__}: {error}"))
