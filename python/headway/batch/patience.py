"""A bound on the time that a block of code may take."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout as patience
else:
    import asyncio
    from types import TracebackType
    from typing import final

    @final
    class patience:
        """Cancels the block when its seconds are over, and raises asyncio.TimeoutError from it.

        What `asyncio.timeout` is from Python 3.11 on.
        """

        def __init__(self, seconds: float) -> None:
            self._seconds = seconds
            self._over = False

        async def __aenter__(self) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._task = task
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._seconds, self._end)

        def _end(self) -> None:
            self._over = True
            self._task.cancel()

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            self._timer.cancel()
            if self._over and kind is asyncio.CancelledError:
                raise asyncio.TimeoutError from error


__all__ = ["patience"]
