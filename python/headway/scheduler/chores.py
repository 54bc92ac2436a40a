"""What a scheduler does beside its requests: asking the provider anew, reading what answers say."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError, wait
from time import monotonic
from typing import Any, Generic, TypeVar, final

_T = TypeVar("_T")

_LOOK = 0.5
"""Seconds after which whoever waits looks whether the loop still runs; nothing tells of its end."""
PATIENCE = 5.0
"""Seconds for which a loop may stand still until somebody else does what it was asked."""
_GRACE = 1.0
"""Seconds that what is cancelled on a loop of ours has to end."""


class LoopEnded(Exception):
    """The loop has ended before it had done what somebody waits for. Another may do it."""


@final
class Errand(Generic[_T]):
    """`make()` awaited on a loop, in a task of its own, for somebody who waits elsewhere.

    Cancelling whoever waits does not cancel it. Where its task is cancelled, that loop is ending.
    """

    def __init__(
        self,
        chores: Chores,
        make: Callable[[], Coroutine[Any, Any, _T]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """loop: None for one that is made for this alone, in a thread of its own."""
        self.over: Future[_T] = Future()
        self._chores = chores
        self._make = make
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        if loop is None:
            # Not in this thread, whose event loop asyncio.run would take away.
            context = contextvars.copy_context()
            alone = threading.Thread(
                target=lambda: context.run(asyncio.run, self._run()),
                name="headway-errand",
                daemon=True,
            )
            alone.start()
        elif running_loop() is loop:
            self._begin()
        else:
            try:
                loop.call_soon_threadsafe(self._begin)
            except RuntimeError:  # closed just now
                fail(self.over, LoopEnded())

    @property
    def has_begun(self) -> bool:
        """Whether its loop has come to it."""
        return self._loop is None or self._task is not None

    def wait(self) -> _T:
        """What it gives, for a thread. LoopEnded where nobody does it any more."""
        while not wait([self.over], _LOOK).done:
            self._look()
        return self.over.result()

    async def until_over(self) -> None:
        """Until it is over, or for a while."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # closed: nobody waits here any more
                loop.call_soon_threadsafe(over.set)

        self.over.add_done_callback(tell)
        await until_set(over, _LOOK)
        self._look()

    def _begin(self) -> None:
        assert self._loop is not None
        self._task = self._loop.create_task(self._run())
        self._chores.keep_errand(self._task, self._loop)

    async def _run(self) -> None:
        try:
            given = await self._make()
        except asyncio.CancelledError:
            if self._chores.has_this_task():
                self._chores.leave()
            fail(self.over, LoopEnded())
            raise
        except GeneratorExit:  # as garbage, somewhere, after its loop
            fail(self.over, LoopEnded())
            raise
        except BaseException as error:  # handed to whoever waits
            fail(self.over, error)
            if not isinstance(error, Exception):
                raise
        else:
            with contextlib.suppress(InvalidStateError):  # whoever waited has been told otherwise
                self.over.set_result(given)

    def _look(self) -> None:
        loop = self._loop
        if loop is None or loop.is_running() or self.over.done():
            return
        fail(self.over, LoopEnded())
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._task.cancel)


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
        self._errands: set[asyncio.Task[Any]] = set()
        self._wanted = False
        # Whoever chooses a loop, or ends them all; which may begin some in the same breath.
        self._lock = threading.RLock()

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
        """The running loop is about to end; where it is theirs, they have none from now on.

        Should it go on after all, they end there: somebody may begin them anew elsewhere.
        """
        with self._lock:
            if self.is_this_loop() and self._own is None:
                self._cancel_left()
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
        self._errands = set()  # who waits for one of them looks for himself

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
                # What is cancelled goes on for some steps, and what that has begun for some more.
                if left := asyncio.all_tasks(loop):
                    for task in left:
                        task.cancel()
                    loop.run_until_complete(asyncio.wait(left, timeout=_GRACE))
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
        task = asyncio.current_task()
        return task in self._tasks or task in self._errands

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
            with self._lock:  # both of the same moment
                here, tasks = self._loop, self._tasks
            if here is not loop:  # it ends, and they have gone elsewhere since
                self.start(make, ends)
                return
            task = loop.create_task(make())
            tasks[task] = ends
            task.add_done_callback(lambda done: tasks.pop(done, None))

        with contextlib.suppress(RuntimeError):  # closed just now
            if running_loop() is loop:
                begin()
            else:
                loop.call_soon_threadsafe(begin)

    def send(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> Errand[_T]:
        """`make()` on their loop, from anywhere.

        Where nobody runs that, on the running one, or on one that is made for this alone.
        """
        loop = self._loop
        return Errand(
            self, make, loop if loop is not None and loop.is_running() else running_loop()
        )

    async def at_home(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `make()` gives, on their loop where one runs; here, where it does not come to it."""
        while self.loop_runs and not self.is_this_loop():
            errand = self.send(make)
            end = monotonic() + PATIENCE
            while not errand.over.done() and (errand.has_begun or monotonic() < end):
                await errand.until_over()
            if not errand.over.done():
                break
            with contextlib.suppress(LoopEnded):  # elsewhere, then
                return errand.over.result()
        return await make()

    def keep_errand(self, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        """It runs here, on `loop`; where that is theirs, it ends with them."""
        if self._loop is loop:
            self._errands.add(task)
            task.add_done_callback(self._errands.discard)

    def stop(self) -> None:
        """Cancels all of them, from any thread."""
        with self._lock:
            self._wanted = False
            loop, self._loop = self._loop, None
            own, self._own = self._own, None
            tasks, self._tasks = self._tasks, {}
            errands, self._errands = self._errands, set()
        if loop is None or loop.is_closed():
            return

        def end() -> None:
            for task in (*tasks, *errands):
                task.cancel()
            if own is not None:
                loop.call_soon(loop.stop)

        with contextlib.suppress(RuntimeError):
            if running_loop() is loop:
                end()
            else:
                loop.call_soon_threadsafe(end)
        if own is not None and own is not threading.current_thread():
            own.join(timeout=5.0)


def fail(over: Future[Any], error: BaseException) -> None:
    """Ends it so, unless it has ended."""
    with contextlib.suppress(InvalidStateError):
        over.set_exception(error)


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
