"""try-acquire for the peers: taking one unit with capacity free."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from itertools import repeat
from statistics import median

from peers.each import each

_MANY = 10**9
"""Of a limit, in a second: never used up."""


def measure_peers(calls: int, repetitions: int) -> dict[str, float | str]:
    """Nanoseconds a call, net of the loop; those that only await are awaited."""
    return each(_measure, calls // 10, min(repetitions, 7))


def _measure(name: str, calls: int, repetitions: int) -> float:
    if name in _CALLS:
        return _timed(_CALLS[name](), calls, repetitions)
    return asyncio.run(_awaited(_AWAITED[name], calls, repetitions))


def _timed(call: Callable[[], object], calls: int, repetitions: int) -> float:
    gc.disable()
    loops: list[float] = []
    times: list[float] = []
    for _ in range(repetitions):
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            pass
        empty = time.perf_counter_ns()
        for _ in repeat(None, calls):
            call()
        loops.append((empty - began) / calls)
        times.append((time.perf_counter_ns() - empty) / calls)
    return median(times) - median(loops)


async def _awaited(
    make: Callable[[], Callable[[], Awaitable[object]]], calls: int, repetitions: int
) -> float:
    call = make()
    gc.disable()
    times: list[float] = []
    for _ in range(repetitions):
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            await call()
        times.append((time.perf_counter_ns() - began) / calls)
    return median(times)


def _aiolimiter() -> Callable[[], Awaitable[object]]:
    acquire: Callable[[], Awaitable[object]] = (
        import_module("aiolimiter").AsyncLimiter(_MANY, 1).acquire
    )
    return acquire


def _asynciolimiter() -> Callable[[], Awaitable[object]]:
    # Its timer fires once a unit; a slow one keeps it out of the loop that is timed.
    limiter = import_module("asynciolimiter").LeakyBucketLimiter(1e-6, capacity=_MANY)
    wait: Callable[[], Awaitable[object]] = limiter.wait
    return wait


def _limits() -> Callable[[], object]:
    strategy = import_module("limits.strategies").FixedWindowRateLimiter(
        import_module("limits.storage").MemoryStorage()
    )
    item = import_module("limits").RateLimitItemPerDay(_MANY)
    return lambda: strategy.hit(item, "key")


def _pyrate_limiter() -> Callable[[], object]:
    library = import_module("pyrate_limiter")
    bucket = library.StateBucket([library.Rate(_MANY, 1000)], algorithm=library.TokenBucket())
    limiter = library.Limiter(bucket)
    return lambda: limiter.try_acquire("key", blocking=False)


def _throttled_py() -> Callable[[], object]:
    throttle = import_module("throttled").Throttled(
        key="key", using="gcra", quota=f"{_MANY}/s burst {_MANY}"
    )
    return lambda: throttle.limit("key")


def _token_throttle() -> Callable[[], object]:
    library = import_module("token_throttle")
    limiter = library.SyncRateLimiter(
        library.PerModelConfig(
            quotas=library.UsageQuotas([library.Quota(metric="units", limit=_MANY, per_seconds=1)])
        ),
        backend=library.SyncMemoryBackendBuilder(),
    )
    usage = {"units": 1}

    def call() -> None:
        reservation = limiter.acquire_capacity(model="model", usage=usage)
        limiter.refund_capacity(actual_usage=usage, reservation=reservation)

    return call


_CALLS = {
    "limits": _limits,
    "pyrate-limiter": _pyrate_limiter,
    "throttled-py": _throttled_py,
    "token-throttle": _token_throttle,
}
_AWAITED = {"aiolimiter": _aiolimiter, "asynciolimiter": _asynciolimiter}
