"""What was seen of requests that were only watched."""

from __future__ import annotations

import threading
from typing import final

from headway.limiter import Observed


@final
class Watch:
    """What was seen of one bucket's requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = Observed(0, 0, 0.0, 0, 0)

    @property
    def seen(self) -> Observed | None:
        """So far; None where nothing was watched."""
        return self._seen if self._seen.requests else None

    def add(self, waits: bool, seconds: float, refused: bool) -> None:
        """One more request."""
        with self._lock:
            seen = self._seen
            self._seen = Observed(
                seen.requests + 1,
                seen.would_have_waited + waits,
                seen.would_have_waited_seconds + seconds,
                seen.refusals + refused,
                seen.refusals_avoided + (refused and waits),
            )
