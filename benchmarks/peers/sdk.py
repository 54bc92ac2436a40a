"""A chat completion as those make it who have another limiter, or none.

They are told what the cell's client is told of the limits, at the period that they know.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from importlib import import_module

import openai

from peers.adaptive import Scheduler
from peers.naive import NAIVE, again_by_tenacity
from quota.calls import MESSAGES, MODEL, NAME, Call, by_sdk
from quota.cells import Cell

WAYS = ("adaptive-rate-limiter", "chat-limiter", "token-throttle", *NAIVE)

NEEDS_LIMITS: dict[str, float | str] = {"token-throttle": "cannot: it has to be told the limits"}
"""Who has no part where nothing is told."""


async def open_way(cell: Cell, url: str, stack: AsyncExitStack) -> Call:
    """The way of that name; ImportError where it is not installed."""
    if cell.limiter == "chat-limiter":
        return await _chat_limiter(cell, url, stack)
    options = {"max_retries": 0} if cell.limiter == "tenacity" else {}
    client = await stack.enter_async_context(
        openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", **options)
    )
    if cell.limiter == "adaptive-rate-limiter":
        return await _adaptive_rate_limiter(cell, client, stack)
    call = by_sdk(client, cell.streams)
    if cell.limiter == "token-throttle":
        return _token_throttle(cell, call)
    return again_by_tenacity(call) if cell.limiter == "tenacity" else call


async def _adaptive_rate_limiter(
    cell: Cell, client: openai.AsyncOpenAI, stack: AsyncExitStack
) -> Call:
    """In its intelligent mode, the one that counts; it knows limits of a minute."""
    assert cell.call == "sdk", "a stream's headers are elsewhere"
    scheduler = await stack.enter_async_context(
        Scheduler(
            "intelligent",
            *_of_a_minute(cell),
            rate_limit_buffer_ratio=1.0,
            max_concurrent_executions=10_000,
            max_queue_size=100_000,
        )
    )

    async def call(number: int, tokens: int) -> None:
        async def create() -> object:
            # It reads the headers of what it is given.
            return await client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=MESSAGES,
                max_tokens=tokens,
                extra_headers={NAME: str(number)},
            )

        (await scheduler.submit(create, tokens=tokens)).parse()

    return call


async def _chat_limiter(cell: Cell, url: str, stack: AsyncExitStack) -> Call:
    """It makes the calls itself, knows limits of a minute and takes no tokens but its own estimate.

    Who gives it limits turns its finding out off: of windows of 6 s, it would be told a tenth.
    """
    assert cell.call == "sdk", "it does not stream"
    library = import_module("chat_limiter")
    requests, tokens = _of_a_minute(cell)
    known = import_module("chat_limiter.providers").get_provider_config(library.Provider.OPENAI)
    ratios = {"request_buffer_ratio": 1.0, "token_buffer_ratio": 1.0}
    config = known.model_copy(update={"base_url": f"{url}/v1", **ratios})
    limiter = await stack.enter_async_context(
        library.ChatLimiter(
            config=config,
            api_key="k",
            request_limit=requests,
            token_limit=tokens,
            enable_adaptive_limits=requests is None,
        )
    )
    messages = [library.Message(role=library.MessageRole.USER, content="x")]

    async def call(_: int, tokens: int) -> None:
        await limiter.chat_completion(model=MODEL, messages=messages, max_tokens=tokens)

    return call


def _token_throttle(cell: Cell, call: Call) -> Call:
    """A token bucket is all it has; each reservation is settled at its estimate."""
    library = import_module("token_throttle")
    quotas = [
        library.Quota(metric="requests", limit=cell.requests, per_seconds=cell.period),
        library.Quota(metric="tokens", limit=cell.tokens, per_seconds=cell.period),
    ]
    limiter = library.RateLimiter(
        library.PerModelConfig(quotas=library.UsageQuotas(quotas)),
        backend=library.MemoryBackendBuilder(),
    )

    async def throttled(number: int, tokens: int) -> None:
        usage = {"requests": 1, "tokens": tokens}
        reservation = await limiter.acquire_capacity(model=MODEL, usage=usage)
        try:
            await call(number, tokens)
        finally:
            await limiter.refund_capacity(actual_usage=usage, reservation=reservation)

    return throttled


def _of_a_minute(cell: Cell) -> tuple[int | None, int | None]:
    """Requests and tokens, if they are told."""
    if cell.told == "nothing":
        return None, None
    return cell.requests * 60 // cell.period, cell.tokens * 60 // cell.period
