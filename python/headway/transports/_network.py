"""How long the network needs to carry a request to its host, as connecting shows it."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, final

RECENT = 60.0
"""Seconds for which a delay counts as recent."""

# Where Linux's `struct tcp_info` keeps the smoothed round-trip time, in microseconds.
_RTT = struct.Struct("@I")
_RTT_OFFSET = 68


@final
class NetworkDelays:
    """The largest recent delay of each host. Thread-safe.

    A host that has told nothing for a while keeps the last that it has told: connections live
    longer than `RECENT`, and their delay is still the best that is known.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        # By host: (when, delay) with falling delays, so the first is always the largest.
        self._seen: dict[str, deque[tuple[float, float]]] = {}
        self._lock = threading.Lock()
        # Whether what sends tells of it, as far as is known: `_Marks`.
        self._traced = True

    def note(self, host: str, seconds: float) -> None:
        """`host` has just shown a delay of this many seconds."""
        with self._lock:
            seen = self._seen.setdefault(host, deque())
            while seen and seen[-1][1] <= seconds:
                seen.pop()
            seen.append((self._clock(), seconds))

    def largest(self, host: str) -> float:
        """The largest recent delay of `host` in seconds; 0 where nothing is known about it."""
        with self._lock:
            seen = self._seen.get(host)
            if not seen:
                return 0.0
            oldest = self._clock() - RECENT
            while len(seen) > 1 and seen[0][0] < oldest:
                seen.popleft()
            return seen[0][1]


def round_trip(connection: Any) -> float | None:
    """The round-trip time in seconds that the kernel measured while connecting, or None.

    What an event loop sees of connecting contains its own queue, the look-up of the name and, in a
    burst, every other connection's work; only the kernel sees the network alone. None where it
    tells nobody: not Linux, no TCP, or a loop that hides its sockets.
    """
    if sys.platform != "linux" or connection is None or connection.family == socket.AF_UNIX:
        return None
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_OFFSET + _RTT.size)
    except (OSError, TypeError, AttributeError):
        return None
    if len(told) < _RTT_OFFSET + _RTT.size:
        return None
    microseconds: int = _RTT.unpack_from(told, _RTT_OFFSET)[0]
    return microseconds / 1e6
