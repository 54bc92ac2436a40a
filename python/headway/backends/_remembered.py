"""What a backend in memory only remembers for a while: failures, and what providers said."""

from __future__ import annotations

import threading
import time
from typing import Any

from headway._core import ManualClock
from headway.backends import _fork
from headway.backends._fading import Fading, copied
from headway.backends._failures import Failures
from headway.backends.base import BaseBackend

MOST_MODELS = 10_000


class Remembered(BaseBackend):
    """The part of MemoryBackend that has nothing to do with words; its lock and its clocks.

    clock: None for the real one.
    """

    DEFAULT_FAILURE_WINDOW = 30.0
    DEFAULT_FAILURE_THRESHOLD = 20

    def __init__(self, namespace: str, clock: ManualClock | None) -> None:
        super().__init__(namespace)
        self._clock = clock
        self._lock = threading.Lock()
        _fork.guard(self, self._lock)
        self._models: Fading[str, dict[str, Any]] = Fading(0, MOST_MODELS)
        self._buckets: Fading[None, dict[str, Any]] = Fading(0)
        self._failures = Failures(self.DEFAULT_FAILURE_THRESHOLD, self.DEFAULT_FAILURE_WINDOW)

    # Failures.

    async def record_failure(self, error_type: str, error_message: str = "") -> None:
        """A request has failed. Only the instant is kept."""
        with self._lock:
            self._failures.record(self._now())

    async def get_failure_count(self, window_seconds: float | None = None) -> int:
        """How many have within so long, 30 s if None; at most 10 000 are told apart."""
        with self._lock:
            return self._failures.count(self._now(), window_seconds)

    async def is_circuit_broken(self) -> bool:
        """Whether 20 have failed within 30 s, or a break was forced and lasts."""
        with self._lock:
            return self._failures.broken_for(self._now()) > 0

    async def clear_failures(self) -> None:
        """Forgets them; a forced break lasts as long as it was to."""
        with self._lock:
            self._failures.clear()

    async def force_circuit_break(self, duration: float) -> None:
        """Refuses everything for so many seconds from now; 0 ends it."""
        with self._lock:
            self._failures.forced_until = self._now() + duration

    # What providers said, for a while.

    async def cache_bucket_info(self, bucket_data: dict[str, Any], ttl_seconds: int = 3600) -> None:
        """Keeps what is known of buckets for so long."""
        with self._lock:
            self._buckets.put(None, dict(bucket_data), self._now(), ttl_seconds)

    async def get_cached_bucket_info(self) -> dict[str, Any] | None:
        """What was kept, if that is not too long ago."""
        with self._lock:
            return copied(self._buckets.get(None, self._now()))

    async def cache_model_info(
        self, model: str, model_info: dict[str, Any], ttl_seconds: int = 3600
    ) -> None:
        """Keeps what is known of a model for so long; at most of 10 000 models."""
        with self._lock:
            self._models.put(model, dict(model_info), self._now(), ttl_seconds)

    async def get_cached_model_info(self, model: str) -> dict[str, Any] | None:
        """What was kept, if that is not too long ago."""
        with self._lock:
            return copied(self._models.get(model, self._now()))

    # With the lock held.

    def _now(self) -> float:
        return time.monotonic() if self._clock is None else self._clock.now()

    def _wall(self) -> float:
        # A ManualClock also shows what the wall's would.
        return time.time() if self._clock is None else self._clock.now()

    def _purge_remembered(self, now: float) -> None:
        self._models.purge(now)
        self._buckets.purge(now)

    def _forget_all(self) -> None:
        self._models.clear()
        self._buckets.clear()
        self._failures.clear()
        self._failures.forced_until = 0.0
