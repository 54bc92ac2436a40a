"""Failures of late, and whether there are so many that nothing should be sent."""

from __future__ import annotations

from collections import deque

# More are not told apart: whatever threshold there is has been passed long before.
_MOST = 10_000


class Failures:
    """Counts failures by their instants, in seconds of one clock that the caller reads.

    The caller holds a lock.
    """

    def __init__(self, threshold: int, window: float) -> None:
        self.threshold = threshold
        self.window = window
        self.total = 0
        self.forced_until = 0.0
        self._instants: deque[float] = deque(maxlen=_MOST)

    def record(self, now: float) -> None:
        self.total += 1
        self._instants.append(now)

    def count(self, now: float, window: float | None = None) -> int:
        """Within `window` seconds; None for its own. At most 10 000."""
        begin = now - (self.window if window is None else window)
        found = 0
        for instant in reversed(self._instants):
            if instant <= begin:
                break
            found += 1
        return found

    def broken_for(self, now: float) -> float:
        """Seconds until so few have failed, and no forced break is left; 0.0 for now."""
        wait = max(0.0, self.forced_until - now)
        if len(self._instants) >= self.threshold:
            wait = max(wait, self._instants[-self.threshold] + self.window - now)
        return wait

    def clear(self) -> None:
        self.total = 0
        self._instants.clear()
