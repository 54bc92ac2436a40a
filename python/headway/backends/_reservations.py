"""Reservations that are out, by id and by the names that callers gave them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from headway._core import Reservation
from headway.backends._fading import Fading

LIFE = 300.0
"""Seconds until a reservation that nobody released ends at its estimate."""

# Released ids that are remembered; a double release beyond it is called unknown, no more.
_MOST_RELEASED = 65_536


@dataclass
class Held:
    """One reservation of a key. order: rises with each one made. name: the request's id.

    answered: a response to it was told, so the provider has counted it.
    """

    id: str
    key: str
    name: str | None
    reservation: Reservation
    requests: int
    tokens: int
    expires: float
    order: int = 0
    answered: bool = False

    def give_back(self) -> None:
        """Ends it as if it had never been, unless a response has shown that it was counted."""
        if self.answered:
            self.reservation.settle()
        elif not self.reservation.cancel():
            self.reservation.answered()
            self.reservation.settle(0, 0)

    def settle(self, tokens: int) -> None:
        """Ends it with the tokens that were really used; its requests stay spent."""
        self.reservation.answered()
        self.reservation.settle(self.requests, tokens)


class Reservations:
    """All that are out, and for a while those that were released. The caller holds a lock."""

    def __init__(self, released_ttl: float) -> None:
        self._orders = itertools.count(1)
        # All live equally long, so the first is the next to expire.
        self._open: dict[str, Held] = {}
        self._of_key: dict[str, dict[str, Held]] = {}
        self._named: dict[str, dict[str, Held]] = {}
        self._released: Fading[tuple[str, str], int] = Fading(released_ttl, _MOST_RELEASED)

    def __len__(self) -> int:
        return len(self._open)

    def is_open(self, key: str) -> bool:
        return key in self._of_key

    def add(self, held: Held) -> None:
        held.order = next(self._orders)
        self._open[held.id] = held
        self._of_key.setdefault(held.key, {})[held.id] = held
        if held.name is not None:
            self._named.setdefault(held.name, {})[held.id] = held

    def find(self, key: str, identity: str) -> Held | None:
        """By its id, or by its request's: then the latest one."""
        held = self._open.get(identity)
        if held is not None:
            return held if held.key == key else None
        return next((each for each in reversed(self.named(identity)) if each.key == key), None)

    def named(self, name: str) -> list[Held]:
        """All of one request, oldest first."""
        return list(self._named.get(name, {}).values())

    def order_of(self, key: str, identity: str, now: float) -> int | None:
        """Its place among all that were made, also of one that was released."""
        held = self.find(key, identity)
        return self._released.get((key, identity), now) if held is None else held.order

    def was_released(self, key: str, identity: str, now: float) -> bool:
        return self._released.get((key, identity), now) is not None

    def younger(self, key: str, order: int) -> tuple[int, int]:
        """Requests and tokens that are out by reservations made after that one."""
        requests = tokens = 0
        for held in reversed(self._of_key.get(key, {}).values()):
            if held.order <= order:
                break
            requests += held.requests
            tokens += held.tokens
        return requests, tokens

    def release(self, held: Held, now: float) -> None:
        """It is not out any more; a second release will be known as one."""
        self._forget(held)
        self._released.put((held.key, held.id), held.order, now)
        if held.name is not None:
            self._released.put((held.key, held.name), held.order, now)

    def expire(self, now: float) -> None:
        """Ends at their estimate those that nobody has released in time."""
        while self._open:
            held = next(iter(self._open.values()))
            if held.expires > now:
                break
            self._forget(held)
            held.reservation.expire()

    def purge(self, now: float) -> None:
        """Lets go of released ones that need not be remembered any more."""
        self.expire(now)
        self._released.purge(now)

    def clear(self) -> None:
        for held in list(self._open.values()):
            self._forget(held)
            held.reservation.expire()
        self._released.clear()

    def _forget(self, held: Held) -> None:
        del self._open[held.id]
        for index, key in ((self._of_key, held.key), (self._named, held.name)):
            group = None if key is None else index.get(key)
            if group is not None and key is not None:
                group.pop(held.id, None)
                if not group:
                    del index[key]
