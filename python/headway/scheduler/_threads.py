"""Threads for calls that may block; none of them keeps the interpreter from exiting."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, final

_MOST_LOST = 8


@final
class _Work:
    """One call. running: on a thread. lost: nobody waits for it any more, and it goes on."""

    __slots__ = ("function", "future", "loop", "lost", "running")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.running = False
        self.lost = False


@final
class Threads:
    """Up to `most` threads, made when they are needed, gone after a while without work.

    One whose call was given up on and goes on is replaced, up to _MOST_LOST times as many: what
    hangs for good is not to keep the others from being called.

    Not `concurrent.futures`: at exit that waits for its threads, and what these call is somebody
    else's and may never return.
    """

    def __init__(self, most: int, name: str, idle: float = 10.0) -> None:
        self._most = most
        self._name = name
        self._idle = idle
        # All that follows is looked at and changed under the lock of `_put` alone: a thread that
        # has taken a call, and has not yet said so, would be counted on for the next one as well.
        self._put = threading.Condition(threading.Lock())
        self._work: deque[_Work] = deque()
        self._threads = 0
        self._lost = 0
        self._waiting = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        """What `function()` gives, called on one of the threads."""
        work = _Work(function)
        with self._put:
            self._work.append(work)
            self._put.notify()
        self._start()
        try:
            return await work.future
        finally:
            with self._put:
                lost = work.lost = work.running
                self._lost += lost
            if lost:
                self._start()  # for those behind it

    def _start(self) -> None:
        with self._put:
            most = self._most + min(self._lost, _MOST_LOST * self._most)
            start = self._waiting < len(self._work) and self._threads < most
            if start:
                self._threads += 1
        if not start:
            return
        try:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        except RuntimeError:  # no more threads: let a later call try again
            with self._put:
                self._threads -= 1
                alone = self._threads == self._lost
            if alone:
                raise

    def _take(self) -> _Work | None:
        """The next call, begun; None after a while without any, and this thread counts no more."""
        with self._put:
            while True:
                while self._work:
                    work = self._work.popleft()
                    # Whoever waited may have given up: those behind it need not wait as well.
                    if not work.future.done():
                        work.running = True
                        return work
                self._waiting += 1
                called = self._put.wait(self._idle)
                self._waiting -= 1
                if not called and not self._work:
                    self._threads -= 1
                    return None

    def _serve(self) -> None:
        while (work := self._take()) is not None:
            try:
                result, error = work.function(), None
            except BaseException as raised:  # handed to whoever awaits it
                result, error = None, raised
            with self._put:
                work.running = False
                self._lost -= work.lost
                # It was replaced meanwhile.
                surplus = self._threads - self._lost > self._most
                self._threads -= surplus
            # The loop may have been closed meanwhile: nobody awaits it any more.
            with contextlib.suppress(RuntimeError):
                work.loop.call_soon_threadsafe(_resolve, work.future, result, error)
            del work, result, error
            if surplus:
                return


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("StopIteration"))
    else:
        future.set_exception(error)
