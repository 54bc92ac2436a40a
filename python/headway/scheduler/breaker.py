"""The circuit breaker of one bucket: opens after many failures, lets one probe through, closes."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, final

from headway.errors import TooManyFailedRequestsError


@final
class Breaker:
    """Counts failures of one bucket's attempts in a sliding window. From any thread.

    It opens when `most` have failed within `window` seconds and no fewer than half of what was
    tried meanwhile: few failures among many attempts are what retries are for.

    Open, it refuses for as long as the window; then one call goes out as a probe, and all others
    are refused until it has come back: well, and it closes; badly, and it is open for another
    window.

    most: so many failures within `window` seconds open it.
    """

    __slots__ = ("_failures", "_lock", "_most", "_opened_at", "_probe", "_window")

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        # When, and how many attempts there had been by then.
        self._failures: deque[tuple[float, int]] = deque(maxlen=most)
        self._opened_at: float | None = None
        self._probe: Any = None  # the call that probes; it tells when it is over
        # For a few steps at a time. Garbage that is collected in those may fail calls of its own.
        self._lock = threading.RLock()

    @property
    def is_open(self) -> bool:
        """Whether it refuses calls, or all but a probe."""
        return self._opened_at is not None

    def failed(self, call: Any, now: float, attempts: int) -> bool:
        """`call` has failed at `now`, in seconds. Returns whether this has opened it.

        attempts: how many there have been so far, this one included.
        """
        with self._lock:
            self._failures.append((now, attempts))
            if self._opened_at is not None:
                if self._probe is call:
                    self._probe = None
                    self._opened_at = now
                return False
            first, before = self._failures[0]
            if len(self._failures) < self._most or first < now - self._window:
                return False
            if attempts - before + 1 > 2 * self._most:
                return False
            self._opened_at = now
            return True

    def succeeded(self, call: Any) -> bool:
        """`call` has come back well. Returns whether this has closed it.

        Only the probe does: others went out before it opened, and say nothing of now.
        """
        with self._lock:
            if self._opened_at is None or self._probe is not call:
                return False
            self._opened_at = None
            self._probe = None
            self._failures.clear()
            return True

    def check(self, now: float) -> None:
        """Raises TooManyFailedRequestsError while it is open and no probe is due."""
        with self._lock:
            if self._opened_at is not None and not self._probe_is_due(now):
                raise self._error(now)

    def launch(self, call: Any, now: float) -> None:
        """`call` is about to go out: as the probe, or not at all. Raises as `check`.

        call: whatever has a true `over` once it has ended, so that a probe that was cancelled does
        not keep the next one waiting.
        """
        with self._lock:
            if self._opened_at is None:
                return
            if not self._probe_is_due(now):
                raise self._error(now)
            self._probe = call

    def _probe_is_due(self, now: float) -> bool:
        if self._opened_at is None or now - self._opened_at < self._window:
            return False
        return self._probe is None or bool(self._probe.over)

    def _error(self, now: float) -> TooManyFailedRequestsError:
        count = sum(1 for at, _ in self._failures if at >= now - self._window)
        count = max(count, self._most)
        return TooManyFailedRequestsError(
            f"Too many failed requests: {count} failures in {self._window:g} seconds",
            failure_count=count,
            window_seconds=self._window,
            threshold=self._most,
        )
