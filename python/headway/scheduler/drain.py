"""The end of a scheduler's run: what is on its way ends by itself, or is told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, final

from headway._log import fields
from headway.scheduler.chores import until_set

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")

_GRACE = 5.0
"""Seconds for which those are waited for whom it has told to end: user code may ignore it."""


@final
class Drain:
    """Waits until nothing of one scheduler is on its way any more; told so by the core."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()
        self._patiences: list[float] = []  # of all who want it to end
        self._end = 0.0
        self._wake: Callable[[], object] | None = None  # while it waits

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        return self._scheduler._unfinished() > 0

    @contextlib.contextmanager
    def hurry(self, patience: float) -> Iterator[None]:
        """In it, somebody waits for its end, which is to be within so many seconds from now.

        Where it has not begun, from when it does. From any thread.
        """
        end = time.monotonic() + patience
        with self._lock:
            self._patiences.append(patience)
            sooner = end < self._end
            if sooner:
                self._end = end
        wake = self._wake
        if sooner and wake is not None:
            wake()
        try:
            yield
        finally:
            with self._lock:
                self._patiences.remove(patience)

    def look_again(self) -> None:
        """A thread's request is not on its way any more. From any thread."""
        wake = self._wake
        if wake is not None:
            wake()

    async def wait(self, patience: float) -> None:
        """Until nothing is, for `patience` seconds; then what is left is told to end.

        Whoever is cancelled in it, or closed, tells them at once, and waits no more.
        """
        loop = asyncio.get_running_loop()
        idle = asyncio.Event()
        with self._woken_by(lambda: loop.call_soon_threadsafe(idle.set)):
            for left in self._lasting(patience, idle.clear):
                await until_set(idle, left)

    def block(self, patience: float) -> None:
        """As `wait`, for a thread."""
        idle = threading.Event()
        with self._woken_by(idle.set):
            for left in self._lasting(patience, idle.clear):
                idle.wait(min(left, threading.TIMEOUT_MAX))

    @contextlib.contextmanager
    def _woken_by(self, wake: Callable[[], object]) -> Iterator[None]:
        def told() -> None:
            with contextlib.suppress(RuntimeError):  # its loop was closed
                wake()

        self._wake = told
        self._scheduler._when_idle(told)
        try:
            yield
        except BaseException:
            self._tell_all()
            raise
        finally:
            self._scheduler._when_idle(None)
            self._wake = None
            self._end = 0.0

    def _lasting(self, patience: float, forget: Callable[[], object]) -> Iterator[float]:
        """While something is on its way: seconds to wait for the next word.

        forget: forgets the word. Before anybody looks, or what comes in between would be lost.
        """
        for call in self._scheduler._live():
            if call.loop is not None and call.loop.is_closed():
                abandon(call)
        with self._lock:
            self._end = time.monotonic() + min([patience, *self._patiences])
        yield from self._until(lambda: self._end, forget)
        self._end = 0.0  # nobody's hurry shortens the grace
        # Even where nobody is waited for: a thread whose function still runs is to try no more.
        self._tell_all()
        if not self.busy:
            return
        grace = time.monotonic() + _GRACE
        yield from self._until(lambda: grace, forget)
        if unfinished := self._scheduler._unfinished():
            _logger.warning(
                "stopped, with %d request(s) that do not end though they were told to",
                unfinished,
                extra=fields("stopped_unfinished", requests=unfinished),
            )

    def _until(self, end: Callable[[], float], forget: Callable[[], object]) -> Iterator[float]:
        while True:
            forget()
            left = end() - time.monotonic()
            if left <= 0 or not self.busy:
                return
            yield left

    def _tell_all(self) -> None:
        """What is still here is not to go on."""
        for call in self._scheduler._live():
            try:
                call._stop()
            except RuntimeError:  # its loop is closed
                abandon(call)
        for task in tuple(self._scheduler._handled):
            if task.get_loop().is_closed():
                self._scheduler._handled.discard(task)
        for blocked in self._scheduler._blocking.copy():
            blocked.stop()
        self._scheduler._stop_blocked()


def abandon(call: Any) -> None:
    """Ends a call whose loop is closed: nobody can go on with it, nor hears what becomes of it."""
    try:
        call.close()
    except Exception as error:  # of its function, which is ended where it stands
        _logger.warning(
            "a request of a loop that is closed raised %s as it was ended",
            type(error).__name__,
            extra=fields("abandoned_raised", error=type(error).__name__),
        )
