"""What a scheduler does beside its requests: asking the provider anew, reading what answers say."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

_T = TypeVar("_T")


@final
class Chores:
    """Tasks on the event loop that the scheduler was started on, or on one of its own.

    A user's provider is bound to the loop that it was first used on, as HTTP clients are; so chores
    run where `start` was awaited, and only where a thread has started the scheduler on a loop in a
    thread of its own. Where that loop does not run when they are needed, they move for good to one
    that does: on the other one they are cancelled, should it ever run again.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own: threading.Thread | None = None
        self._tasks: dict[asyncio.Task[Any], bool] = {}  # and whether it ends by itself
        self._wanted = False
        self._lock = threading.Lock()  # whoever chooses a loop, or ends them all

    def on_this_loop(self) -> None:
        """From now on they run on the running loop."""
        with self._lock:
            self._wanted = True
            self._loop = asyncio.get_running_loop()

    def on_own_loop(self) -> None:
        """From now on they run on a loop of their own."""
        with self._lock:
            self._wanted = True
            self._loop = self._make_loop()

    def leave(self) -> None:
        """The running loop is about to end; where it is theirs, they have none from now on."""
        with self._lock:
            if self.is_this_loop() and self._own is None:
                self._loop = None

    def adopt(self, begin: Callable[[], object], own: bool = False) -> None:
        """Where their loop does not run, takes the running one or makes one; `begin()` starts them.

        Of all who find that at once, one does. Nobody does once they have been stopped. own: on no
        running one.
        """
        with self._lock:
            if not self._wanted or self.loop_runs:
                return
            loop = (None if own else running_loop()) or self._make_loop()
            self._cancel_left()
            self._loop = loop
            begin()

    def _cancel_left(self) -> None:
        """Those on the loop that they leave; if that runs again, they end in its first round.

        Who ends by itself does so there: what it has asked would have been asked for nothing.
        """
        tasks, self._tasks = self._tasks, {}

        def end() -> None:
            for task, ends in tuple(tasks.items()):
                if not ends:
                    task.cancel()

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed under them: they end no more
                self._loop.call_soon_threadsafe(end)

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            try:
                loop.run_forever()
            finally:
                loop.close()

        own = threading.Thread(target=serve, name="headway-chores", daemon=True)
        try:
            own.start()
        except BaseException:
            loop.close()
            raise
        self._own = own
        ready.wait()
        return loop

    @property
    def loop_is_gone(self) -> bool:
        """Whether the loop that they were to run on has been closed, or there is none."""
        return self._loop is None or self._loop.is_closed()

    @property
    def loop_runs(self) -> bool:
        """Whether somebody would do what is put on their loop now."""
        return self._loop is not None and self._loop.is_running()

    def has_this_task(self) -> bool:
        """Whether the running task is one of them, and not of those that they have left behind."""
        return asyncio.current_task() in self._tasks

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    def is_this_loop(self) -> bool:
        """Whether their loop is the one that runs here."""
        return self._loop is not None and running_loop() is self._loop

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]], ends: bool = False) -> None:
        """Starts what `make()` gives, from any thread. Where the loop is gone, nothing happens.

        ends: by itself, soon. Else it is for as long as they are on that loop.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            return

        def begin() -> None:
            if self._loop is not loop:  # it ends, and they have gone elsewhere since
                self.start(make, ends)
                return
            task = loop.create_task(make())
            tasks = self._tasks
            tasks[task] = ends
            task.add_done_callback(lambda done: tasks.pop(done, None))

        with contextlib.suppress(RuntimeError):  # closed just now
            if running_loop() is loop:
                begin()
            else:
                loop.call_soon_threadsafe(begin)

    def wait_for(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """What `coroutine` gives, run on their loop, from a thread that waits for it."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Cancels all of them, from any thread."""
        with self._lock:
            self._wanted = False
            loop, self._loop = self._loop, None
            own, self._own = self._own, None
            tasks, self._tasks = self._tasks, {}
        if loop is None or loop.is_closed():
            return

        def end() -> None:
            for task in tuple(tasks):
                task.cancel()
            if own is not None:
                loop.call_soon(loop.stop)

        with contextlib.suppress(RuntimeError):
            if running_loop() is loop:
                end()
            else:
                loop.call_soon_threadsafe(end)
        if own is not None:
            own.join(timeout=5.0)

    def forget(self) -> None:
        """After a fork: loop and thread are the parent's."""
        self._loop = None
        self._own = None
        self._tasks = {}
        self._wanted = False
        self._lock = threading.Lock()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if one runs here."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def until_set(event: asyncio.Event, seconds: float) -> None:
    """Until it is set; which it is after so many seconds at the latest.

    `asyncio.wait_for` loses a cancellation that comes at the same time, before Python 3.12.
    """
    if event.is_set():
        return
    timer = None
    if seconds < math.inf:
        timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        if timer is not None:
            timer.cancel()
