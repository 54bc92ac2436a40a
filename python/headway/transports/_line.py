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

    def begins(self) -> None:
        """It is as good as sent. At any time, and more than once."""

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

    Those that connect are on their way together. Many of them are sent when the last is ready, so
    they begin only then; one that is among a few begins when it enters.

    Of one loop, which it keeps alive only while somebody waits, and not thread-safe.
    """

    __slots__ = ("_connecting", "_inside", "_ticks", "_turns", "_waiting")

    def __init__(self) -> None:
        # Since which of our turns, and which instant of the loop's clock.
        self._inside: dict[Call, tuple[int, float]] = {}
        self._connecting: set[Call] = set()
        self._waiting: OrderedDict[Call, asyncio.Future[None]] = OrderedDict()
        self._turns = 0
        self._ticks = False

    async def enter(self, who: Call) -> None:
        """Waits for the turn of `who`, who then has to `leave`, and begins if he is not crowded."""
        if not who.is_lined():
            who.begins()
            return
        loop = asyncio.get_running_loop()
        if not self._waiting and len(self._inside) < MOST:
            self._inside[who] = self._turns, loop.time()
            if len(self._connecting) < MOST:
                who.begins()
            elif not self._ticks:
                self._tick_soon(loop)
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

    def connect(self, who: Call) -> None:
        """`who` waits for the network from now on."""
        self._connecting.add(who)
        self._pass(who)

    def leave(self, who: Call) -> None:
        """`who` is sent, or will not be. At any time, and more than once."""
        self._connecting.discard(who)
        self._pass(who)

    def _pass(self, who: Call) -> None:
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
            else:
                who.begins()
            turn.set_result(None)

    def _tick_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticks = True
        loop.call_soon(self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        # Who was let in from the crowd has not begun, and is looked after though nobody waits.
        if not self._waiting and not self._inside:
            self._ticks = False
            return
        self._turns += 1
        now = loop.time()
        for who, (turn, since) in [*self._inside.items()]:
            if self._turns - turn >= TURNS or now - since >= LONGEST:
                del self._inside[who]
                who.begins()
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
