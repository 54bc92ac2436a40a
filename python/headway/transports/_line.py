"""Few requests at a time on the way from admission to the wire, so that each is sent soon."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Protocol, final
from weakref import WeakKeyDictionary

MOST: Final = 4
"""So many at a time. A call alone would have the loop look at its sockets at each of its steps."""
TURNS: Final = 50
LONGEST: Final = 0.01
"""Turns of its loop, or seconds, after which a request that is still not sent waits for something
else: for a connection, or for a transport of the user's own. Each of its steps takes one turn."""


class Call(Protocol):
    """A request on its way."""

    def is_lined(self) -> bool:
        """Whether its transport is one that tells when it has been sent, as far as is known."""

    def is_late(self) -> None:
        """It has had its time, and is not known to be sent."""


@final
class Line:
    """The requests of one event loop that are admitted and not yet sent, in order.

    A client takes milliseconds of the processor for a request. Where a hundred are admitted at
    once, the loop takes a step of each in turn, and all of them are sent when the last one is
    ready. A `window`'s slots are free again a period after they were sent: a burst would lose that
    time anew in each window, 100 requests a second some 10 % of it. One after the other, the first
    are sent at once, and so their successors are.

    Of one loop, which it keeps alive only while somebody waits, and not thread-safe.
    """

    __slots__ = ("_inside", "_ticks", "_turns", "_waiting")

    def __init__(self) -> None:
        # Since which of our turns, and which instant of the loop's clock.
        self._inside: dict[Call, tuple[int, float]] = {}
        self._waiting: OrderedDict[Call, asyncio.Future[None]] = OrderedDict()
        self._turns = 0
        self._ticks = False

    async def enter(self, who: Call) -> None:
        """Waits for the turn of `who`, who has to `leave` when he has had it."""
        if not who.is_lined():
            return
        loop = asyncio.get_running_loop()
        if not self._waiting and len(self._inside) < MOST:
            self._inside[who] = self._turns, loop.time()
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting[who] = turn
        if not self._ticks:
            self._tick_soon(loop)
        try:
            await turn
        except BaseException:
            self._waiting.pop(who, None)
            self.leave(who)  # it may have been given its turn meanwhile
            raise

    def leave(self, who: Call) -> None:
        """`who` is sent, waits for the network, or will not be sent. At any time, and often."""
        if self._inside.pop(who, None) is not None:
            self._next()

    def _next(self) -> None:
        while self._waiting and len(self._inside) < MOST:
            who, turn = self._waiting.popitem(last=False)
            loop = turn.get_loop()
            # Nobody goes on whose loop was closed under him.
            if turn.done() or loop.is_closed():
                continue
            if who.is_lined():
                self._inside[who] = self._turns, loop.time()
            turn.set_result(None)

    def _tick_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticks = True
        loop.call_soon(self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._ticks = False
            return
        self._turns += 1
        now = loop.time()
        for who, (turn, since) in [*self._inside.items()]:
            if self._turns - turn >= TURNS or now - since >= LONGEST:
                del self._inside[who]
                who.is_late()
        self._next()
        self._tick_soon(loop)


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()


def line() -> Line | None:
    """That of the running loop; None where there is none, as under trio."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    found = _lines.get(loop)
    if found is None:
        found = _lines[loop] = Line()
    return found
