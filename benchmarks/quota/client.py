"""The client of one cell: a process that keeps its limiter busy and sends what it admits.

    python -m quota.client

Prints "ready", reads a line of JSON (the cell, the server's address, the limits that it is given,
the instant at which to begin), and prints a line of JSON when it is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack, suppress
from itertools import islice
from typing import Any

import anthropic
import httpx
import openai

from harness.statistics import quantile
from headway import Limiter, RateLimiterConfig, RateLimiterError, create_scheduler
from headway.transports import AsyncTransport, Connections
from peers.gates import open_gate
from peers.sdk import open_way
from quota.calls import (
    MESSAGES,
    MODEL,
    NAME,
    Call,
    by_anthropic,
    by_sdk,
    opaque,
    through_gate,
    through_transport,
)
from quota.cells import Cell


async def keep_busy(call: Call, cell: Cell, end: float) -> None:
    """Two windows' worth waits from the start, and what can be admitted is added."""

    async def one(number: int, tokens: int) -> None:
        # What became of it, the server knows.
        with suppress(
            httpx.HTTPError, openai.OpenAIError, anthropic.AnthropicError, RateLimiterError
        ):
            await call(number, tokens)

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


async def plain_call(cell: Cell, url: str, limits: list[str], stack: AsyncExitStack) -> Call:
    """Requests of httpx, which a `Limiter` or a peer lets go."""
    client = await stack.enter_async_context(
        httpx.AsyncClient(transport=Connections(), timeout=httpx.Timeout(120.0), trust_env=False)
    )

    def make(number: int, tokens: int) -> httpx.Request:
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": tokens}
        where = f"{url}/v1/chat/completions"
        return client.build_request("POST", where, json=body, headers={NAME: str(number)})

    if cell.limiter != "headway":
        gate = await open_gate(cell.limiter, cell.shape, cell.amount, cell.period)
        return through_gate(gate, client, make, cell.bound)
    through = through_transport if cell.call == "transport" else opaque
    return through(Limiter(limits), client, make)


async def sdk_call(cell: Cell, url: str, limits: list[str] | None, stack: AsyncExitStack) -> Call:
    """An SDK with a scheduler's transport, or as others use it."""
    if cell.limiter != "headway":
        return await open_way(cell, url, stack)
    config = RateLimiterConfig(
        rate_limit_buffer_ratio=1.0, max_concurrent_executions=10_000, max_queue_size=100_000
    )
    scheduler = await stack.enter_async_context(
        create_scheduler(None, config=config, limits=limits)
    )
    # By the host, nobody would know whose it is.
    transport = AsyncTransport(scheduler, provider=cell.sdk)
    if cell.sdk == "anthropic":
        http = anthropic.DefaultAsyncHttpxClient(transport=transport, trust_env=False)
        return by_anthropic(
            await stack.enter_async_context(
                anthropic.AsyncAnthropic(api_key="k", base_url=url, http_client=http)
            ),
            cell.streams,
        )
    governed = openai.DefaultAsyncHttpxClient(transport=transport, trust_env=False)
    client = await stack.enter_async_context(
        openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", http_client=governed)
    )
    return by_sdk(client, cell.streams)


async def run(cell: Cell, url: str, limits: list[str] | None, begin: float) -> dict[str, Any]:
    """From `begin` on, for the cell's time; what this process noticed of itself."""
    async with AsyncExitStack() as stack:
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        try:
            if cell.sdk:
                call = await sdk_call(cell, url, limits, stack)
            else:
                assert limits is not None, "a Limiter finds nothing out"
                call = await plain_call(cell, url, limits, stack)
        except ImportError:
            return {"missing": True}
        # The time is the server's, from the first that it admits: two windows' worth is prepared
        # before, for milliseconds each.
        started = time.monotonic()
        end = started + cell.seconds + 0.25 + 0.03 * cell.period
        lags = asyncio.ensure_future(loop_lags(end))
        before = time.process_time()
        await keep_busy(call, cell, end)
        return {
            "late_start": started - begin,
            "cpu": time.process_time() - before,
            "lag_p99_ms": quantile(await lags, 0.99),
        }


def main() -> None:
    """Talks with whoever started this process."""
    print("ready", flush=True)
    told = json.loads(sys.stdin.readline())
    cell = Cell(**told["cell"])
    loop = asyncio.new_event_loop()
    report = loop.run_until_complete(run(cell, told["url"], told["limits"], told["begin"]))
    print(json.dumps(report), flush=True)
    # Now, whatever a peer's threads still wait for: chat-limiter's do for a minute.
    os._exit(0)


if __name__ == "__main__":
    main()
