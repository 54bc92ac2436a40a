"""When a window's slots come free again: never before whoever holds them can have been counted.

A server counts a request at the earliest when its function has begun, and at the latest when it is
answered. That calls begin in the order of their admission says something of that; but neither does
it hold among loops, nor is everything that ends an answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
from users import asks, make

from headway import ManualClock

LIMIT = 20


def most_in_a_window(starts: list[float], period: float) -> int:
    return max(sum(1 for other in starts if at - period < other <= at) for at in starts)


@pytest.mark.slow
def test_a_loop_that_is_blocked_as_it_is_admitted_counts_from_when_it_goes_on() -> None:
    scheduler = make(limits=[f"{LIMIT} requests/s window"])
    scheduler.start_sync()
    starts: list[float] = []
    queued = threading.Event()

    async def call() -> None:
        starts.append(time.monotonic())

    def submit(count: int) -> list[asyncio.Task[None]]:
        return [asyncio.ensure_future(scheduler.submit_request(asks(), call)) for _ in range(count)]

    async def blocked() -> None:
        await asyncio.gather(*submit(LIMIT))
        waiting = submit(LIMIT // 2)
        await asyncio.sleep(0)
        queued.set()
        await asyncio.sleep(0.9)
        time.sleep(0.45)  # noqa: ASYNC251 - a loop that somebody blocks
        await asyncio.gather(*waiting)

    async def free() -> None:
        await asyncio.gather(*submit(LIMIT // 2))
        await asyncio.gather(*submit(LIMIT))

    async def alone() -> None:
        # How long a call takes is known from then on.
        await scheduler.submit_request(asks(), call)
        await asyncio.sleep(1.1)

    asyncio.run(alone())
    first = threading.Thread(target=lambda: asyncio.run(blocked()))
    first.start()
    queued.wait(10)
    asyncio.run(free())
    first.join(20)
    scheduler.stop_sync()
    assert len(starts) == 1 + 3 * LIMIT
    assert most_in_a_window(starts, 1.0) <= LIMIT


@pytest.mark.parametrize(
    "how",
    [
        "answered",
        "cancelled",
        "refused to connect",
        "wrong",
    ],
)
def test_what_ends_without_an_answer_says_nothing_of_those_before_it(how: str) -> None:
    """A burst in which all take four seconds, of which the server may count them at any time."""
    count = 200

    async def run() -> list[float]:
        clock = ManualClock()
        sent: list[float] = []
        answer = asyncio.Event()
        early = asyncio.Event()

        async def call() -> None:
            sent.append(clock.now())
            await answer.wait()

        async def last() -> None:
            sent.append(clock.now())
            if how == "answered":
                await answer.wait()
                return
            await early.wait()
            if how == "refused to connect":
                raise ConnectionRefusedError
            if how == "wrong":
                raise KeyError
            await asyncio.Event().wait()

        async def turn() -> None:
            for _ in range(5):
                await asyncio.sleep(0.001)

        scheduler = make(
            limits=[f"{count} requests/10s window"],
            clock=clock,
            max_retries=0,
            max_concurrent_executions=3 * count,
        )
        await scheduler.start()

        def submit(function: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
            return asyncio.ensure_future(scheduler.submit_request(asks(), function))

        for _ in range(2):  # two alone, a second each: how long a call takes is known then
            task = submit(call)
            await turn()
            clock.advance(1)
            answer.set()
            await task
            answer.clear()
            clock.advance(30)
        began = clock.now()
        sent.clear()
        tasks = [submit(call) for _ in range(count - 1)]
        tasks.append(submit(last))
        await turn()
        assert len(sent) == count
        clock.advance(0.01)
        early.set()
        if how == "cancelled":
            tasks[-1].cancel()
        await turn()
        clock.advance(4)
        answer.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks = [submit(call) for _ in range(count)]
        for _ in range(60):
            clock.advance(0.25)
            await turn()
        await asyncio.gather(*tasks)
        await scheduler.stop()
        return sorted(at - began for at in sent[count:])

    later = asyncio.run(run())
    assert len(later) == count
    # A call takes a second at least, so none was counted before the third.
    assert later[1] > 12.9
