"""A strict window on a real server refuses nobody, wherever the server's clock hands stand.

Two windows' worth and a fifth, all of them waiting from the start, over cold connections, against a
server that counts them up to 5 ms after they arrive: through a transport that marks when a
request was sent and answered, and with a plain call in `async with limiter.acquire()`. A limiter
that stamps at admission loses its second burst to such a server, wholly or in part.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest

from headway import Limiter
from headway.simulate import SimulatorProcess
from headway.transports._connections import Connections
from headway.transports._httpx import send
from headway.transports._network import NetworkDelays

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}

Call = Callable[[Limiter, httpx.AsyncClient, str], Awaitable[int]]


def _transport() -> Call:
    delays = NetworkDelays()

    async def call(limiter: Limiter, client: httpx.AsyncClient, url: str) -> int:
        reservation = await limiter.acquire()
        request = client.build_request("POST", url, json=BODY)

        async def go(request: httpx.Request) -> httpx.Response:
            return await client.send(request, stream=True)

        response = await send(go, request, reservation, delays)
        await response.aread()
        await response.aclose()
        reservation.settle()
        return response.status_code

    return call


async def _opaque(limiter: Limiter, client: httpx.AsyncClient, url: str) -> int:
    async with limiter.acquire():
        return (await client.post(url, json=BODY)).status_code


async def _all(
    call: Call, url: str, limit: str, requests: int, stagger: float
) -> tuple[int, float]:
    """Every request; how many were not answered with 200, and the seconds it took."""
    # So that the bursts of the six, on two cores, do not fall together.
    await asyncio.sleep(stagger)
    limiter = Limiter(limit)
    began = time.monotonic()
    async with httpx.AsyncClient(transport=Connections(), timeout=120) as client:
        statuses = await asyncio.gather(*(call(limiter, client, url) for _ in range(requests)))
    return sum(status != 200 for status in statuses), time.monotonic() - began


async def _longest_stall(seen: list[float]) -> None:
    """By how much this loop was late at most, into `seen`; until it is cancelled."""
    seen.append(0.0)
    while True:
        due = time.monotonic() + 0.01
        await asyncio.sleep(0.01)
        seen[0] = max(seen[0], time.monotonic() - due)


@pytest.mark.parametrize(
    ("amount", "period", "latencies"),
    [
        # A burst of 100 goes out in less than a hundredth of the period; one of 300 does not.
        pytest.param(100, 15, ("0.05", "2", "lognormal:1:0.5"), marks=pytest.mark.long),
        pytest.param(600, 60, ("0.05", "2", "lognormal:4:0.5"), marks=pytest.mark.soak),
    ],
)
def test_what_waits_for_two_windows_is_refused_by_no_strict_one(
    amount: int, period: int, latencies: tuple[str, ...]
) -> None:
    limit = f"{amount} requests/{period}s window"
    requests = 2 * amount + amount // 5
    cells = [(latency, kind) for latency in latencies for kind in ("transport", "opaque")]
    simulators = [
        SimulatorProcess("--limits", limit, "--latency", latency, "--arrival-jitter", "0.005")
        for latency, _ in cells
    ]

    stall: list[float] = []

    async def main() -> list[tuple[int, float]]:
        watching = asyncio.ensure_future(_longest_stall(stall))
        outcomes = await asyncio.gather(
            *(
                _all(
                    _transport() if kind == "transport" else _opaque,
                    simulator.url + "/v1/chat/completions",
                    limit,
                    requests,
                    2.0 * i,
                )
                for i, ((_, kind), simulator) in enumerate(zip(cells, simulators, strict=True))
            )
        )
        watching.cancel()
        return outcomes

    for simulator in simulators:
        simulator.start()
    try:
        outcomes = asyncio.run(asyncio.wait_for(main(), 300))
        for (latency, kind), simulator, (failed, took) in zip(
            cells, simulators, outcomes, strict=True
        ):
            stats = simulator.stats()
            name = f"{kind} at latency {latency}"
            # Of a call of which nobody knows when it left, a hundredth of the period is allowed for
            # (docs/counting.md). A machine that stood still for as long may have sent one later.
            late = kind == "opaque" and stall[0] >= period / 100
            assert stats["refused"] == failed <= (2 if late else 0), f"{name}; late by {stall[0]}"
            assert stats["admitted"] + failed == requests, name
            # One window's worth at once, one after a period, the rest after two.
            assert took < 3 * period, f"{name}: waited for another window"
    finally:
        for simulator in simulators:
            simulator.stop()
