"""Few requests at a time on the way from admission to the wire, so that each is sent soon."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Protocol, final
from weakref import WeakKeyDictionary

MOST: Final = 4
"""So many at a time. A call alone would have the loop look at its sockets at each of its steps."""
TURNS: Final = 50
"""Turns of its loop after which a request that is still not sent waits for something else: for a
connection, or for a transport of the user's own. Each of its steps takes one turn."""


class Call(Protocol):
    """A request on its way."""

    def begins(self) -> None:
        """It is as good as sent. At any time, and more than once."""


@final
class Line:
    """The requests of one event loop that are admitted and not yet sent, in order.

    A client takes milliseconds of the processor for a request. Where a hundred are admitted at
    once, the loop takes a step of each in turn, and all of them are sent when the last one is
    ready. A `window`'s slots are free again a period after they were sent: a burst would lose that
    time anew in each window, 100 requests a second some 10 % of it. One after the other, the first
    are sent at once, and so their successors are.

    Those that connect are on their way together. Many of them are sent when the last is ready, so
    they begin only then; one that is among a few begins as it connects.

    Of one loop, which it does not keep alive, and not thread-safe.
    """

    __slots__ = ("_connecting", "_inside", "_ticks", "_turns", "_waiting")

    def __init__(self) -> None:
        self._inside: set[Call] = set()
        self._connecting: set[Call] = set()
        self._waiting: OrderedDict[Call, asyncio.Future[None]] = OrderedDict()
        self._turns = 0
        self._ticks = False

    async def enter(self, who: Call) -> None:
        """Waits for the turn of `who`, who then has to `leave`, and begins if he is not crowded."""
        if not self._waiting and len(self._inside) < MOST:
            self._inside.add(who)
            self._turns = 0
            if len(self._connecting) < MOST:
                who.begins()
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting[who] = turn
        if not self._ticks:
            self._ticks = True
            loop.call_soon(self._tick, loop)
        try:
            await turn
        except BaseException:
            self._waiting.pop(who, None)
            self.leave(who)  # it may have been given its turn meanwhile
            raise

    def connect(self, who: Call) -> None:
        """`who` waits for the network from now on."""
        self._connecting.add(who)
        self._pass(who)

    def leave(self, who: Call) -> None:
        """`who` is sent, or will not be. At any time, and more than once."""
        self._connecting.discard(who)
        self._pass(who)

    def _pass(self, who: Call) -> None:
        if who in self._inside:
            self._inside.remove(who)
            self._next()

    def _next(self) -> None:
        while self._waiting and len(self._inside) < MOST:
            who, turn = self._waiting.popitem(last=False)
            if not turn.done():
                self._inside.add(who)
                self._turns = 0
                turn.set_result(None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._ticks = False
            return
        self._turns += 1
        if self._turns >= TURNS:
            for who in self._inside:
                who.begins()
            self._inside.clear()
            self._next()
        loop.call_soon(self._tick, loop)


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()


def line() -> Line:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    found = _lines.get(loop)
    if found is None:
        found = _lines[loop] = Line()
    return found
