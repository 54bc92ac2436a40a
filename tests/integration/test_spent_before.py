"""The real SDK begins while its limit is used up, by another process that has gone."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from watching import REFUSED, SAYS, Watched, ask, openai_at, scheduler_of

from headway import Limit
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

CALLS = 20
LIMITS = {
    "window": "20 requests/10s window",
    "fixed": "20 requests/10s fixed",
    "bucket": "60 requests/min bucket",
}


async def spend(simulator: SimulatorProcess, calls: int) -> None:
    body = {"model": "m", "messages": SAYS, "max_tokens": 8}
    async with httpx.AsyncClient(base_url=simulator.url) as client:
        answers = [client.post("/v1/chat/completions", json=body) for _ in range(calls)]
        assert {each.status_code for each in await asyncio.gather(*answers)} == {200}


async def governed(simulator: SimulatorProcess) -> tuple[Watched, list[bool]]:
    watched = Watched()
    async with (
        scheduler_of() as scheduler,
        openai_at(simulator, AsyncTransport(scheduler, watched, "openai"), max_retries=0) as client,
    ):
        return watched, await asyncio.gather(*(ask(client) for _ in range(CALLS)))


async def begin_late(shape: str) -> tuple[Watched, list[bool], float]:
    simulator = SimulatorProcess("--limits", LIMITS[shape], "--latency", "0.05")
    await asyncio.to_thread(simulator.start)
    try:
        await spend(simulator, Limit.parse(LIMITS[shape]).amount)
        began = time.monotonic()
        watched, answered = await asyncio.wait_for(governed(simulator), 90)
        return watched, answered, time.monotonic() - began
    finally:
        await asyncio.to_thread(simulator.stop)


@pytest.fixture(scope="module")
def ends() -> dict[str, tuple[Watched, list[bool], float]]:
    """All shapes side by side."""

    async def all_of_them() -> list[tuple[Watched, list[bool], float]]:
        return await asyncio.gather(*(begin_late(shape) for shape in LIMITS))

    return dict(zip(LIMITS, asyncio.run(all_of_them()), strict=True))


@pytest.mark.long
@pytest.mark.parametrize("shape", [*LIMITS])
def test_what_others_have_spent_is_used_as_it_comes_back(
    ends: dict[str, tuple[Watched, list[bool], float]], shape: str
) -> None:
    watched, answered, took = ends[shape]
    refused = [each for each in watched.exchanges if each.status == REFUSED]
    print(f"{shape}: {len(refused)} refused, {took:.1f} s")
    assert all(answered)
    # The first; and of a bucket, whose units come back one by one, one that goes to see at times.
    assert 1 <= len(refused) <= (4 if shape == "bucket" else 1)
    # A minute is what is taken for the period before anything else is known of it.
    assert took < 40
