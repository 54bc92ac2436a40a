"""Somebody whom we do not govern takes a third of the same key, beside a busy SDK of ours."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from watching import REFUSED, Seen, Watched, ask, kept_busy, openai_at, scheduler_of

from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

RATE = 10


async def beside_each_other(
    simulator: SimulatorProcess, limit: str, period: float, windows: int
) -> tuple[Seen, Watched]:
    ours, theirs = Watched(), Watched("theirs")
    async with (
        scheduler_of() as scheduler,
        openai_at(simulator, AsyncTransport(scheduler, ours, "openai")) as client,
        openai_at(simulator, theirs, max_retries=0) as plain,
    ):

        async def others() -> None:
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                asking.append(asyncio.ensure_future(ask(plain)))
                due += 3 / RATE
                await asyncio.sleep(max(0.0, due - loop.time()))

        asking: list[asyncio.Future[bool]] = []
        going = asyncio.ensure_future(others())
        async with kept_busy(client, round(2 * RATE * period)):
            await asyncio.wait([going], timeout=windows * period)
        end = time.monotonic()
        assert going.cancel(), "the others have gone on until now"
        await asyncio.gather(*asking)
    stats = await asyncio.to_thread(simulator.stats, decisions=True)
    return Seen([limit], stats, ours.exchanges, end, period / 10), theirs


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "latency", "period", "windows"),
    [
        pytest.param("window", 0.05, 6.0, (1, 8), id="window"),
        # Where answers take seconds, it takes three to six windows until they are known to begin
        # at common instants.
        pytest.param("bucket", 2.0, 20.0, (1, 6), id="bucket-far", marks=pytest.mark.soak),
        pytest.param("fixed", 2.0, 20.0, (7, 11), id="fixed-far", marks=pytest.mark.soak),
        pytest.param("window", 2.0, 20.0, (4, 10), id="window-far", marks=pytest.mark.soak),
    ],
)
def test_what_others_take_is_left_to_them_and_the_rest_is_used(
    kind: str,
    latency: float,
    period: float,
    windows: tuple[int, int],
    record_property: pytest.RecordProperty,
) -> None:
    known_after, all_of_them = windows
    amount = round(RATE * period)
    limit = f"{amount} requests/{period:.0f}s {kind}"
    with SimulatorProcess("--limits", limit, "--latency", str(latency), "--decisions") as simulator:
        seen, theirs = asyncio.run(beside_each_other(simulator, limit, period, all_of_them))
    begin = seen.changes[0] + known_after * period
    use = seen.use(0, begin, seen.end)
    refused = Counter(int((at - seen.changes[0]) / period) for at, _ in seen.refused)
    got = sum(each.status != REFUSED for each in theirs.exchanges)
    told = f"use {use:.3f}; refused of ours, by window: {dict(refused)}; others got {got}"
    told += f" of {len(theirs.exchanges)}"
    print(told)
    record_property("others", told)
    assert use >= 0.95, told
    # That there are others, nobody can know as the first burst goes out.
    at_first = sum(refused.pop(window, 0) for window in range(known_after))
    assert at_first <= known_after * amount / 10, told
    # One in each, though where one is cut from the next is anybody's choice.
    assert sum(refused.values()) < all_of_them, told
    assert max(refused.values(), default=0) <= 2, told
    # What they have asked for was a third of it, evenly.
    assert len(theirs.exchanges) >= 0.95 * all_of_them * amount / 3, told
    # A bucket has room for them all the time, and there they get it.
    assert kind != "bucket" or got >= 0.95 * len(theirs.exchanges), told
