"""A provider's patience with clients whose requests fail too often."""

from __future__ import annotations

from collections import deque


class Patience:
    """After more than `most` failures in `period` seconds, all is refused for as many seconds.

    Instants are nanoseconds of one clock and never decrease. What is refused for this reason is
    no failure itself: it would never end.
    """

    def __init__(self, most: int, period: float) -> None:
        self.reason = f"more than {most} failures in {period:g}s"
        self._most = most
        self._period = round(period * 1e9)
        self._failures: deque[int] = deque()
        self._lost_until = 0

    def fail(self, now: int) -> None:
        """Notes a request that has failed."""
        self._failures.append(now)
        while self._failures[0] + self._period <= now:
            self._failures.popleft()
        if len(self._failures) > self._most:
            self._failures.clear()
            self._lost_until = now + self._period

    def lost(self, now: int) -> bool:
        """Whether a request is refused now, whatever it is."""
        return now < self._lost_until
