"""idle-buckets for the peers: buckets of two limits, each used once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from harness.memory import resident_bytes
from peers.each import each


def measure_peers(quick: bool) -> dict[str, float | str]:
    """Bytes a bucket, of 10 000."""
    return each(_measure, 1_000 if quick else 10_000)


def _measure(name: str, count: int) -> float:
    return asyncio.run(_grown(_MAKERS[name](count), count))


async def _grown(use: Callable[[int], Awaitable[object]], count: int) -> float:
    """By how much the process grows; what `use` returns is kept."""
    kept = [await use(-1)]
    gc.disable()
    before = resident_bytes()
    for i in range(count):
        kept.append(await use(i))
    return (resident_bytes() - before) / count


def _aiolimiter(_: int) -> Callable[[int], Awaitable[object]]:
    make = import_module("aiolimiter").AsyncLimiter

    async def use(_: int) -> object:
        requests, tokens = make(500, 60), make(200_000, 60)
        await requests.acquire()
        await tokens.acquire(1_000)
        return requests, tokens

    return use


def _asynciolimiter(_: int) -> Callable[[int], Awaitable[object]]:
    make = import_module("asynciolimiter").LeakyBucketLimiter

    async def use(_: int) -> object:
        requests, tokens = make(500 / 60, capacity=500), make(200_000 / 60, capacity=200_000)
        await requests.wait()
        await tokens.wait()  # it takes one at a time
        return requests, tokens

    return use


def _limits(_: int) -> Callable[[int], Awaitable[object]]:
    library = import_module("limits")
    strategy = import_module("limits.strategies").FixedWindowRateLimiter(
        import_module("limits.storage").MemoryStorage()
    )
    requests, tokens = library.RateLimitItemPerMinute(500), library.RateLimitItemPerMinute(200_000)

    async def use(i: int) -> object:
        key = f"bucket {i}"
        return strategy.hit(requests, key, "requests") and strategy.hit(
            tokens, key, "tokens", cost=1_000
        )

    return use


def _pyrate_limiter(_: int) -> Callable[[int], Awaitable[object]]:
    """One limiter whose factory makes a bucket for each new name, as its documents have it."""
    library = import_module("pyrate_limiter")
    clock = library.MonotonicClock()
    buckets: dict[str, Any] = {}

    def wrap_item(_: object, name: str, weight: int = 1) -> object:
        return library.RateItem(name, clock.now(), weight=weight)

    def get(self: Any, item: Any) -> object:
        if item.name not in buckets:
            amount = 500 if item.weight == 1 else 200_000
            rates = [library.Rate(amount, 60_000)]
            buckets[item.name] = self.create(
                library.StateBucket, rates, algorithm=library.TokenBucket()
            )
        return buckets[item.name]

    factory = type("Factory", (library.BucketFactory,), {"wrap_item": wrap_item, "get": get})
    limiter = library.Limiter(factory())

    async def use(i: int) -> object:
        limiter.try_acquire(f"bucket {i} requests", blocking=False)
        limiter.try_acquire(f"bucket {i} tokens", 1_000, blocking=False)
        return None

    return use


def _throttled_py(count: int) -> Callable[[int], Awaitable[object]]:
    library = import_module("throttled")
    store = library.MemoryStore(options={"MAX_SIZE": 4 * count})
    requests, tokens = (
        library.Throttled(using="gcra", quota=f"{n}/m burst {n}", store=store)
        for n in (500, 200_000)
    )

    async def use(i: int) -> object:
        requests.limit(f"bucket {i} requests")
        tokens.limit(f"bucket {i} tokens", cost=1_000)
        return None

    return use


def _token_throttle(count: int) -> Callable[[int], Awaitable[object]]:
    library = import_module("token_throttle")
    quotas = [
        library.Quota(metric="requests", limit=500, per_seconds=60),
        library.Quota(metric="tokens", limit=200_000, per_seconds=60),
    ]
    usage = {"requests": 1, "tokens": 1_000}

    def config(model: str) -> object:
        return library.PerModelConfig(model_family=model, quotas=library.UsageQuotas(quotas))

    limiter = library.RateLimiter(
        config,
        backend=library.MemoryBackendBuilder(),
        max_model_families=4 * count,
        max_aliases=4 * count,
    )

    async def use(i: int) -> object:
        reservation = await limiter.acquire_capacity(model=f"model-{i}", usage=usage)
        await limiter.refund_capacity(actual_usage=usage, reservation=reservation)
        return None

    return use


_MAKERS = {
    "aiolimiter": _aiolimiter,
    "asynciolimiter": _asynciolimiter,
    "limits": _limits,
    "pyrate-limiter": _pyrate_limiter,
    "throttled-py": _throttled_py,
    "token-throttle": _token_throttle,
}
