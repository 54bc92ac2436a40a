"""WithReservation: request functions that mark their own attempts."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headway import ManualClock, RequestMetadata, Reservation
from headway._core import WithReservation
from headway.scheduler import RateLimiterConfig, Scheduler


def metadata() -> RequestMetadata:
    # Not one for all: other tests see that none is left over.
    return RequestMetadata(request_id="r", model_id="m", resource_type="text", estimated_tokens=10)


def scheduler(**options: Any) -> Scheduler:
    config = RateLimiterConfig(
        rate_limit_buffer_ratio=1.0, max_backoff=1e-6, metrics_enabled=False, **options
    )
    limits = ["1 concurrency", "100 tokens/s window"]
    return Scheduler(None, config, limits=limits, clock=ManualClock())


def used(of: Scheduler) -> list[int]:
    explained = of.explain(metadata())
    assert explained is not None
    return [limit.used for limit in explained.limits]


def test_each_attempt_is_called_with_its_own_reservation_which_ends_with_it() -> None:
    given: list[Reservation] = []

    async def call(reservation: Reservation) -> str:
        assert reservation.state == "held"
        if given:
            assert given[0].state == "ended"
        given.append(reservation)
        reservation.sent(network_delay=0.0)
        await asyncio.sleep(0)
        if len(given) == 1:
            raise ConnectionResetError
        reservation.answered()
        return "done"

    async def run() -> None:
        async with scheduler() as s:
            assert await s.submit_request(metadata(), WithReservation(call)) == "done"
            assert [each.state for each in given] == ["ended", "ended"]
            # What a late attempt says of itself changes nothing.
            assert not given[0].answered()
            assert used(s) == [0, 20]

    asyncio.run(run())


def test_a_call_that_waited_for_its_turn_is_given_its_reservation_too() -> None:
    async def call(reservation: Reservation) -> str:
        reservation.sent()
        await asyncio.sleep(0)
        return reservation.state

    async def run() -> None:
        async with scheduler() as s:
            calls = [s.submit(metadata(), WithReservation(call)) for _ in range(5)]
            assert await asyncio.gather(*calls) == ["sent"] * 5
            assert used(s)[0] == 0

    asyncio.run(run())


def test_what_was_not_sent_can_be_given_back() -> None:
    async def call(reservation: Reservation) -> bool:
        return reservation.cancel()

    async def run() -> None:
        async with scheduler() as s:
            assert await s.submit_request(metadata(), WithReservation(call)) is True
            assert used(s) == [0, 0]

    asyncio.run(run())


def test_the_time_of_an_attempt_that_marks_itself_is_bounded() -> None:
    kept: list[Reservation] = []

    async def call(reservation: Reservation) -> None:
        kept.append(reservation)
        await asyncio.Event().wait()

    async def run() -> None:
        async with scheduler(request_timeout=0.01, max_retries=1) as s:
            with pytest.raises(TimeoutError, match="timed out"):
                await s.submit_request(metadata(), WithReservation(call))
            assert [each.state for each in kept] == ["ended", "ended"]
            assert used(s)[0] == 0

    asyncio.run(run())


def test_a_stream_keeps_the_reservation_until_it_ends() -> None:
    given: list[Reservation] = []

    async def words() -> AsyncIterator[str]:
        yield "a"

    async def call(reservation: Reservation) -> AsyncIterator[str]:
        given.append(reservation)
        return words()

    async def run() -> None:
        async with scheduler() as s:
            stream = await s.submit_request(metadata(), WithReservation(call))
            assert given[0].state == "answered"
            assert used(s)[0] == 1
            assert [word async for word in stream] == ["a"]
            assert given[0].state == "ended"
            assert used(s)[0] == 0

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_function_that_raises_at_once_leaks_nothing(error: BaseException) -> None:
    def call(_: Reservation) -> Any:
        raise error

    async def run() -> None:
        async with scheduler() as s:
            with pytest.raises(type(error)):
                await s.submit_request(metadata(), WithReservation(call))
            assert used(s)[0] == 0

    asyncio.run(run())


def test_a_call_that_is_dropped_in_its_middle_ends_its_reservation() -> None:
    kept: list[Reservation] = []

    async def call(reservation: Reservation) -> None:
        kept.append(reservation)
        await asyncio.sleep(3600)

    async def run() -> None:
        async with scheduler() as s:
            pending = s.submit_request(metadata(), WithReservation(call))
            pending.send(None)
            pending.close()
            assert kept[0].state == "ended"

    asyncio.run(run())


def test_threads_mark_their_attempts_too() -> None:
    def call(reservation: Reservation) -> str:
        reservation.sent()
        return reservation.state

    with scheduler() as s:
        assert s.submit_sync(metadata(), WithReservation(call)) == "sent"
        assert used(s)[0] == 0


def test_it_is_for_callables_and_can_be_collected() -> None:
    with pytest.raises(TypeError, match="function 7: must be callable with a Reservation"):
        WithReservation(7)  # type: ignore[arg-type]

    class Loop:
        def __init__(self) -> None:
            self.marked = WithReservation(self.call)

        def call(self, _: Reservation) -> None: ...

    loop = weakref.ref(Loop())
    gc.collect()
    assert loop() is None
