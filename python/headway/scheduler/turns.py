"""A lock for event loops and threads alike, for what happens seldom and may take long."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextvars import ContextVar
from typing import final

_holding: ContextVar[tuple[Future[None], ...]] = ContextVar("_holding", default=())
"""The turns that are held here. By context, since a holder has part of it done by other tasks."""


@final
class Turn:
    """One task or thread at a time: `async with turn:` or `with turn:`. Not fair.

    Whoever has it and asks for it again gets a RuntimeError, and does not hang.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over: Future[None] | None = None

    def _claim(self) -> Future[None] | None:
        """None: it is the caller's. Else what is done when it may be asked for again."""
        held = _holding.get()
        with self._lock:
            if self._over is None:
                self._over = Future()
                # Those that are over: of contexts that were copied while somebody held them.
                _holding.set((*(each for each in held if not each.done()), self._over))
                return None
            if self._over in held:
                raise RuntimeError("a scheduler cannot be started or stopped by its own start")
            return self._over

    def _leave(self) -> None:
        with self._lock:
            over, self._over = self._over, None
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
