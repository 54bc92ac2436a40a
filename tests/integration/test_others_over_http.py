"""Somebody whom we do not govern takes a third of the same key, beside a busy SDK of ours."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from watching import REFUSED, Seen, Watched, ask, kept_busy, openai_at, scheduler_of

from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

AMOUNT = 60
PERIOD = 6.0
WINDOWS = 8
LIMIT = f"{AMOUNT} requests/{PERIOD:.0f}s window"


async def beside_each_other(simulator: SimulatorProcess) -> tuple[Seen, Watched]:
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
                due += 3 * PERIOD / AMOUNT
                await asyncio.sleep(max(0.0, due - loop.time()))

        asking: list[asyncio.Future[bool]] = []
        going = asyncio.ensure_future(others())
        async with kept_busy(client, 2 * AMOUNT):
            await asyncio.wait([going], timeout=WINDOWS * PERIOD)
        end = time.monotonic()
        assert going.cancel(), "the others have gone on until now"
        await asyncio.gather(*asking)
    stats = await asyncio.to_thread(simulator.stats, decisions=True)
    return Seen([LIMIT], stats, ours.exchanges, end, PERIOD / 10), theirs


@pytest.mark.long
def test_what_others_take_is_left_to_them_and_the_rest_is_used(
    record_property: pytest.RecordProperty,
) -> None:
    with SimulatorProcess("--limits", LIMIT, "--latency", "0.05", "--decisions") as simulator:
        seen, theirs = asyncio.run(beside_each_other(simulator))
    begin = seen.changes[0] + PERIOD
    use = seen.use(0, begin, seen.end)
    refused = Counter(int((at - seen.changes[0]) / PERIOD) for at, _ in seen.refused)
    got = sum(each.status != REFUSED for each in theirs.exchanges)
    told = f"use {use:.3f}; refused of ours, by window: {dict(refused)}; others got {got}"
    told += f" of {len(theirs.exchanges)}"
    print(told)
    record_property("others", told)
    assert use >= 0.95, told
    # That there are others, nobody can know as the first burst goes out.
    assert refused.pop(0, 0) <= AMOUNT / 10, told
    # One in each, though where one is cut from the next is anybody's choice.
    assert sum(refused.values()) < WINDOWS, told
    assert max(refused.values(), default=0) <= 2, told
    # What they have asked for was a third of it, evenly.
    assert len(theirs.exchanges) >= 0.95 * WINDOWS * AMOUNT / 3, told
