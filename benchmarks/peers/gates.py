"""Each peer as something to wait at: `acquire(amount)` returns when it is admitted.

Each gets the algorithm of its own that fits the server's shape best, with the server's numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Protocol

FOR_EVER = 1e6


class Gate(Protocol):
    """Waits its turn."""

    def acquire(self, amount: int, /) -> Awaitable[object]: ...


class _Gate:
    def __init__(self, acquire: Callable[[int], Awaitable[object]]) -> None:
        self.acquire = acquire


async def open_gate(name: str, shape: str, amount: int, period: float) -> Gate:
    """A peer that admits `amount` in `period` seconds; ImportError where it is not installed."""
    return _Gate(_OPENERS[name](shape, amount, period))


def aiolimiter(_: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """A leaky bucket is all it has."""
    limiter = import_module("aiolimiter").AsyncLimiter(amount, period)
    acquire: Callable[[int], Awaitable[object]] = limiter.acquire
    return acquire


def asynciolimiter(_: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """A leaky bucket that takes one at a time."""
    limiter = import_module("asynciolimiter").LeakyBucketLimiter(amount / period, capacity=amount)

    async def acquire(wanted: int) -> None:
        for _ in range(wanted):
            await limiter.wait()

    return acquire


def limits(shape: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """It does not wait: this sleeps until its reset time and asks again, as its documents do."""
    storage = import_module("limits.aio.storage").MemoryStorage()
    strategies = import_module("limits.aio.strategies")
    strategy = (
        strategies.FixedWindowRateLimiter
        if shape == "fixed"
        else strategies.MovingWindowRateLimiter
    )(storage)
    item = import_module("limits").RateLimitItemPerSecond(amount, max(1, round(period)))

    async def acquire(wanted: int) -> None:
        while not await strategy.hit(item, "key", cost=wanted):
            stats = await strategy.get_window_stats(item, "key")
            await asyncio.sleep(max(0.001, stats.reset_time - time.time()))

    return acquire


def pyrate_limiter(shape: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """It has an algorithm for each shape."""
    library = import_module("pyrate_limiter")
    rate = library.Rate(amount, max(1, round(period * 1000)))
    bucket: Any
    if shape == "bucket":
        bucket = library.StateBucket([rate], algorithm=library.TokenBucket())
    elif shape == "fixed":
        bucket = library.InMemoryBucket([rate], algorithm=library.FixedWindow())
    else:
        bucket = library.InMemoryBucket([rate])
    limiter = library.Limiter(bucket)

    async def acquire(wanted: int) -> None:
        await limiter.try_acquire_async("key", wanted)

    return acquire


def throttled_py(shape: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """Its sliding window is an estimate from two counters."""
    library = import_module("throttled.asyncio")
    quota = import_module("throttled.rate_limiter").per_duration(
        import_module("datetime").timedelta(seconds=period), amount, burst=amount
    )
    using = {"bucket": "token_bucket", "fixed": "fixed_window", "window": "sliding_window"}[shape]
    throttle = library.Throttled(
        key="key", using=using, quota=quota, timeout=FOR_EVER, store=library.MemoryStore()
    )

    async def acquire(wanted: int) -> None:
        await throttle.limit(cost=wanted)

    return acquire


def token_throttle(_: str, amount: int, period: float) -> Callable[[int], Awaitable[object]]:
    """A token bucket is all it has; each reservation is settled at its estimate at once."""
    library = import_module("token_throttle")
    quota = library.Quota(metric="units", limit=amount, per_seconds=max(1, round(period)))
    limiter = library.RateLimiter(
        library.PerModelConfig(quotas=library.UsageQuotas([quota])),
        backend=library.MemoryBackendBuilder(),
    )

    async def acquire(wanted: int) -> None:
        usage = {"units": wanted}
        reservation = await limiter.acquire_capacity(model="model", usage=usage)
        await limiter.refund_capacity(actual_usage=usage, reservation=reservation)

    return acquire


_OPENERS: dict[str, Callable[[str, int, float], Callable[[int], Awaitable[object]]]] = {
    "aiolimiter": aiolimiter,
    "asynciolimiter": asynciolimiter,
    "limits": limits,
    "pyrate-limiter": pyrate_limiter,
    "throttled-py": throttled_py,
    "token-throttle": token_throttle,
}
