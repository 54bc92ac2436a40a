"""The client of one cell: a process that keeps its limiter busy and sends what it admits.

    python -m quota.client

Prints "ready", reads a line of JSON (the cell, the server's address, the limits, the instant at
which to begin), and prints a line of JSON when it is over.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import httpx

from harness.statistics import quantile
from headway import Limiter, Reservation
from headway.transports import Connections, NetworkDelays, send
from peers.gates import Gate, open_gate
from quota.cells import Cell

Call = Callable[[httpx.Request, int], Awaitable[None]]
"""Sends a request of that many tokens when its turn has come."""


def through_transport(limiter: Limiter, client: httpx.AsyncClient) -> Call:
    """The limiter is told when the request is sent and when its answer's head is there."""
    delays = NetworkDelays()

    async def exchange(request: httpx.Request) -> httpx.Response:
        return await client.send(request, stream=True)

    async def call(request: httpx.Request, tokens: int) -> None:
        reservation = await limiter.acquire(1, tokens)
        assert isinstance(reservation, Reservation)
        response = await send(exchange, request, reservation, delays)
        await response.aread()
        await response.aclose()
        reservation.settle()

    return call


def opaque(limiter: Limiter, client: httpx.AsyncClient) -> Call:
    """The limiter sees the block begin and end."""

    async def call(request: httpx.Request, tokens: int) -> None:
        async with limiter.acquire(1, tokens):
            await client.send(request)

    return call


def through_gate(gate: Gate, client: httpx.AsyncClient, bound: str) -> Call:
    """A peer, which is asked for what the binding limit counts."""

    async def call(request: httpx.Request, tokens: int) -> None:
        await gate.acquire(1 if bound == "requests" else tokens)
        await client.send(request)

    return call


async def keep_busy(
    call: Call, cell: Cell, url: str, client: httpx.AsyncClient, end: float
) -> None:
    """Two windows' worth waits from the start, and what can be admitted is added."""

    async def one(number: int, tokens: int) -> None:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": tokens,
        }
        request = client.build_request(
            "POST", url, json=body, headers={"x-client-request-id": str(number)}
        )
        # What became of it, the server knows.
        with suppress(httpx.HTTPError):
            await call(request, tokens)

    work = enumerate(cell.sizes())
    a_tenth = int(cell.amount / (1 if cell.bound == "requests" else cell.mean_size) / 10)
    tasks = [asyncio.ensure_future(one(*each)) for each in islice(work, 20 * a_tenth)]
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, cell.period / 10))
        tasks += [asyncio.ensure_future(one(*each)) for each in islice(work, a_tenth + 1)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def loop_lags(until: float) -> list[float]:
    """How much later than asked for this loop wakes, in milliseconds, ten times a second."""
    lags = []
    while time.monotonic() < until - 0.1:
        due = time.monotonic() + 0.1
        await asyncio.sleep(0.1)
        lags.append((time.monotonic() - due) * 1e3)
    return lags


async def run(cell: Cell, url: str, limits: list[str], begin: float) -> dict[str, Any]:
    """From `begin` on, for the cell's time; what this process noticed of itself."""
    async with httpx.AsyncClient(
        transport=Connections(), timeout=httpx.Timeout(120.0), trust_env=False
    ) as client:
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        if cell.limiter != "headway":
            try:
                gate = await open_gate(cell.limiter, cell.shape, cell.amount, cell.period)
            except ImportError:
                return {"missing": True}
            call = through_gate(gate, client, cell.bound)
        else:
            limiter = Limiter(limits)
            make = through_transport if cell.call == "transport" else opaque
            call = make(limiter, client)
        end = time.monotonic() + cell.seconds + 0.25
        lags = asyncio.ensure_future(loop_lags(end))
        before = time.process_time()
        await keep_busy(call, cell, f"{url}/v1/chat/completions", client, end)
        return {
            "late_start": time.monotonic() - cell.seconds - begin,
            "cpu": time.process_time() - before,
            "lag_p99_ms": quantile(await lags, 0.99),
        }


def main() -> None:
    """Talks with whoever started this process."""
    print("ready", flush=True)
    told = json.loads(sys.stdin.readline())
    cell = Cell(**told["cell"])
    report = asyncio.run(run(cell, told["url"], told["limits"], told["begin"]))
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
