"""A provider that admits so many requests at once, and never says so."""

from __future__ import annotations

import asyncio
import time

import pytest
from watching import REFUSED, Watched, kept_busy, openai_at, scheduler_of

from headway import TEXT, RequestMetadata
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

AT_ONCE = 8
LATENCY = 0.5
SECONDS = 14.0
SETTLED = 5.0


@pytest.mark.soak
def test_how_many_at_once_is_found_out_by_refusals_and_kept_to() -> None:
    async def main(simulator: SimulatorProcess) -> tuple[Watched, float, str]:
        watched = Watched()
        async with (
            scheduler_of() as scheduler,
            openai_at(simulator, AsyncTransport(scheduler, watched, "openai")) as client,
        ):
            began = time.monotonic()
            async with kept_busy(client, 40):
                await asyncio.sleep(SECONDS)
            told = str(scheduler.explain(RequestMetadata("r", "m", TEXT)))
        return watched, began, told

    options = ("--hidden", f"{AT_ONCE} concurrency", "--latency", str(LATENCY))
    with SimulatorProcess(*options) as simulator:
        watched, began, told = asyncio.run(main(simulator))
    late = [each for each in watched.exchanges if each.sent - began > SETTLED and each.status]
    good = sum(each.status == 200 for each in late)
    refused = sum(each.status == REFUSED for each in late)
    print(f"{good} answered and {refused} refused after {SETTLED} s; {told}")
    assert f"  {AT_ONCE} concurrency: " in told
    assert "not stated: found out by refusals" in told
    assert refused <= 1
    # Each has its way there and back, and the SDK's own work.
    assert good >= 0.75 * AT_ONCE * (SECONDS - SETTLED) / LATENCY
