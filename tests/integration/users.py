"""What tests of schedulers have in common: a client, a provider that counts, a scheduler."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from headway import DiscoveredBucket, ProviderInterface, RateLimitInfo, RequestMetadata
from headway.scheduler import RateLimiterConfig, Scheduler, create_scheduler


class Client:
    base_url = "https://api.example.com"
    timeout = 30.0

    def get_headers(self) -> dict[str, str]:
        return {"Authorization": "Bearer nobody-may-see-this"}


def asks(model: str = "m", **fields: Any) -> RequestMetadata:
    return RequestMetadata(request_id="r", model_id=model, resource_type="text", **fields)


def make(mode: str = "intelligent", **options: Any) -> Scheduler:
    names = ("limits", "learnt_limits", "provider", "classifier", "clock", "accounts", "backend")
    names = (*names, "retry_on")
    client = options.pop("client", Client())
    given = {name: options.pop(name) for name in names if name in options}
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    options.setdefault("max_backoff", 0.001)
    return create_scheduler(client, mode=mode, config=RateLimiterConfig(**options), **given)


async def at_once() -> int:
    return 42


def idle(scheduler: Scheduler) -> bool:
    """Whether nothing is waiting or under way, and each request was counted once."""
    metrics = scheduler.get_metrics()
    bucket = metrics["buckets"].get("m", {"queue_depth": 0, "in_flight": 0})
    counted = sum(metrics[f"requests_{name}"] for name in ("completed", "failed", "cancelled"))
    return (
        not scheduler._unfinished()
        and not metrics["active_requests"]
        and not bucket["queue_depth"]
        and not bucket["in_flight"]
        and counted == metrics["requests_scheduled"]
    )


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until it holds; for what no event tells."""

    async def look() -> None:
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)

    await asyncio.wait_for(look(), 20)


class _NoReader(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, as Windows' Proactor loop cannot."""

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        raise NotImplementedError

    remove_reader = add_reader  # type: ignore[assignment]


def run_without_reader(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """As asyncio.run, on such a loop."""
    loop = _NoReader()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class Refused(Exception):
    def __init__(self, status: int, headers: dict[str, str], body: Any = None) -> None:
        super().__init__(f"status {status}")
        self.status_code = status
        self.headers = headers
        self.body = body


class Provider(ProviderInterface):
    """Good, and counts what it is asked; each model is its own bucket."""

    name = "mine"
    rpm = 1000

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.told: list[tuple[Any, Any, Any]] = []

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        self.asked["discover_limits"] += 1
        return {name: DiscoveredBucket(name, self.rpm) for name in ("bad", "good", "m")}

    def parse_rate_limit_response(
        self,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        status_code: int | None = None,
    ) -> RateLimitInfo:
        self.told.append((headers, body, status_code))
        return RateLimitInfo()

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        self.asked[model_id] += 1
        return model_id.partition("-")[0]


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Evil:
    """Whatever is asked of it, it raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        raise RuntimeError(name)
