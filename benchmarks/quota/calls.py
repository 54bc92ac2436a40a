"""How the client of a cell calls: what a limiter, a peer or a transport lets go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import httpx
import openai

from headway import Limiter, Reservation
from headway.transports import NetworkDelays, send
from peers.gates import Gate

Call = Callable[[int, int], Awaitable[None]]
"""Sends the request of that number and so many tokens when its turn has come."""
Make = Callable[[int, int], httpx.Request]
"""Makes that request."""
MODEL = "m"
MESSAGES: list[Any] = [{"role": "user", "content": "x"}]
NAME = "x-client-request-id"


def through_transport(limiter: Limiter, client: httpx.AsyncClient, make: Make) -> Call:
    """The limiter is told when the request is sent and when its answer's head is there."""
    delays = NetworkDelays()

    async def exchange(request: httpx.Request) -> httpx.Response:
        return await client.send(request, stream=True)

    async def call(number: int, tokens: int) -> None:
        request = make(number, tokens)
        reservation = await limiter.acquire(1, tokens)
        assert isinstance(reservation, Reservation)
        response = await send(exchange, request, reservation, delays)
        await response.aread()
        await response.aclose()
        reservation.settle()

    return call


def opaque(limiter: Limiter, client: httpx.AsyncClient, make: Make) -> Call:
    """The limiter sees the block begin and end."""

    async def call(number: int, tokens: int) -> None:
        request = make(number, tokens)
        async with limiter.acquire(1, tokens):
            await client.send(request)

    return call


def through_gate(gate: Gate, client: httpx.AsyncClient, make: Make, bound: str) -> Call:
    """A peer, which is asked for what the binding limit counts."""

    async def call(number: int, tokens: int) -> None:
        request = make(number, tokens)
        await gate.acquire(1 if bound == "requests" else tokens)
        await client.send(request)

    return call


def by_sdk(client: openai.AsyncOpenAI, streams: bool) -> Call:
    """OpenAI's SDK, and whatever its transport does."""

    async def call(number: int, tokens: int) -> None:
        asked: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": tokens}
        headers = {NAME: str(number)}
        if not streams:
            await client.chat.completions.create(**asked, extra_headers=headers)
            return
        usage = {"include_usage": True}
        async with await client.chat.completions.create(
            **asked, stream=True, stream_options=usage, extra_headers=headers
        ) as stream:
            async for _ in stream:
                pass

    return call


def by_anthropic(client: anthropic.AsyncAnthropic, streams: bool) -> Call:
    """Anthropic's SDK. The tokens go in, as four characters each; it may answer one."""

    async def call(number: int, tokens: int) -> None:
        asked: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "word" * tokens}],
            "max_tokens": 1,
            "extra_headers": {NAME: str(number)},
        }
        if not streams:
            await client.messages.create(**asked)
            return
        async with client.messages.stream(**asked) as stream:
            async for _ in stream:
                pass

    return call
