"""The words of each key: its meters in the core, and what a backend knows about them."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headway import _core, _loop
from headway._core import Limit, ManualClock, Reservation
from headway.errors import ConfigurationError

UNLIMITED = 2**53
"""The amount of a limit that is not known: counts everything and refuses nothing."""

_FIRST = ("requests", "tokens")
_STATED_BESIDE = ("input_tokens", "output_tokens")
LEARNT_BESIDE = (*_STATED_BESIDE, "concurrency")
"""Of what limits are learnt, too, where none is given: from answers, the last from refusals."""
_PERIOD = 60.0
# A word is 32 resources wide.
_MOST_RESOURCES = 32
# How many idle keys one call looks at.
_LOOKS = 4


@dataclass
class _Foreign:
    """What somebody else has used, taken from our books so that nobody counts on it."""

    reservation: Reservation
    resource: str
    amount: int
    leaves: float


class KeyWords(_core.LimiterCore):
    """The limits of one key: those given, and one per minute for what they do not limit.

    The latter are learnt: unlimited at first, and changed in place, so that a limit learnt later
    finds what was used already. learns: what part of a limit is used that answers tell of; 0: none
    is learnt from them. cold: while nothing is known, for so many seconds, its first request goes
    alone. proportional: whether what is owed is scaled when an answer tells of another limit.
    shares: what these limits admit is granted by somebody who counts them for several processes,
    as credit; what answers tell of stays this process's own. Instants are seconds of the backend's
    clock. The caller holds the backend's lock wherever more than admission is asked.
    """

    __slots__ = (
        "_foreign",
        "_meters",
        "_width",
        "given",
        "hidden",
        "in_use",
        "learnt",
        "margin",
        "marks",
        "model",
        "refused_until",
        "seen",
        "shared",
        "tells",
        "updated",
        "verified",
    )

    def __init__(
        self,
        limits: Sequence[Limit],
        clock: ManualClock | None,
        resources: Sequence[str],
        learns: float = 0.0,
        cold: float = 0.0,
        *,
        proportional: bool = False,
        shares: bool = False,
    ) -> None:
        limited = {each.resource for each in limits}
        # Whatever is learnt of later is counted from the start.
        counted = _FIRST if not learns else (*_FIRST, *_STATED_BESIDE)
        free = [name for name in counted if name not in limited]
        credit = tuple(dict.fromkeys(each.resource for each in limits)) if shares else ()
        super().__init__(
            [*limits, *(Limit(UNLIMITED, name, _PERIOD) for name in free)],
            clock,
            resources,
            credit,
            learns=learns,
            cold=cold,
            proportional=proportional,
        )
        _loop.register(self)
        present = [each for each in _core.limits(self) if each.shape != "credit"]
        # Rates stay in the order in which they were given, so the added ones are the last.
        self.learnt = {name: len(present) - len(free) + i for i, name in enumerate(free)}
        self._meters = {name: _observed(present, name) for name in _FIRST}
        self._width = len(_core.resources(self))
        self._foreign: list[_Foreign] = []
        self.shared = frozenset(credit)
        self.tells: Callable[[KeyWords, int, Limit], None] | None = None
        """Who counts those that are shared, told of one that has changed here."""
        self.in_use: Callable[[KeyWords], Mapping[int, int]] | None = None
        """Of those that are shared, what all processes use together, by meter."""
        # A `bucket` would take a mark that is far away for the instant from which it refills.
        self.marks = all(each.shape != "bucket" for each in present)
        self.given: tuple[Any, ...] | None = None  # the last limits that a caller gave
        self.margin = 1.0
        self.model: str | None = None
        self.verified = False
        self.hidden = False
        self.refused_until = 0.0
        self.seen = 0.0
        self.updated = 0.0

    def limit(self, resource: str) -> int | None:
        """The amount of the limit that is observed; None where it is not known."""
        amount = _core.limits(self)[self._meters[resource]].amount
        return None if amount >= UNLIMITED else amount

    def room(self, resource: str) -> int:
        """What is left of it; below zero where more is used than the limit allows by now."""
        meter = self._meters[resource]
        state = _core.snapshot(self, 0, 0)["limits"][meter]
        by_all = {} if self.in_use is None else self.in_use(self)
        return int(state["capacity"] - max(state["used"], by_all.get(meter, 0)))

    def remaining(self, resource: str) -> int | None:
        """What is left, 0 at least; None where it is not limited."""
        room = self.room(resource)
        if self.limit(resource) is None and not any(f.resource == resource for f in self._foreign):
            return None
        return max(0, room)

    def ready_in(self) -> float | None:
        """Seconds until one request fits; inf never; None where only answers can tell."""
        if self.shared:  # when others give it back, nobody here can tell
            return 0.0 if self.room("requests") > 0 else None
        wait = _core.snapshot(self, 1, 0)["ready_in"]
        return None if wait is None else float(wait)

    def learn_given(self) -> None:
        """From now on those that were given change as those do that are learnt."""
        self.learnt.update({name: self._meters[name] for name in self.shared if name in _FIRST})

    def idle(self) -> bool:
        """Whether nothing is used and nobody waits."""
        look = _core.snapshot(self)
        kept = zip(look["limits"], _core.limits(self), strict=False)
        return look["waiting"] == 0 and not any(
            each["used"] for each, limit in kept if limit.shape != "credit"
        )

    def learn(self, resource: str, amount: int, now: float) -> None:
        """Changes the limit per minute, unless one was given."""
        index = self.learnt.get(resource)
        old = None if index is None else _core.limits(self)[index].amount
        amount = min(amount, UNLIMITED)
        if index is None or amount == old:
            return
        if any(each["resource"] == resource for each in _core.findings(self)):
            return  # answers say more exactly what holds
        room = self.room(resource)
        limit = Limit(amount, resource, _PERIOD)
        _core.set_limit(self, index, limit, False)
        if self.tells is not None and resource in self.shared:
            self.tells(self, index, limit)
        if old == UNLIMITED and any(each.resource == resource for each in self._foreign):
            # Others' use was written against a limit that nobody knew: what was left is what holds.
            self.move(resource, room, now)

    def move(self, resource: str, remaining: int, now: float) -> None:
        """Makes `remaining` what is left, as far as that is not what we have used ourselves.

        Less: the difference is taken, as used by somebody else at this instant. More: what was
        taken so is given back, the latest first; a part that stays counts from this instant again.
        """
        if resource in self.shared:
            return  # what others have used is counted for all
        self._foreign = [each for each in self._foreign if each.leaves > now]
        room = self.room(resource)
        wanted = min(max(0, remaining), self.limit(resource) or UNLIMITED)
        if wanted < room:
            self._take(resource, room - wanted, now)
        more = wanted - room
        for each in [each for each in reversed(self._foreign) if each.resource == resource]:
            if more <= 0:
                break
            self._foreign.remove(each)
            back = min(more, each.amount)
            more -= back
            left = each.amount - back
            if left and _core.snapshot(self)["waiting"]:
                # Whoever waits would get what is to stay; so it ends here, and only time heals it.
                each.reservation.settle(*self._amounts(resource, left))
                continue
            each.reservation.settle(*self._amounts(resource, 0))
            if left:
                self._take(resource, left, now)

    def _take(self, resource: str, amount: int, now: float) -> None:
        amounts = self._amounts(resource, amount)
        taken = self.try_reserve(*amounts)
        if taken:
            assert isinstance(taken, Reservation)
            taken.sent(0.0)
            # It has been counted. One that was still out would leave with the last of its cell,
            # which others may have said is far away.
            taken.answered()
            self._foreign.append(_Foreign(taken, resource, amount, now + _PERIOD))
            return
        # Somebody waits, or was faster. To settle with more charges it whether it fits or not.
        nothing = self.try_reserve(*self._amounts(resource, 0))
        if isinstance(nothing, Reservation):
            nothing.settle(*amounts)

    def _amounts(self, resource: str, amount: int) -> list[int]:
        amounts = [0] * self._width
        amounts[_FIRST.index(resource)] = amount
        return amounts


def _observed(limits: Sequence[Limit], resource: str) -> int:
    """The meter that `remaining` is about: the one per minute where there are several."""
    found = [i for i, each in enumerate(limits) if each.resource == resource]
    return next((i for i in found if limits[i].per == _PERIOD), found[0])


class WordsByKey:
    """All keys, least recently used first. The caller holds the backend's lock."""

    def __init__(self, clock: ManualClock | None, ttl: float) -> None:
        self.resources: tuple[str, ...] = _FIRST
        self.clock = clock
        self._ttl = ttl
        self._kept: OrderedDict[str, KeyWords] = OrderedDict()
        # Whoever still holds words that were dropped gets the same ones again: two of one key
        # would each admit the whole limit.
        self._known: weakref.WeakValueDictionary[str, KeyWords] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    def items(self) -> list[tuple[str, KeyWords]]:
        return list(self._kept.items())

    def number(self, names: Iterable[str]) -> None:
        """Gives each name that has none yet the next number."""
        new = [name for name in dict.fromkeys(names) if name not in self.resources]
        if len(self.resources) + len(new) > _MOST_RESOURCES:
            raise ConfigurationError(
                f"resources must be at most {_MOST_RESOURCES}, got "
                f"{', '.join([*self.resources, *new])}"
            )
        self.resources = (*self.resources, *new)

    def get(self, key: str, now: float) -> KeyWords | None:
        words = self._kept.get(key)
        if words is None:
            words = self._known.get(key)
            if words is None:
                return None
            self._kept[key] = words
        words.seen = now
        self._kept.move_to_end(key)
        return words

    def peek(self, key: str, now: float, is_open: Callable[[str], bool]) -> KeyWords | None:
        """As `get`, but a look is no use, and what is due to be dropped is."""
        words = self._kept.get(key) or self._known.get(key)
        if words is not None and self._due(words, now) and not is_open(key) and words.idle():
            self._kept.pop(key, None)
            return None
        return words

    def make(
        self,
        key: str,
        limits: Sequence[Limit],
        now: float,
        learns: float = 0.0,
        cold: float = 0.0,
        *,
        proportional: bool = False,
        shares: bool = False,
    ) -> KeyWords:
        words = self.get(key, now)
        if words is None:
            self.number(each.resource for each in limits)
            if learns:
                self.number(LEARNT_BESIDE)
            words = KeyWords(
                limits,
                self.clock,
                self.resources,
                learns,
                cold,
                proportional=proportional,
                shares=shares,
            )
            words.seen = now
            self._kept[key] = self._known[key] = words
        return words

    def forget_idle(self, keep: int, is_open: Callable[[str], bool]) -> list[str]:
        """Drops idle keys, least recently used first, until `keep` are left; their names."""
        gone: list[str] = []
        for key, words in list(self._kept.items()):
            if len(self._kept) <= keep:
                break
            if not is_open(key) and words.idle():
                del self._kept[key]
                gone.append(key)
        return gone

    def expire(self, now: float, is_open: Callable[[str], bool], looks: int = _LOOKS) -> None:
        """Drops a few keys that were not used for the time-to-live and have nothing in use."""
        for _ in range(min(looks, len(self._kept))):
            key, words = next(iter(self._kept.items()))
            if not self._due(words, now):
                break
            if is_open(key) or not words.idle():
                # A limit per day remembers for longer than that. Looked at again after a while.
                self.get(key, now)
            else:
                del self._kept[key]

    def clear(self) -> None:
        self._kept.clear()
        self._known.clear()

    def _due(self, words: KeyWords, now: float) -> bool:
        return self._ttl > 0 and words.seen + self._ttl <= now
