"""One question for all who ask it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar, final

_T = TypeVar("_T")


@final
class Once(Generic[_T]):
    """Asks once for all who want to know the same at once, on each loop."""

    def __init__(self) -> None:
        self._asking: dict[tuple[int, Hashable], asyncio.Future[_T]] = {}

    async def ask(self, what: Hashable, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `ask()` gives, or what somebody is asking already."""
        loop = asyncio.get_running_loop()
        asked = (id(loop), what)
        future = self._asking.get(asked)
        if future is None or future.done() or future.get_loop() is not loop:
            future = loop.create_task(ask())
            self._asking[asked] = future
            future.add_done_callback(lambda _: self._asking.pop(asked, None))
        # Whoever gives up must not take the others' answer with him.
        return await asyncio.shield(future)
