"""A lock for event loops and threads alike, for what happens seldom and may take long."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any, final

from headway.scheduler.chores import running_loop


@final
class Turn:
    """One task or thread at a time: `async with turn:` or `with turn:`. Not fair.

    Whoever has it and asks for it again gets a RuntimeError, and does not hang.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over: Future[None] | None = None
        self._holder: object = None

    def _claim(self) -> Future[None] | None:
        """None: it is the caller's. Else what is done when it may be asked for again."""
        me = _who()
        with self._lock:
            if self._over is None:
                self._over = Future()
                self._holder = me
                return None
            if self._holder == me:
                raise RuntimeError("a scheduler cannot be started or stopped by its own start")
            return self._over

    def _leave(self) -> None:
        with self._lock:
            over, self._over, self._holder = self._over, None, None
        assert over is not None
        over.set_result(None)

    async def __aenter__(self) -> None:
        while (over := self._claim()) is not None:
            # Whoever is cancelled while it waits must not end the others' wait.
            await asyncio.shield(asyncio.wrap_future(over))

    async def __aexit__(self, *_: object) -> None:
        self._leave()  # without an await: so it is left where a coroutine is closed, too

    def __enter__(self) -> None:
        while (over := self._claim()) is not None:
            over.result()

    def __exit__(self, *_: object) -> None:
        self._leave()


def _who() -> Any:
    return asyncio.current_task() if running_loop() is not None else threading.get_ident()
