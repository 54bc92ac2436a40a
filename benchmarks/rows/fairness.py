"""fairness: how evenly accounts that all wait are served, and what a flood costs another."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from harness.apart import apart
from harness.options import Options
from harness.result import Result
from peers.adaptive import Scheduler
from peers.fairness import PATIENCE, measure_peers

LEAST_JAIN = 0.99

_JAIN_METHOD = """
Eight accounts of weights 1 to 4 that always have twenty requests waiting each in a scheduler in
account mode, half of them small in tokens and half large, on one bucket of requests and tokens;
real clock, {seconds} s after the first burst. Jain's index of what each was given by the limit
that it needs most of, divided by its weight. adaptive-rate-limiter: the same in its account mode,
which has no weights and counts no limit.
"""
_LIGHT_METHOD = """
One account floods the bucket with {flood} requests, another sends one a second for {seconds} s
after the first burst; the figure is the 99th percentile of the light one's waits. Floor: what it
is without the flood, and the time that one of the flood's largest requests takes to be paid for.
adaptive-rate-limiter: the same in its account mode, as long as one waits {patience:.0f} s at most.
"""
_GATE_METHOD = """
One account has {flood} calls of 0.1 s to one model waiting for the ten places of
max_concurrent_executions, another makes one call to another model now and then, {calls} in all; the
figure is the 99th percentile of how long those wait. Floor: the length of one of the flood's calls,
since all places may have been taken at the same instant. adaptive-rate-limiter: the same.
"""


def measure(options: Options) -> list[Result]:
    """All cells."""
    seconds = 2.0 if options.quick else 10.0
    jain = apart(index, seconds)
    flood = 5_000 if options.quick else 50_000
    light_for = 4 if options.quick else 20
    alone = apart(light_wait, 0, light_for)
    beside = apart(light_wait, flood, light_for)
    crowd, calls = (500, 10) if options.quick else (2_000, 40)
    at_gate = apart(wait_at_gate, crowd, calls)
    return [
        Result(
            row="fairness",
            cell="Jain's index",
            unit="index",
            headway=jain,
            floor=1.0,
            goal=f"at least {LEAST_JAIN}",
            met=jain >= LEAST_JAIN,
            method=_JAIN_METHOD.format(seconds=seconds),
            peers=measure_peers(index, 1.0, seconds, True) if options.peers else {},
        ),
        Result(
            row="fairness",
            cell="a light account beside a flood, p99 wait",
            unit="ms",
            headway=beside * 1e3,
            floor=(alone + LARGEST / RATE) * 1e3,
            goal="at most its own and one of the flood's largest",
            met=beside <= alone + LARGEST / RATE + 0.005,
            method=_LIGHT_METHOD.format(flood=flood, seconds=light_for, patience=PATIENCE),
            peers=measure_peers(light_wait, 1e3, flood, light_for, True) if options.peers else {},
        ),
        Result(
            row="fairness",
            cell="a light account beside a flood of another model, p99 wait",
            unit="ms",
            headway=at_gate * 1e3,
            floor=CALL * 1e3,
            goal="at most one of the flood's calls",
            met=at_gate <= CALL + 0.02,
            method=_GATE_METHOD.format(flood=crowd, calls=calls),
            peers=measure_peers(wait_at_gate, 1e3, crowd, calls, True) if options.peers else {},
        ),
    ]


RATE = 10_000.0  # tokens a second
LARGEST = 2_000  # tokens
CALL = 0.1  # seconds


def index(seconds: float, theirs: bool = False) -> float:
    """Jain's index."""
    return asyncio.run(_index(seconds, theirs))


async def _index(seconds: float, theirs: bool) -> float:
    weights = {f"a{i}": 1 + i % 4 for i in range(8)}
    given: Counter[str] = Counter()
    measuring = False
    dice = random.Random(1)

    async def keep_waiting(submit: Submit, client: str, large: bool) -> None:
        while True:
            tokens = dice.randint(60, 120) if large else dice.randint(1, 5)

            async def call(cost: float = max(tokens / 20_000, 1 / 1_000)) -> None:
                if measuring:
                    given[client] += cost  # type: ignore[assignment]

            await submit(call, client=client, tokens=tokens)

    limits = ["1_000 requests/s bucket burst 10", "20_000 tokens/s bucket burst 200"]
    async with _account_mode(theirs, limits=limits, accounts=dict(weights)) as submit:
        tasks = [
            asyncio.ensure_future(keep_waiting(submit, client, i % 2 == 0))
            for i, client in enumerate(weights)
            for _ in range(20)
        ]
        await asyncio.sleep(0.5)
        measuring = True
        await asyncio.sleep(seconds)
        measuring = False
        await _cancel(tasks)
    shares = [given[client] / weight for client, weight in weights.items()]
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def light_wait(flood: int, seconds: int, theirs: bool = False) -> float:
    """The 99th percentile of a light account's waits, in seconds."""
    return asyncio.run(_light_wait(flood, seconds, theirs))


async def _light_wait(flood: int, seconds: int, theirs: bool) -> float:
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def nothing() -> None:
        return None

    # One place more for the light account, where the room is that of all together.
    room = {"max_queue_size": flood + 1, "rate_limit_buffer_ratio": 1.0}
    limits = [f"{RATE:.0f} tokens/s bucket burst {LARGEST}"]
    async with _account_mode(theirs, room, limits=limits) as submit:
        tasks = [
            asyncio.ensure_future(submit(nothing, client="flood", tokens=LARGEST))
            for _ in range(flood)
        ]
        await asyncio.sleep(1.0)
        for _ in range(seconds):
            began = loop.time()
            await asyncio.wait_for(submit(nothing, client="light", tokens=10), PATIENCE)
            waits.append(loop.time() - began)
            await asyncio.sleep(max(0.0, 1.0 - (loop.time() - began)))
        await _cancel(tasks)
    return _p99(waits)


def wait_at_gate(flood: int, calls: int, theirs: bool = False) -> float:
    """The 99th percentile of a light account's waits for a place, in seconds."""
    return asyncio.run(_wait_at_gate(flood, calls, theirs))


async def _wait_at_gate(flood: int, calls: int, theirs: bool) -> float:
    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def long() -> None:
        await asyncio.sleep(CALL)

    room = {"max_queue_size": flood + 1, "max_concurrent_executions": 10}
    async with _account_mode(theirs, room) as submit:
        tasks = [
            asyncio.ensure_future(submit(long, client="flood", model="one")) for _ in range(flood)
        ]
        await asyncio.sleep(0.25)
        for _ in range(calls):
            began = loop.time()

            async def note(began: float = began) -> None:
                waits.append(loop.time() - began)

            await submit(note, client="light", model="another")
            await asyncio.sleep(0.13)
        await _cancel(tasks)
    return _p99(waits)


Submit = Callable[..., Awaitable[object]]
"""submit(call, client=..., model="m", tokens=1): what `call` gives when its turn has come."""


@asynccontextmanager
async def _account_mode(
    theirs: bool, config: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[Submit]:
    """Headway's scheduler, or adaptive-rate-limiter's, which has nothing to take `options`."""
    if theirs:
        async with Scheduler("account", None, None, **config or {}) as scheduler:
            yield scheduler.submit
        return
    from headway import RateLimiterConfig, RequestMetadata, create_scheduler

    def submit(
        call: Callable[[], Awaitable[Any]], client: str, model: str = "m", tokens: int = 1
    ) -> Awaitable[object]:
        metadata = RequestMetadata("r", model, "text", estimated_tokens=tokens, client_id=client)
        return ours.submit_request(metadata, call)

    configured = RateLimiterConfig(**config or {})
    async with create_scheduler(object(), mode="account", config=configured, **options) as ours:
        yield submit


async def _cancel(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _p99(waits: list[float]) -> float:
    return sorted(waits)[max(0, -(-len(waits) * 99 // 100) - 1)]
