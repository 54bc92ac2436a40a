"""Numbers of a run by name: for each model, or for each account."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import final

MOST = 10_000
"""Names that are kept apart; they come from the file."""


class Group:
    """What became of the requests of one name. waits: seconds, of those that were let through."""

    __slots__ = ("failed", "requests", "waits")

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.waits = array("d")


@final
class Groups:
    """A group for each name. Of those that come when there are `MOST`, one for all."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._rest = Group()

    def of(self, name: str) -> Group:
        """The group of that name."""
        group = self._groups.get(name)
        if group is None:
            if len(self._groups) >= MOST:
                return self._rest
            group = self._groups[name] = Group()
        return group

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[tuple[str, Group]]:
        """Name and group, those with the most requests first."""
        yield from sorted(self._groups.items(), key=lambda each: (-each[1].requests, each[0]))
        if self._rest.requests:
            yield "all others", self._rest
