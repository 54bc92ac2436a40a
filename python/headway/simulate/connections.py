"""The connections of a server, and who of them is looked at when."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headway.simulate.http import Connection

_LOOKS_PER_TURN = 16
"""Connections looked at before what has arrived meanwhile is stamped: about a millisecond."""


class Connections:
    """The connections of one server that are open; once closed, it takes no new ones.

    Who has sent something is looked at in the order of arrival, a few of them in each turn of the
    event loop. Between turns the loop stamps what else has arrived: of a thousand requests sent
    at once, the last one must not be counted late for the work that the others make.
    """

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._closed = False
        self._waiting: deque[Connection] = deque()
        self._turn_due = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """A connection is open. It may have been accepted just before the server stopped."""
        if self._closed:
            connection.drop()
        else:
            self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """A connection is open no more."""
        self._open.discard(connection)

    def look_soon(self, connection: Connection) -> None:
        """Something has arrived from `connection`."""
        self._waiting.append(connection)
        self._schedule()

    def _turn(self) -> None:
        self._turn_due = False
        try:
            for _ in range(min(_LOOKS_PER_TURN, len(self._waiting))):
                self._waiting.popleft().look()
        finally:
            # Whatever became of one connection, the others must have their turn.
            if self._waiting:
                self._schedule()

    def _schedule(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def close(self) -> None:
        """Ends all connections at once, and every one that still comes."""
        self._closed = True
        for connection in list(self._open):
            connection.drop()
