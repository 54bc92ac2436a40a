"""A batch: order, read-ahead, retries, interrupts, and what stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from headway import Limiter, Reservation
from headway.batch import batch as batch_module
from headway.batch.attempt import Attempts
from headway.batch.batch import READ_AHEAD, Batch
from headway.batch.lines import Broken, Line
from headway.batch.results import Outcome, Results
from headway.batch.summary import Tally

OK = Outcome(status=200, latency=0.0)
BUSY = Outcome(status=503, retried=True)
PLENTY = "1_000_000 requests/s"
Make = Callable[[Line], Awaitable[Outcome]]


class Call(Attempts):
    """Attempts that `make_one` makes, without any network."""

    def __init__(self, make_one: Make) -> None:
        self.make_one = make_one
        self.lines: list[int] = []

    async def make(
        self, line: Line, reservation: Reservation, on_sent: Callable[[], None]
    ) -> Outcome:
        self.lines.append(line.number)
        reservation.sent(network_delay=0.0)
        on_sent()
        try:
            return await self.make_one(line)
        finally:
            reservation.settle()


class Written(Results):
    """Results that are only remembered."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def write(self, custom_id: str, outcome: Outcome) -> None:
        assert custom_id not in self.outcomes
        self.outcomes[custom_id] = outcome


class Run:
    """A batch with everything that it is told and tells."""

    def __init__(
        self,
        make_one: Make,
        *limits: str,
        max_retries: int = 3,
        most_at_once: int = 1_000_000,
        results: Results | None = None,
    ) -> None:
        self.said: list[str] = []
        self.tally = Tally(total=0)
        self.call = Call(make_one)
        self.results = Written() if results is None else results
        self.batch = Batch(
            Limiter(limits or [PLENTY]),
            self.call,
            self.results,
            self.tally,
            self.said.append,
            max_retries=max_retries,
            most_at_once=most_at_once,
        )

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return cast(Written, self.results).outcomes


def lines(number: int, **body: Any) -> list[Line | Broken]:
    return [Line(i, str(i), "/v1/chat/completions", body) for i in range(1, number + 1)]


async def answer(_: Line) -> Outcome:
    return OK


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "backoff", lambda retry, told: told or 0.0)


def test_every_line_is_sent_once_and_in_order() -> None:
    async def main() -> None:
        run = Run(answer)
        await run.batch.run(lines(1000))
        assert run.call.lines == list(range(1, 1001))
        assert set(run.outcomes) == {str(i) for i in range(1, 1001)}
        assert (run.tally.succeeded, run.tally.failed, run.tally.in_flight) == (1000, 0, 0)

    asyncio.run(main())


def test_only_so_many_lines_are_read_ahead_of_the_limits() -> None:
    async def main() -> None:
        run = Run(answer, "1 requests/day")
        taken = 0
        full = asyncio.Event()

        def source() -> Iterator[Line | Broken]:
            nonlocal taken
            for line in lines(10 * READ_AHEAD):
                taken += 1
                if taken == READ_AHEAD + 2:  # one went out, and one is in the hand
                    full.set()
                yield line

        running = asyncio.ensure_future(run.batch.run(source()))
        await full.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert taken == READ_AHEAD + 2
        run.batch.interrupt()
        await running
        assert list(run.outcomes) == ["1"]

    asyncio.run(main())


def test_as_many_are_in_flight_as_the_limits_let_through() -> None:
    async def main() -> None:
        everybody = asyncio.Event()

        async def wait(_: Line) -> Outcome:
            if run.tally.in_flight == 5 * READ_AHEAD:
                everybody.set()
            await everybody.wait()
            return OK

        run = Run(wait)
        await run.batch.run(lines(5 * READ_AHEAD))
        assert run.tally.succeeded == 5 * READ_AHEAD

    asyncio.run(main())


def test_open_files_bound_what_is_in_flight_and_that_is_said_once() -> None:
    async def main() -> None:
        most = 0

        async def wait(_: Line) -> Outcome:
            nonlocal most
            most = max(most, run.tally.in_flight)
            await asyncio.sleep(0.001)
            return OK

        run = Run(wait, most_at_once=7)
        await run.batch.run(lines(100))
        assert most == 7
        assert run.tally.succeeded == 100
        (said,) = run.said
        assert "no more than 7 requests at once" in said

    asyncio.run(main())


def test_a_failure_that_may_pass_is_tried_again_and_counted() -> None:
    async def main() -> None:
        async def second_time(line: Line) -> Outcome:
            return OK if run.call.lines.count(line.number) == 2 else BUSY

        run = Run(second_time)
        await run.batch.run(lines(10))
        assert sorted(run.call.lines) == sorted([*range(1, 11)] * 2)
        assert (run.tally.succeeded, run.tally.failed, run.tally.retries) == (10, 0, 10)

    asyncio.run(main())


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_request_is_tried_again_only_so_often(max_retries: int) -> None:
    async def main() -> None:
        async def busy(_: Line) -> Outcome:
            return BUSY

        run = Run(busy, max_retries=max_retries)
        await run.batch.run(lines(1))
        assert run.call.lines == [1] * (1 + max_retries)
        assert run.outcomes == {"1": BUSY}
        assert (run.tally.failed, run.tally.retries) == (1, max_retries)

    asyncio.run(main())


def test_all_requests_together_are_tried_again_only_so_often() -> None:
    async def main() -> None:
        async def busy(_: Line) -> Outcome:
            return BUSY

        run = Run(busy)
        await run.batch.run(lines(100))
        assert run.tally.retries == 10 + 20
        assert run.tally.failed == 100

    asyncio.run(main())


def test_a_retry_waits_as_long_as_the_server_has_asked() -> None:
    async def main() -> None:
        at: list[float] = []

        async def later(_: Line) -> Outcome:
            at.append(asyncio.get_running_loop().time())
            return OK if len(at) == 2 else Outcome(status=429, retried=True, told=0.2)

        await Run(later).batch.run(lines(1))
        assert at[1] - at[0] >= 0.2

    asyncio.run(main())


def test_what_can_never_fit_fails_at_once_with_both_numbers_and_holds_up_nobody() -> None:
    async def main() -> None:
        run = Run(answer, "100 tokens/s bucket")
        big = Line(1, "big", "/v1/chat/completions", {"max_tokens": 480})
        await run.batch.run([big, Line(2, "small", "/v1/chat/completions", {})])
        error = run.outcomes["big"].error
        assert error is not None
        assert error[0] == "capacity_exceeded"
        assert "480" in error[1]
        assert "100" in error[1]
        assert run.outcomes["small"] is OK
        assert run.call.lines == [2]

    asyncio.run(main())


def test_broken_lines_are_told_and_leave_the_rest_running() -> None:
    async def main() -> None:
        run = Run(answer)
        await run.batch.run([Broken(1, "no"), *lines(1), Broken(3, "neither")])
        assert run.said == ["broken line 1: no", "broken line 3: neither"]
        assert (run.tally.broken, run.tally.succeeded, run.tally.failed) == (2, 1, 0)

    asyncio.run(main())


def test_an_attempt_that_raises_what_nobody_foresaw_fails_alone() -> None:
    async def main() -> None:
        async def raising(line: Line) -> Outcome:
            if line.number == 2:
                raise RuntimeError("surprise")
            return OK

        run = Run(raising)
        await run.batch.run(lines(3))
        assert run.outcomes["2"].error == ("internal_error", "RuntimeError: surprise")
        assert run.tally.succeeded == 2

    asyncio.run(main())


def test_an_interrupt_starts_nothing_new_and_lets_what_is_in_flight_end() -> None:
    async def main() -> None:
        released, three = asyncio.Event(), asyncio.Event()

        async def wait(_: Line) -> Outcome:
            if run.tally.in_flight == 3:
                three.set()
            await released.wait()
            return BUSY  # which would be tried again otherwise

        run = Run(wait, "3 requests/day bucket")
        running = asyncio.ensure_future(run.batch.run(lines(2000)))
        await three.wait()
        run.batch.interrupt()
        assert run.batch.interrupted
        assert run.said[0].startswith("interrupted: 3 in flight are finished and written")
        released.set()
        await running
        assert run.call.lines == [1, 2, 3]
        assert list(run.outcomes.values()) == [BUSY] * 3
        assert run.tally.retries == 0

    asyncio.run(main())


def test_an_interrupt_writes_the_last_answer_of_what_waits_to_be_tried_again() -> None:
    async def main() -> None:
        later = Outcome(status=429, retried=True, told=10_000.0)
        answered = asyncio.Event()

        async def busy(_: Line) -> Outcome:
            asyncio.get_running_loop().call_soon(answered.set)
            return later

        run = Run(busy)
        running = asyncio.ensure_future(run.batch.run(lines(1)))
        await answered.wait()
        run.batch.interrupt()
        await running
        assert run.outcomes == {"1": later}

    asyncio.run(main())


def test_a_second_interrupt_cancels_what_is_in_flight() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def never(_: Line) -> Outcome:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        run = Run(never)
        running = asyncio.ensure_future(run.batch.run(lines(1)))
        await begun.wait()
        run.batch.interrupt()
        run.batch.interrupt()
        await running
        assert run.outcomes == {}
        assert run.tally.in_flight == 0

    asyncio.run(main())


def test_a_result_that_cannot_be_written_stops_the_run() -> None:
    class Full(Written):
        def write(self, custom_id: str, outcome: Outcome) -> None:
            raise OSError(28, "No space left on device")

    async def main() -> None:
        run = Run(answer, "1 requests/hour bucket", results=Full())
        with pytest.raises(OSError, match="No space left"):
            await run.batch.run(lines(100))
        assert run.call.lines == [1]

    asyncio.run(main())


def test_an_input_that_cannot_be_read_on_stops_the_run_when_what_is_in_flight_has_ended() -> None:
    async def main() -> None:
        def source() -> Iterator[Line | Broken]:
            yield from lines(8)
            raise OSError(5, "Input/output error")

        async def slow(_: Line) -> Outcome:
            await asyncio.sleep(0.05)
            return OK

        run = Run(slow)
        with pytest.raises(OSError, match="Input/output error"):
            await run.batch.run(source())
        assert run.tally.succeeded >= 1
        assert run.tally.succeeded == len(run.call.lines)

    asyncio.run(main())
