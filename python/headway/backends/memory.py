"""MemoryBackend: the state of limits in this process, over the words that schedulers use."""

from __future__ import annotations

from headway._core import ManualClock
from headway._repeat import Repeat, end
from headway.backends._verbs import Verbs
from headway.backends.base import HealthCheckResult
from headway.errors import ConfigurationError


class MemoryBackend(Verbs):
    """Keeps limits of requests and tokens a minute, by key, for one process.

    namespace: for the record, nothing is shared. key_ttl: seconds after which a key that was not
    asked for, and of which nothing is in use, is forgotten; 0 or less for never.
    released_reservations_ttl: seconds for which a second release is known as one.
    released_reservations_cleanup_interval: seconds between two cleanups, after `start`; without it
    each call clears away a little of what is due, so nothing grows. clock: None for the real one.

    A limit is kept as a `window`: never more in *any* 60 s, where a reservation counts until 60 s
    after its release or the response to it, whichever is first, and at most for 360 s in all.
    A reservation that nobody releases ends after 300 s and gives nothing back.

    Safe from any number of threads and event loops: the lock is a thread's, held for a moment and
    never across an await.
    """

    def __init__(
        self,
        namespace: str = "rate_limiter_memory",
        key_ttl: float = 3600,
        released_reservations_ttl: float = 3600.0,
        released_reservations_cleanup_interval: float = 1800.0,
        *,
        clock: ManualClock | None = None,
    ) -> None:
        super().__init__(namespace, key_ttl, released_reservations_ttl, clock)
        # Not `<= 0`: a nan must not pass.
        if not released_reservations_cleanup_interval > 0:
            raise ConfigurationError(
                "released_reservations_cleanup_interval must be positive, got "
                f"{released_reservations_cleanup_interval}"
            )
        self.key_ttl = key_ttl
        self.released_reservations_ttl = released_reservations_ttl
        self.released_reservations_cleanup_interval = released_reservations_cleanup_interval
        self._cleaning = Repeat(self._clean, released_reservations_cleanup_interval)

    async def start(self) -> None:
        """Begins to clean up now and then, on the running loop, until `stop`."""
        with self._lock:
            self._cleaning.start()

    async def stop(self) -> None:
        """Ends that, without waiting for it on another loop; what is held stays."""
        with self._lock:
            cleaning = self._cleaning.take()
        await end(cleaning)

    # The backend itself.

    async def health_check(self) -> HealthCheckResult:
        """Always healthy: there is nothing that could be out of reach."""
        stats = await self.get_all_stats()
        counts = ("states_count", "rate_limits_count", "reservations_count", "circuit_broken")
        metadata = {name: stats[name] for name in counts}
        metadata["failures_count"] = stats["total_failures"]
        return HealthCheckResult(True, "memory", self.namespace, metadata=metadata)

    def _clean(self) -> None:
        with self._lock:
            self._purge(self._now())
