"""Lanes: which line of a file goes next, where some must not wait behind others."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import final

from headway.batch.lines import Broken, Line

READ_AHEAD = 1024
"""Lines of one lane that may have been read and not gone out yet.

They are what the limits are handed while the event loop is busy with others, so there must be more
of them than can be sent in the longest time that it is; a loop sends about 2000 a second.
"""

ENOUGH = 4 * READ_AHEAD
"""Lines of all lanes; beyond, a lane may hold no more than `FEW`."""

FEW = 16

MOST_HELD = 8 * READ_AHEAD
"""Lines of all lanes at most, however many lanes there are."""


@final
class Lanes:
    """The lines of a file, in its order, but past those of lanes that are full.

    Lines for which `lane_of` gives the same are a lane, and keep their order. Of a line that is
    passed over only its place is kept, 16 bytes; `read_again(number, offset)` reads it when there
    is room. Without `lane_of` all lines are one lane, and none is read before there is room for it.
    """

    def __init__(
        self,
        lines: Iterable[Line | Broken],
        lane_of: Callable[[Line], Hashable] | None = None,
        read_again: Callable[[int, int], Line | Broken] | None = None,
    ) -> None:
        assert (lane_of is None) == (read_again is None)
        self._lines: Iterator[Line | Broken] = iter(lines)
        self._lane_of = lane_of
        self._read_again = read_again
        self._lanes: dict[Hashable, _Lane] = {}
        # Those with lines that were passed over, and maybe with room. A lane that was full when its
        # turn came is not here; it comes back when a line of it has left.
        self._ready: deque[_Lane] = deque()
        self._ended = False
        self._held = 0
        self._passed = 0

    @property
    def done(self) -> bool:
        """Whether every line has been taken."""
        return self._ended and self._passed == 0

    @property
    def full(self) -> bool:
        """Whether nothing can be taken before a line has left."""
        if self._held >= MOST_HELD:
            return True
        if self._lane_of is None:
            return self._held >= READ_AHEAD
        return self._ended and not self._trim()

    def take(self) -> Line | Broken | None:
        """The next line, or None where it was passed over, or there is none now.

        It is held until `leave`, unless it is broken or wrong. Reads one line at most, so that its
        caller can do other things in between.
        """
        if self.full:
            return None
        if self._trim():
            return self._take_back()
        line = next(self._lines, None)
        if line is None:
            self._ended = True
            return None
        if isinstance(line, Broken) or line.wrong is not None:
            return line
        key = self._key_of(line)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        if lane.passed or not self._has_room(lane):
            lane.pass_over(line)
            self._passed += 1
            self._list(lane)
            return None
        return self._hold(lane, line)

    def leave(self, line: Line) -> None:
        """A line that was taken has gone out, or has ended."""
        lane = self._lanes[self._key_of(line)]
        lane.held -= 1
        self._held -= 1
        if lane.passed:
            self._list(lane)
        elif lane.held == 0:
            del self._lanes[lane.key]

    def _key_of(self, line: Line) -> Hashable:
        return None if self._lane_of is None else self._lane_of(line)

    def _has_room(self, lane: _Lane) -> bool:
        most = READ_AHEAD if self._held < ENOUGH else FEW
        return lane.held < most

    def _hold(self, lane: _Lane, line: Line) -> Line:
        lane.held += 1
        self._held += 1
        return line

    def _list(self, lane: _Lane) -> None:
        if not lane.listed:
            lane.listed = True
            self._ready.append(lane)

    def _trim(self) -> bool:
        """Whether a lane with lines that were passed over has room: then it is the first."""
        while self._ready and not self._has_room(self._ready[0]):
            self._ready.popleft().listed = False
        return bool(self._ready)

    def _take_back(self) -> Line | Broken:
        assert self._read_again is not None
        lane = self._ready.popleft()
        lane.listed = False
        number, offset = lane.take_back()
        self._passed -= 1
        line = self._read_again(number, offset)
        if isinstance(line, Line) and self._key_of(line) == lane.key:
            self._hold(lane, line)
        else:
            line = Broken(number, "has been changed since it was read first; not sent")
        if lane.passed:
            self._list(lane)  # behind the others
        elif lane.held == 0:
            del self._lanes[lane.key]
        return line


@final
class _Lane:
    """How many of its lines are held, and where those are that were passed over."""

    __slots__ = ("_first", "_places", "held", "key", "listed")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.held = 0
        self.listed = False
        self._places = array("q")  # number, offset, number, …
        self._first = 0

    @property
    def passed(self) -> bool:
        return self._first < len(self._places)

    def pass_over(self, line: Line) -> None:
        self._places.extend((line.number, line.offset))

    def take_back(self) -> tuple[int, int]:
        number, offset = self._places[self._first : self._first + 2]
        self._first += 2
        if self._first >= 1024 and 2 * self._first >= len(self._places):
            del self._places[: self._first]
            self._first = 0
        return number, offset
