"""What a Limiter lacks under a transport: refusals hold it up, and no body keeps its place."""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Mapping
from time import monotonic
from typing import Any, final

from headway import Limiter, _core
from headway._bodies import BodyEnd
from headway._log import fields
from headway.retry import told_wait
from headway.scheduler.open_streams import STREAM_PATIENCE

_logger = logging.getLogger("headway")
_LOOKS = 16
"""All open bodies are looked at so many times within that at most: one may end so much later."""


def hold_up(limiter: Limiter, headers: Mapping[str, str]) -> None:
    """A refusal's headers ask to wait: whatever the limiter is asked for, waits as long."""
    told = told_wait(headers)
    if told is None:
        return
    # Only the core's bucket is of interest, which the limiter shares with whoever looks at it so.
    bucket = _core.BucketCore(_core.SchedulerCore(1, None), limiter, "limiter", None)
    # A random part more, for who was told the same must not meet again; the first of many has it.
    spare = 0.0 if bucket.cooled_for else random.random() * min(0.1 * told, 1.0)
    bucket.cool(told + spare)


@final
class OpenBodies:
    """Settles those that were not read for `patience` seconds. They can still be read afterwards.

    A limiter has no chores; so a thread does it, one for all, while bodies are open and for as long
    after.
    """

    def __init__(self, patience: float = STREAM_PATIENCE) -> None:
        self.patience = patience
        self._open: set[weakref.ref[BodyEnd[Any]]] = set()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._told = False

    def watch(self, body: BodyEnd[Any]) -> None:
        """It is open from now on. From any thread."""
        self._open.add(weakref.ref(body, self._open.discard))
        if self._looks():
            return
        with self._lock:
            if not self._looks():
                self._begin(self.patience)

    def _looks(self) -> bool:
        timer = self._timer
        # In a forked child, the parent's is not alive.
        return timer is not None and timer.is_alive()

    def _begin(self, wait: float) -> None:
        timer = threading.Timer(wait, self._look)
        timer.name = "headway-bodies"
        timer.daemon = True
        self._timer = None
        try:
            timer.start()
        except RuntimeError:  # no thread can be had now; the next body tries again
            return
        self._timer = timer

    def _look(self) -> None:
        """Settles what is due; looks again when something may be."""
        now = monotonic()
        wait = self.patience
        for reference in tuple(self._open):
            body = reference()
            if body is None or not body.is_open:
                self._open.discard(reference)
                continue
            left = body.unread_since + self.patience - now
            if left > 0:
                wait = min(wait, left)
            elif body.leave():
                self._tell()
        with self._lock:
            self._timer = None
            if self._open:
                self._begin(max(wait, self.patience / _LOOKS))

    def _tell(self) -> None:
        if self._told:
            return
        self._told = True
        _logger.warning(
            "a body that nobody has read for %g s was settled, its place in the limiter given back",
            self.patience,
            extra=fields("idle_body_settled"),
        )


OPEN_BODIES = OpenBodies()
"""Those of all limiters."""
