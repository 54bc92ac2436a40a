"""The end of a scheduler's run: what is on its way ends by itself, or is told to."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from headway.scheduler.chores import running_loop

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_GRACE = 5.0
"""Seconds for which those are waited for whom it has told to end: user code may ignore it."""


@final
class Drain:
    """Waits until nothing of one scheduler is suspended any more; told so by the core."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._watcher: Callable[[], object] | None = None

    def tell(self) -> None:
        """Nothing is suspended any more. Called by the core, on any thread."""
        watcher = self._watcher
        if watcher is not None:
            with contextlib.suppress(RuntimeError):  # its loop was closed
                watcher()

    @property
    def busy(self) -> bool:
        """Whether something is suspended."""
        return self._scheduler._suspended() > 0

    async def wait(self, patience: float) -> None:
        """Until nothing is, for `patience` seconds; then what is left is told to end."""
        loop = asyncio.get_running_loop()
        idle = asyncio.Event()
        self._watcher = lambda: loop.call_soon_threadsafe(idle.set)
        try:
            await self._until(idle, patience)
            if self.busy:
                self.tell_all()
                await self._until(idle, _GRACE)
        finally:
            self._watcher = None

    def block(self, patience: float) -> None:
        """As `wait`, for a thread."""
        idle = threading.Event()
        self._watcher = idle.set
        try:
            self._block_until(idle, patience)
            if self.busy:
                self.tell_all()
                self._block_until(idle, _GRACE)
        finally:
            self._watcher = None

    def tell_all(self) -> None:
        """What is still here is not to go on."""
        here = running_loop()
        for call in self._scheduler._live():
            if call.loop is here and here is not None:
                call._stop()
                continue
            # Where its loop is closed, nobody awaits it any more.
            with contextlib.suppress(RuntimeError, AttributeError):
                call.loop.call_soon_threadsafe(call._stop)
        self._scheduler._stop_blocked()

    async def _until(self, idle: asyncio.Event, patience: float) -> None:
        end = time.monotonic() + patience
        while self.busy and (left := end - time.monotonic()) > 0:
            idle.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(idle.wait(), left)

    def _block_until(self, idle: threading.Event, patience: float) -> None:
        end = time.monotonic() + patience
        while self.busy and (left := end - time.monotonic()) > 0:
            idle.wait(left)
            idle.clear()
