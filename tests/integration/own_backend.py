"""A user's own backend, for tests, and schedulers on it."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

from headway import MemoryBackend, RateLimiterConfig, RequestMetadata, create_scheduler
from headway.backends import BaseBackend, HealthCheckResult
from headway.scheduler import Scheduler


class Own(BaseBackend):
    """Counts on one MemoryBackend, and writes down what it is asked."""

    def __init__(self, rpm: int = 10**9, tpm: int = 10**9) -> None:
        super().__init__("own")
        self.words = MemoryBackend()
        self.limits = {"rpm_limit": rpm, "tpm_limit": tpm}
        self.asked: list[tuple[str, int, int]] = []
        self.told: list[tuple[str, int, int]] = []
        self.given: Any = None
        self.failing = False
        self.entered = asyncio.Event()

    async def check_and_reserve_capacity(  # noqa: PLR0917 - the order is promised
        self,
        key: str,
        requests: int,
        tokens: int,
        bucket_limits: dict[str, int] | None = None,
        safety_margin: float = 1.0,
        request_id: str | None = None,
    ) -> tuple[bool, str | None]:
        self.entered.set()
        await asyncio.sleep(0.001)
        if self.failing:
            raise ConnectionError("the store is gone")
        self.asked.append((key, requests, tokens))
        self.given = bucket_limits, safety_margin
        return await self.words.check_and_reserve_capacity(
            key, requests, tokens, self.limits, 1.0, request_id
        )

    async def release_reservation(self, key: str, reservation_id: str) -> bool:
        self.told.append(("unused", 0, 0))
        return await self.words.release_reservation(key, reservation_id)

    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        self.told.append(("used", reserved_tokens, actual_tokens))
        return await self.words.release_streaming_reservation(
            key, reservation_id, reserved_tokens, actual_tokens
        )

    async def health_check(self) -> HealthCheckResult:
        return HealthCheckResult(True, "own", self.namespace)

    # What a scheduler does not ask.
    async def get_state(self, key: str) -> Any: ...
    async def set_state(self, key: str, state: dict[str, Any]) -> None: ...
    async def get_all_states(self) -> Any: ...
    async def clear(self) -> None: ...
    async def check_capacity(self, model: str, request_type: str = "default") -> Any: ...
    async def record_request(self, *args: Any, **names: Any) -> None: ...
    async def record_failure(self, *args: Any, **names: Any) -> None: ...
    async def get_failure_count(self, *args: Any, **names: Any) -> Any: ...
    async def is_circuit_broken(self) -> Any: ...
    async def update_rate_limits(self, *args: Any, **names: Any) -> Any: ...
    async def get_rate_limits(self, model: str) -> Any: ...
    async def reserve_capacity(self, *args: Any, **names: Any) -> Any: ...
    async def release_reservation_by_id(self, request_id: str) -> None: ...
    async def cache_bucket_info(self, *args: Any, **names: Any) -> None: ...
    async def get_cached_bucket_info(self) -> Any: ...
    async def cache_model_info(self, *args: Any, **names: Any) -> None: ...
    async def get_cached_model_info(self, model: str) -> Any: ...
    async def get_all_stats(self) -> Any: ...
    async def cleanup(self) -> None: ...
    async def clear_failures(self) -> None: ...
    async def force_circuit_break(self, duration: float) -> None: ...


class Recorder(Own):
    """Grants by chance, takes its time before and after, and writes down what becomes of it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.lock = threading.Lock()
        self.granted: dict[str, tuple[str, int, int]] = {}
        self.ended: dict[str, int | None] = {}  # what was used of it; None: nothing, given back
        self.wrong: list[str] = []
        self.runs = False
        self.generous = False

    async def start(self) -> None:
        self.runs = True

    async def stop(self) -> None:
        self.runs = False

    async def _pass(self, what: str) -> None:
        if not self.runs:
            self.wrong.append(f"{what} while it is stopped")
        with self.lock:
            seconds = self.rng.choice([None, 0.0, 0.0, 0.001, 0.003])
        if seconds is not None:
            await asyncio.sleep(seconds)
        if not self.runs:
            self.wrong.append(f"{what} goes on when it is stopped")

    async def check_and_reserve_capacity(  # noqa: PLR0917 - the order is promised
        self,
        key: str,
        requests: int,
        tokens: int,
        bucket_limits: dict[str, int] | None = None,
        safety_margin: float = 1.0,
        request_id: str | None = None,
    ) -> tuple[bool, str | None]:
        await self._pass("asked")
        with self.lock:
            chance = 1.0 if self.generous else self.rng.random()
        if chance < 0.1:
            raise ConnectionError("the store is gone")
        if chance < 0.3:
            return False, None
        name = f"{key}/{len(self.granted)}/{request_id}"
        self.granted[name] = (key, requests, tokens)
        try:
            await self._pass("granted")
        except asyncio.CancelledError:
            del self.granted[name]  # whoever has asked does not wait for it: nothing is reserved
            raise
        return True, name

    async def _end(self, name: str, used: int | None) -> bool:
        if name not in self.granted:
            self.wrong.append(f"{name} was never granted")
        if name in self.ended:
            self.wrong.append(f"{name} is told of twice")
        self.ended[name] = used
        await self._pass("told")
        return True

    async def release_reservation(self, key: str, reservation_id: str) -> bool:
        return await self._end(reservation_id, None)

    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        if reservation_id in self.granted and self.granted[reservation_id][2] != reserved_tokens:
            self.wrong.append(f"{reservation_id}: {reserved_tokens} were not reserved")
        return await self._end(reservation_id, actual_tokens)

    async def check_capacity(self, model: str, request_type: str = "default") -> tuple[bool, float]:
        await self._pass("asked when")
        return False, 0.001


def make(
    backend: BaseBackend, at_once: int = 100, refreshed: float = 30.0, **options: Any
) -> Scheduler:
    config = RateLimiterConfig(
        rate_limit_buffer_ratio=0.9,
        max_queue_size=10_000,
        max_concurrent_executions=at_once,
        health_check_interval=refreshed,
    )
    return create_scheduler(object(), config=config, backend=backend, **options)


def asks(tokens: int = 10, model: str = "m", **fields: Any) -> RequestMetadata:
    return RequestMetadata("r", model, "text", estimated_tokens=tokens, **fields)


async def call() -> int:
    return 42
