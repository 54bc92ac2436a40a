"""A batch: order, read-ahead, retries, interrupts, accounts, and what stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pytest

from headway import Limit, Reservation
from headway.batch.attempt import Attempts
from headway.batch.batch import Batch
from headway.batch.keys import Keys
from headway.batch.lanes import READ_AHEAD, Lanes
from headway.batch.lines import Broken, Line
from headway.batch.plan import Plan
from headway.batch.pointer import Pointer
from headway.batch.results import Outcome, Results
from headway.batch.summary import Tally
from headway.scheduler import SchedulerMode
from headway.scheduler.verdicts import Verdicts

OK = Outcome(status=200, latency=0.0)
BUSY = Outcome(status=503, may_pass=True)
PLENTY = "1_000_000 requests/s"
Make = Callable[[Line], Awaitable[Outcome]]


class Call(Attempts):
    """Attempts that `make_one` makes, without any network."""

    def __init__(self, make_one: Make) -> None:
        self.make_one = make_one
        self.lines: list[int] = []

    async def make(
        self,
        line: Line,
        reservation: Reservation,
        on_sent: Callable[[], None],
        hear: Callable[[Mapping[str, str]], None] | None = None,
    ) -> Outcome:
        self.lines.append(line.number)
        reservation.sent(network_delay=0.0)
        on_sent()
        return await self.make_one(line)


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
        timeout: float = 60.0,
        results: Results | None = None,
        **plan: Any,
    ) -> None:
        self.said: list[str] = []
        texts = limits or (() if "learnt" in plan else (PLENTY,))
        self.plan = Plan(tuple(Limit.parse(text) for text in texts), **plan)
        self.tally = Tally(total=0, plan=self.plan)
        self.call = Call(make_one)
        self.results = Written() if results is None else results
        self.scheduler = self.plan.scheduler(
            most_at_once, request_timeout=timeout, max_retries=max_retries
        )
        self.batch = Batch(
            self.scheduler,
            self.call,
            self.results,
            self.tally,
            self.said.append,
            plan=self.plan,
            most_at_once=most_at_once,
        )

    async def __call__(self, lines: Iterable[Line | Broken]) -> None:
        async with self.scheduler:
            await self.batch.run(Lanes(lines))

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return cast(Written, self.results).outcomes


def lines(number: int, **body: Any) -> list[Line | Broken]:
    return [Line(i, str(i), "/v1/chat/completions", body) for i in range(1, number + 1)]


async def answer(_: Line) -> Outcome:
    return OK


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Verdicts, "pause", lambda *_: 0.0)


def test_every_line_is_sent_once_and_in_order() -> None:
    async def main() -> None:
        run = Run(answer)
        await run(lines(1000))
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
                if taken == READ_AHEAD + 1:  # one went out
                    full.set()
                yield line

        running = asyncio.ensure_future(run(source()))
        await full.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert taken == READ_AHEAD + 1
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
        await run(lines(5 * READ_AHEAD))
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
        await run(lines(100))
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
        await run(lines(10))
        assert sorted(run.call.lines) == sorted([*range(1, 11)] * 2)
        assert (run.tally.succeeded, run.tally.failed, run.tally.retries) == (10, 0, 10)

    asyncio.run(main())


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_request_is_tried_again_only_so_often(max_retries: int) -> None:
    async def main() -> None:
        async def busy(_: Line) -> Outcome:
            return BUSY

        run = Run(busy, max_retries=max_retries)
        await run(lines(1))
        assert run.call.lines == [1] * (1 + max_retries)
        assert run.outcomes == {"1": BUSY}
        assert (run.tally.failed, run.tally.retries) == (1, max_retries)

    asyncio.run(main())


def test_all_requests_together_are_tried_again_only_so_often() -> None:
    async def main() -> None:
        async def busy(_: Line) -> Outcome:
            return BUSY

        run = Run(busy)
        await run(lines(100))
        assert run.tally.retries == 10 + 20
        assert run.tally.failed == 100

    asyncio.run(main())


def test_a_retry_waits_as_long_as_the_server_has_asked() -> None:
    async def main() -> None:
        at: list[float] = []

        async def later(_: Line) -> Outcome:
            at.append(asyncio.get_running_loop().time())
            return (
                OK
                if len(at) == 2
                else Outcome(status=429, may_pass=True, headers={"retry-after-ms": "200"})
            )

        await Run(later)(lines(1))
        assert at[1] - at[0] >= 0.2

    asyncio.run(main())


def test_what_can_never_fit_fails_at_once_with_both_numbers_and_holds_up_nobody() -> None:
    async def main() -> None:
        run = Run(answer, "100 tokens/s bucket")
        big = Line(1, "big", "/v1/chat/completions", {"max_tokens": 480})
        await run([big, Line(2, "small", "/v1/chat/completions", {})])
        error = run.outcomes["big"].error
        assert error is not None
        assert error[0] == "capacity_exceeded"
        assert "480" in error[1]
        assert "100" in error[1]
        assert run.outcomes["small"] is OK
        assert run.call.lines == [2]

    asyncio.run(main())


def test_an_estimate_makes_nothing_impossible_where_limits_are_found_out() -> None:
    async def main() -> None:
        run = Run(answer, learnt={"m": ["100 tokens/s bucket"]})
        await run([Line(1, "big", "/v1/chat/completions", {"model": "m", "max_tokens": 480})])
        assert run.outcomes == {"big": OK}

    asyncio.run(main())


def test_broken_lines_are_told_and_leave_the_rest_running() -> None:
    async def main() -> None:
        run = Run(answer)
        await run([Broken(1, "no"), *lines(1), Broken(3, "neither")])
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
        await run(lines(3))
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
        running = asyncio.ensure_future(run(lines(2000)))
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


@pytest.mark.parametrize("status", [503, 429])
def test_an_interrupt_writes_the_last_answer_of_what_waits_to_be_tried_again(status: int) -> None:
    """Unless it is that the limit's time has not come: then there is no result yet."""

    async def main() -> None:
        later = Outcome(status=status, may_pass=True, headers={"retry-after": "100"})
        answered = asyncio.Event()

        async def busy(_: Line) -> Outcome:
            asyncio.get_running_loop().call_soon(answered.set)
            return later

        run = Run(busy)
        running = asyncio.ensure_future(run(lines(1)))
        await answered.wait()
        run.batch.interrupt()
        await running
        assert run.outcomes == ({} if status == 429 else {"1": later})

    asyncio.run(main())


def test_a_second_interrupt_cancels_what_is_in_flight() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def never(_: Line) -> Outcome:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        run = Run(never)
        running = asyncio.ensure_future(run(lines(1)))
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
            await run(lines(100))
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
            await run(source())
        assert run.tally.succeeded >= 1
        assert run.tally.succeeded == len(run.call.lines)

    asyncio.run(main())


def test_an_attempt_that_takes_too_long_is_tried_again_and_says_so() -> None:
    async def main() -> None:
        async def never(_: Line) -> Outcome:
            await asyncio.Event().wait()
            raise AssertionError

        run = Run(never, "1 concurrency", timeout=0.02, max_retries=1)
        await run(lines(2))
        assert run.call.lines in ([1, 1, 2, 2], [1, 2, 1, 2])
        assert {outcome.error for outcome in run.outcomes.values()} == {
            ("timeout", "no answer within 0.02 s")
        }
        assert (run.tally.retries, run.tally.in_flight) == (2, 0)
        assert run.tally.reasons == {"timeout": 2}

    asyncio.run(main())


def test_after_an_interrupt_what_takes_too_long_is_written_and_not_tried_again() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def never(_: Line) -> Outcome:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        run = Run(never, timeout=0.05)
        running = asyncio.ensure_future(run(lines(1)))
        await begun.wait()
        run.batch.interrupt()
        await running
        assert run.call.lines == [1]
        assert run.outcomes["1"].error == ("timeout", "no answer within 0.05 s")

    asyncio.run(main())


def test_an_account_without_money_is_not_asked_again() -> None:
    async def main() -> None:
        spent = Outcome(status=429, body={"error": {"code": "insufficient_quota"}}, may_pass=True)

        async def answer(_: Line) -> Outcome:
            return spent

        run = Run(answer)
        await run(lines(1))
        assert (run.call.lines, run.outcomes, run.tally.retries) == ([1], {"1": spent}, 0)

    asyncio.run(main())


def test_many_failures_stop_nobody_whose_turn_has_not_come() -> None:
    async def main() -> None:
        async def mostly_busy(line: Line) -> Outcome:
            return BUSY if line.number <= 500 else OK

        run = Run(mostly_busy, max_retries=0)
        await run(lines(600))
        assert len(run.call.lines) == 600
        assert (run.tally.succeeded, run.tally.failed) == (100, 500)

    asyncio.run(main())


def test_a_wrong_line_fails_without_being_sent() -> None:
    async def main() -> None:
        run = Run(answer)
        wrong = Line(1, "1", "/v1/chat/completions", {}, wrong=("invalid_priority", "line 1: so"))
        await run([wrong, *lines(3)[1:]])
        assert run.call.lines == [2, 3]
        assert run.outcomes["1"].error == ("invalid_priority", "line 1: so")
        assert (run.tally.succeeded, run.tally.failed) == (2, 1)

    asyncio.run(main())


def test_what_is_more_urgent_goes_first_unless_the_mode_is_basic() -> None:
    async def main(mode: SchedulerMode) -> list[int]:
        run = Run(answer, "100 requests/s bucket burst 1", mode=mode)
        given = [Line(i, str(i), "/v1/chat/completions", {}, priority=i) for i in range(1, 6)]
        await run(given)
        return run.call.lines

    # The first finds nobody waiting.
    assert asyncio.run(main(SchedulerMode.INTELLIGENT)) == [1, 5, 4, 3, 2]
    assert asyncio.run(main(SchedulerMode.BASIC)) == [1, 2, 3, 4, 5]


def test_accounts_take_turns_by_weight() -> None:
    async def main() -> None:
        plan = {
            "mode": SchedulerMode.ACCOUNT,
            "keys": Keys(account=Pointer("/user")),
            "weights": {"c": 2.0},
        }
        run = Run(answer, "200 requests/s bucket burst 1", **plan)
        users = ["a"] * 20 + ["b"] * 5 + ["c"] * 10
        given = [
            Line(i, str(i), "/v1/chat/completions", {}, account=user)
            for i, user in enumerate(users)
        ]
        await run(given)
        order = [users[number] for number in run.call.lines]
        assert [order[:20].count(user) for user in "abc"] == [
            pytest.approx(5, abs=2),
            pytest.approx(5, abs=2),
            pytest.approx(10, abs=2),
        ]

    asyncio.run(main())


def test_each_model_with_limits_of_its_own_is_counted_by_those_alone() -> None:
    async def main() -> None:
        by_model = {"slow": (Limit.parse("1 requests/day bucket"),)}
        four = asyncio.Event()

        async def count(_: Line) -> Outcome:
            if len(run.call.lines) == 4:
                four.set()
            return OK

        run = Run(count, "1000 requests/s bucket burst 1", by_model=by_model)
        given: list[Line | Broken] = []
        for number, model in enumerate(["slow", "slow", "other", "x", "y"], start=1):
            given.append(Line(number, str(number), "/v1/chat/completions", {"model": model}))
        running = asyncio.ensure_future(run(given))
        await four.wait()
        assert sorted(run.call.lines) == [1, 3, 4, 5]
        run.batch.interrupt()
        await running

    asyncio.run(main())
