"""The same through adaptive-rate-limiter, whose interface headway's scheduler has."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from statistics import median
from typing import Any

from harness.apart import apart

NAME = "adaptive-rate-limiter"


def measure_peers(mode: str, quick: bool) -> dict[str, float | str]:
    """Nanoseconds from submission to the result of a call that returns at once."""
    if find_spec("adaptive_rate_limiter") is None:
        return {NAME: "not installed"}
    return {NAME: apart(latency, mode, 20 if quick else 200)}


def latency(mode: str, calls: int) -> float | str:
    """The median over `calls` requests, one after another."""
    try:
        return asyncio.run(asyncio.wait_for(_latency(mode, calls), 120))
    except asyncio.TimeoutError:
        return "not through in 120 s"


async def _latency(mode: str, calls: int) -> float:
    from adaptive_rate_limiter import (
        DiscoveredBucket,
        MemoryBackend,
        ProviderInterface,
        RateLimitInfo,
        RequestMetadata,
    )
    from adaptive_rate_limiter.scheduler import StateManager, create_scheduler

    class Provider(ProviderInterface):
        @property
        def name(self) -> str:
            return "p"

        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            return {"m": DiscoveredBucket("m", 100_000_000, 100_000_000)}

        def parse_rate_limit_response(self, *_: Any, **__: Any) -> Any:
            return RateLimitInfo()

        async def get_bucket_for_model(self, model_id: str, *_: Any) -> str:
            return "m"

    class Client:
        base_url = "https://api.example.com"
        timeout = 30.0

        def get_headers(self) -> dict[str, str]:
            return {}

    class Classifier:
        async def classify(self, request: Any) -> Any:
            return request

    provider = Provider()
    manager = StateManager(MemoryBackend(), provider=provider)
    scheduler = create_scheduler(
        Client(), mode=mode, provider=provider, classifier=Classifier(), state_manager=manager
    )
    times: list[float] = []

    async def call() -> int:
        return 1

    async with scheduler:
        for number in range(calls):
            metadata = RequestMetadata(str(number), "m", "text", estimated_tokens=1)
            began = time.perf_counter_ns()
            result = await scheduler.submit_request(metadata, call)
            # Two of its three modes give what has a future, instead of the result.
            if hasattr(result, "request"):
                await result.request.future
            times.append(time.perf_counter_ns() - began)
    return median(times)
