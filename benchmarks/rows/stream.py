"""stream: what a chunk of a stream costs more when `submit_request` has given the stream."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import repeat
from statistics import median

from harness.apart import apart
from harness.options import Options
from harness.result import Result
from peers.stream import measure_peers

MOST_ADDED = 1_000.0
KINDS = {"sdk": "chunks of OpenAI's SDK", "dict": "chunks that are dicts"}

_METHOD = """
`async for` over an async generator that yields one chunk again and again and never waits, and over
what scheduler.submit_request gives of such a one, which reads the use from every chunk; none but
the last has told it. {chunks} chunks a repetition, median of {repetitions} repetitions in turns,
garbage collector on. Floor: the generator alone. The figure is the difference.
"""


def measure(options: Options) -> list[Result]:
    """Each kind of chunk."""
    chunks, repetitions = (20_000, 3) if options.quick else (200_000, 7)
    results = []
    for kind, cell in KINDS.items():
        ours, bare = apart(compare, kind, chunks, repetitions)
        results.append(
            Result(
                row="stream",
                cell=f"{cell}: added",
                unit="ns a chunk",
                headway=ours - bare,
                floor=bare,
                goal=f"at most {MOST_ADDED:_.0f} added",
                met=ours - bare <= MOST_ADDED,
                method=_METHOD.format(chunks=chunks, repetitions=repetitions),
                peers=measure_peers(kind, chunks, repetitions) if options.peers else {},
            )
        )
    return results


def compare(kind: str, chunks: int, repetitions: int) -> tuple[float, float]:
    """Nanoseconds a chunk: through a scheduler, and of the generator alone."""
    return asyncio.run(_compare(kind, chunks, repetitions))


async def _compare(kind: str, chunks: int, repetitions: int) -> tuple[float, float]:
    from headway import RequestMetadata, create_scheduler

    metadata = RequestMetadata("r", "m", "text", estimated_tokens=10, client_id="a")
    # A rate that these calls do not use up.
    limits = ["1_000_000_000_000 requests/min bucket", "1_000_000_000_000 tokens/min bucket"]
    async with create_scheduler(object(), limits=limits) as scheduler:
        return await timed(
            kind, chunks, repetitions, lambda call: scheduler.submit_request(metadata, call)
        )


Stream = AsyncIterator[object]


async def timed(
    kind: str,
    chunks: int,
    repetitions: int,
    submit: Callable[[Callable[[], Awaitable[Stream]]], Awaitable[Stream]],
) -> tuple[float, float]:
    """Nanoseconds a chunk: of the stream that `submit` gives, and of the generator alone."""
    chunk, last = _chunks(kind)

    async def stream() -> Stream:
        for _ in repeat(None, chunks - 1):
            yield chunk
        yield last

    async def call() -> Stream:
        return stream()

    governed: list[float] = []
    bare: list[float] = []
    for repetition in range(repetitions + 1):
        gc.collect()
        alone = await _run_through(stream())
        through = await _run_through(await submit(call))
        if repetition:  # the first warms up
            bare.append(alone / chunks)
            governed.append(through / chunks)
    return median(governed), median(bare)


async def _run_through(stream: Stream) -> int:
    began = time.perf_counter_ns()
    async for _ in stream:
        pass
    return time.perf_counter_ns() - began


def _chunks(kind: str) -> tuple[object, object]:
    """One that tells nothing of what was used, and one that does."""
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    told = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chunk = {**told, "choices": [choice], "usage": None}
    last = {**told, "choices": [], "usage": usage}
    if kind == "dict":
        return chunk, last
    from openai.types.chat import ChatCompletionChunk

    return ChatCompletionChunk.model_validate(chunk), ChatCompletionChunk.model_validate(last)
