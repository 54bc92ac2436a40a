"""What is done again and again on an event loop, until it is stopped from any."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Repeat:
    """Calls `action` every `interval` seconds between `start` and `stop`.

    Not thread-safe by itself: whoever owns it calls both under its own lock.
    """

    def __init__(self, action: Callable[[], object], interval: float) -> None:
        self._action = action
        self._interval = interval
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it goes on; a loop that was closed with the task in it never says it is done."""
        task = self._task
        return task is not None and not task.done() and not task.get_loop().is_closed()

    def start(self) -> None:
        """On the running loop; nothing where it goes on already."""
        if not self.alive:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def take(self) -> asyncio.Task[None] | None:
        """The task that `end` is to end, if there is one; from now on it is not ours."""
        task, self._task = (self._task if self.alive else None), None
        return task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._action()


async def end(task: asyncio.Task[None] | None) -> None:
    """Cancels what `Repeat.take` gave, and waits for it only where it is of the running loop."""
    if task is None:
        return
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        task.cancel()
        await asyncio.wait([task])
        return
    with contextlib.suppress(RuntimeError):  # closed since, and the task with it
        loop.call_soon_threadsafe(task.cancel)
