"""fairness: how evenly accounts that all wait are served, and what a flood costs another."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from harness.apart import apart
from harness.options import Options
from harness.result import Result
from peers import NO_PART

LEAST_JAIN = 0.99

_JAIN_METHOD = """
Eight accounts of weights 1 to 4 that always have twenty requests waiting each in a scheduler in
account mode, half of them small in tokens and half large, on one bucket of requests and tokens;
real clock, {seconds} s after the first burst. Jain's index of what each was given by the limit
that it needs most of, divided by its weight.
"""
_LIGHT_METHOD = """
One account floods the bucket with {flood} requests, another sends one a second for {seconds} s
after the first burst; the figure is the 99th percentile of the light one's waits. Floor: what it
is without the flood, and the time that one of the flood's largest requests takes to be paid for.
"""
_GATE_METHOD = """
One account has {flood} calls of 0.1 s to one model waiting for the ten places of
max_concurrent_executions, another makes one call to another model now and then, {calls} in all; the
figure is the 99th percentile of how long those wait. Floor: the length of one of the flood's calls,
since all places may have been taken at the same instant.
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
            peers=NO_PART,
        ),
        Result(
            row="fairness",
            cell="a light account beside a flood, p99 wait",
            unit="ms",
            headway=beside * 1e3,
            floor=(alone + LARGEST / RATE) * 1e3,
            goal="at most its own and one of the flood's largest",
            met=beside <= alone + LARGEST / RATE + 0.005,
            method=_LIGHT_METHOD.format(flood=flood, seconds=light_for),
            peers=NO_PART,
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
            peers=NO_PART,
        ),
    ]


RATE = 10_000.0  # tokens a second
LARGEST = 2_000  # tokens
CALL = 0.1  # seconds


def index(seconds: float) -> float:
    """Jain's index."""
    return asyncio.run(_index(seconds))


async def _index(seconds: float) -> float:
    from headway import RequestMetadata, create_scheduler

    weights = {f"a{i}": 1 + i % 4 for i in range(8)}
    given: Counter[str] = Counter()
    measuring = False
    dice = random.Random(1)

    async def keep_waiting(scheduler: object, client: str, large: bool) -> None:
        while True:
            tokens = dice.randint(60, 120) if large else dice.randint(1, 5)
            metadata = RequestMetadata(
                "r", "m", "text", estimated_tokens=tokens, client_id=client, timeout=None
            )

            async def call(cost: float = max(tokens / 20_000, 1 / 1_000)) -> None:
                if measuring:
                    given[client] += cost  # type: ignore[assignment]

            await scheduler.submit_request(metadata, call)  # type: ignore[attr-defined]

    scheduler = create_scheduler(
        object(),
        mode="account",
        limits=["1_000 requests/s bucket burst 10", "20_000 tokens/s bucket burst 200"],
        accounts=dict(weights),
    )
    async with scheduler:
        tasks = [
            asyncio.ensure_future(keep_waiting(scheduler, client, i % 2 == 0))
            for i, client in enumerate(weights)
            for _ in range(20)
        ]
        await asyncio.sleep(0.5)
        measuring = True
        await asyncio.sleep(seconds)
        measuring = False
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    shares = [given[client] / weight for client, weight in weights.items()]
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def light_wait(flood: int, seconds: int) -> float:
    """The 99th percentile of a light account's waits, in seconds."""
    return asyncio.run(_light_wait(flood, seconds))


async def _light_wait(flood: int, seconds: int) -> float:
    from headway import RateLimiterConfig, RequestMetadata, create_scheduler

    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def nothing() -> None:
        return None

    scheduler = create_scheduler(
        object(),
        mode="account",
        config=RateLimiterConfig(max_queue_size=max(1, flood), rate_limit_buffer_ratio=1.0),
        limits=[f"{RATE:.0f} tokens/s bucket burst {LARGEST}"],
    )
    async with scheduler:
        tasks = [
            asyncio.ensure_future(
                scheduler.submit_request(
                    RequestMetadata("f", "m", "text", estimated_tokens=LARGEST, client_id="flood"),
                    nothing,
                )
            )
            for _ in range(flood)
        ]
        await asyncio.sleep(1.0)
        metadata = RequestMetadata("l", "m", "text", estimated_tokens=10, client_id="light")
        for _ in range(seconds):
            began = loop.time()
            await scheduler.submit_request(metadata, nothing)
            waits.append(loop.time() - began)
            await asyncio.sleep(max(0.0, 1.0 - (loop.time() - began)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _p99(waits)


def wait_at_gate(flood: int, calls: int) -> float:
    """The 99th percentile of a light account's waits for a place, in seconds."""
    return asyncio.run(_wait_at_gate(flood, calls))


async def _wait_at_gate(flood: int, calls: int) -> float:
    from headway import RateLimiterConfig, RequestMetadata, create_scheduler

    loop = asyncio.get_running_loop()
    waits: list[float] = []

    async def long() -> None:
        await asyncio.sleep(CALL)

    config = RateLimiterConfig(max_queue_size=flood, max_concurrent_executions=10)
    async with create_scheduler(object(), mode="account", config=config) as scheduler:
        metadata = RequestMetadata("f", "one", "text", client_id="flood")
        tasks = [
            asyncio.ensure_future(scheduler.submit_request(metadata, long)) for _ in range(flood)
        ]
        await asyncio.sleep(0.25)
        metadata = RequestMetadata("l", "another", "text", client_id="light")
        for _ in range(calls):
            began = loop.time()

            async def note(began: float = began) -> None:
                waits.append(loop.time() - began)

            await scheduler.submit_request(metadata, note)
            await asyncio.sleep(0.13)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return _p99(waits)


def _p99(waits: list[float]) -> float:
    return sorted(waits)[max(0, -(-len(waits) * 99 // 100) - 1)]
