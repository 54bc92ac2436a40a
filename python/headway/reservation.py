"""ReservationTracker: which reservations of which request are still out. It asks no backend."""

from __future__ import annotations

import heapq
import itertools
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple, final

from headway._repeat import Repeat, end
from headway.errors import ConfigurationError, ReservationCapacityError

_SMALL = 1024
"""So many dead heap entries are never worth a compaction."""


@dataclass
class ReservationContext:
    """A reservation that was made. created_at: seconds of the monotonic clock."""

    reservation_id: str
    bucket_id: str
    estimated_tokens: int
    created_at: float = field(default_factory=monotonic)


class _Aged(NamedTuple):
    """A heap entry, dead once the tracker holds another reservation, or none, in its place."""

    created_at: float
    order: int
    request_id: str
    bucket_id: str


@final
class ReservationTracker:
    """Reservations by request and bucket, at most `max_reservations` of them.

    max_reservation_age: seconds after which one counts as stale, and is dropped by the cleanup that
    `start` begins or when there is no room. stale_cleanup_interval: seconds between two cleanups.

    Every operation takes time logarithmic in what is held, or constant. Safe from any number of
    threads and event loops: the lock is a thread's, held for a moment and never across an await.
    """

    def __init__(
        self,
        max_reservations: int = 10_000,
        max_reservation_age: float = 240.0,
        stale_cleanup_interval: float = 60.0,
    ) -> None:
        if max_reservations < 1:
            raise ConfigurationError(f"max_reservations must be at least 1, got {max_reservations}")
        # Not `< 0` and `<= 0`: a nan must not pass.
        if not max_reservation_age >= 0:
            raise ConfigurationError(
                f"max_reservation_age must be non-negative, got {max_reservation_age}"
            )
        if not stale_cleanup_interval > 0:
            raise ConfigurationError(
                f"stale_cleanup_interval must be positive, got {stale_cleanup_interval}"
            )
        self.max_reservations = max_reservations
        self.max_reservation_age = max_reservation_age
        self.stale_cleanup_interval = stale_cleanup_interval
        self._lock = threading.Lock()
        self._requests: dict[str, dict[str, tuple[int, ReservationContext]]] = {}
        self._count = 0
        # Whoever ends a reservation leaves its heap entry behind: to look for it would be a scan.
        self._heap: list[_Aged] = []
        self._orders = itertools.count()
        self._cleanup = Repeat(self._drop_stale, stale_cleanup_interval)

    @property
    def reservation_count(self) -> int:
        """How many reservations are out."""
        return self._count

    @property
    def request_count(self) -> int:
        """How many requests have some."""
        return len(self._requests)

    @property
    def stale_entry_ratio(self) -> float:
        """The share of the heap's entries whose reservation has gone; 0.0 where there are none."""
        with self._lock:
            size = len(self._heap)
            return (size - self._count) / size if size else 0.0

    async def start(self) -> None:
        """Begins to drop stale reservations now and then, on the running loop, until `stop`."""
        with self._lock:
            self._cleanup.start()

    async def stop(self) -> None:
        """Ends what `start` began, without waiting for that on another loop; what is held stays."""
        with self._lock:
            cleanup = self._cleanup.take()
        await end(cleanup)

    async def store(
        self, request_id: str, bucket_id: str, reservation_id: str, estimated_tokens: int
    ) -> None:
        """Holds a reservation, in the place of the one of this request and bucket if there is one.

        Raises ReservationCapacityError where there is no room and nothing stale to make some.
        """
        with self._lock:
            now = monotonic()
            replaced = bucket_id in self._requests.get(request_id, ())
            if not replaced and self._count >= self.max_reservations:
                self._take_older(now - self.max_reservation_age)
                if self._count >= self.max_reservations:
                    raise ReservationCapacityError(
                        f"Reservation tracker at capacity ({self.max_reservations})"
                    )
            order = next(self._orders)
            context = ReservationContext(reservation_id, bucket_id, estimated_tokens, now)
            self._requests.setdefault(request_id, {})[bucket_id] = (order, context)
            self._count += not replaced
            heapq.heappush(self._heap, _Aged(now, order, request_id, bucket_id))
            # At least half of it is dead then, so the operations that left it so have paid for it.
            if len(self._heap) > 2 * self._count + _SMALL:
                self._compact()

    async def get(self, request_id: str, bucket_id: str) -> ReservationContext | None:
        """The reservation of this request in this bucket."""
        with self._lock:
            held = self._requests.get(request_id, {}).get(bucket_id)
            return None if held is None else held[1]

    async def get_and_clear(
        self, request_id: str, bucket_id: str | None = None
    ) -> ReservationContext | None:
        """Takes out the reservation of this request in this bucket; None means in any one."""
        with self._lock:
            held = self._requests.get(request_id)
            if not held:
                return None
            return self._take(request_id, next(iter(held)) if bucket_id is None else bucket_id)

    async def clear_all_for_request(self, request_id: str) -> list[ReservationContext]:
        """Takes out all reservations of this request."""
        with self._lock:
            held = self._requests.pop(request_id, {})
            self._count -= len(held)
            return [context for _, context in held.values()]

    async def get_and_clear_stale(self, cutoff_time: float) -> list[ReservationContext]:
        """Takes out, oldest first, what was stored before `cutoff_time` (monotonic seconds)."""
        with self._lock:
            return self._take_older(cutoff_time)

    def compact_heap(self) -> int:
        """Drops the heap entries whose reservation has gone; how many. Linear in what is held."""
        with self._lock:
            return self._compact()

    def _take(self, request_id: str, bucket_id: str) -> ReservationContext | None:
        held = self._requests.get(request_id, {})
        taken = held.pop(bucket_id, None)
        if taken is None:
            return None
        self._count -= 1
        if not held:
            del self._requests[request_id]
        return taken[1]

    def _take_older(self, cutoff: float) -> list[ReservationContext]:
        taken: list[ReservationContext] = []
        while self._heap and self._heap[0].created_at < cutoff:
            aged = heapq.heappop(self._heap)
            if self._lives(aged):
                context = self._take(aged.request_id, aged.bucket_id)
                assert context is not None
                taken.append(context)
        return taken

    def _lives(self, aged: _Aged) -> bool:
        held = self._requests.get(aged.request_id, {}).get(aged.bucket_id)
        return held is not None and held[0] == aged.order

    def _compact(self) -> int:
        before = len(self._heap)
        self._heap = [aged for aged in self._heap if self._lives(aged)]
        heapq.heapify(self._heap)
        return before - len(self._heap)

    def _drop_stale(self) -> None:
        with self._lock:
            self._take_older(monotonic() - self.max_reservation_age)
