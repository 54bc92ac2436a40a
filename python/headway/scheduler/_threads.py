"""Threads for calls that may block; none of them keeps the interpreter from exiting."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, final

_Work = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


@final
class Threads:
    """Up to `most` threads, made when they are needed, gone after a while without work.

    Not `concurrent.futures`: at exit that waits for its threads, and what these call is somebody
    else's and may never return.
    """

    def __init__(self, most: int, name: str, idle: float = 10.0) -> None:
        self._most = most
        self._name = name
        self._idle = idle
        self._work: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        """What `function()` gives, called on one of the threads."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._work.put((function, loop, future))
        with self._lock:
            start = self._waiting < self._work.qsize() and self._threads < self._most
            if start:
                self._threads += 1
        if start:
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            except RuntimeError:  # no more threads: let a later call try again
                with self._lock:
                    self._threads -= 1
                    alone = self._threads == 0
                if alone:
                    raise
        return await future

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._waiting += 1
            try:
                function, loop, future = self._work.get(timeout=self._idle)
            except queue.Empty:
                with self._lock:
                    self._waiting -= 1
                    # Put just now, by somebody who counted on this thread.
                    if self._work.qsize() and self._threads <= self._most:
                        continue
                    self._threads -= 1
                return
            with self._lock:
                self._waiting -= 1
            if future.done():  # whoever waited has given up: those behind it need not wait as well
                continue
            try:
                result, error = function(), None
            except BaseException as raised:  # handed to whoever awaits it
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop was closed meanwhile: nobody awaits it any more
                continue
            finally:
                del function, result, error


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("StopIteration"))
    else:
        future.set_exception(error)
