"""One process's part of one bucket that Redis counts: what to tell, what to ask, what was granted.

Passive: no I/O and no lock of its own. What it says of itself is absolute, so whatever is lost on
the way the next message puts right; see exchange.lua, which is the other side.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from headway import _core
from headway._core import Limit, LimiterCore

_SECOND = 1_000_000_000
_BUCKET, _CELLS, _CONCURRENCY = 1, 2, 3
_KINDS = {"bucket": _BUCKET, "concurrency": _CONCURRENCY}
# As the core's own meters (meter/parameters.h), so that one process alone is counted alike here and
# there: whole ns a unit up to a million units a second; and how much later than by the book the
# provider may begin to refill what was full.
_WHOLE_STEPS = 1_000
_LEAST_GUARD = 20_000_000

MOST = 1_000
"""Of those that wait, so many are asked for at once."""

_MOST_AMOUNT = 2**53

_SLOT = 1_000_000
"""ns: what may go within one of them goes at its end."""

_VALID = 1.8
"""Heartbeats for which credit may be used: after two without a sign Redis counts it as used."""

Amounts = tuple[int, ...]
"""By resource."""

Asks = Sequence[tuple[int, Amounts]]
"""So many of the same amounts, in the order in which they would go."""


@dataclass(frozen=True)
class _Limit:
    """A limit as the script reads it; spans in ns."""

    kind: int
    resource: int
    amount: int
    period: int
    burst: int
    step: float
    guard: int

    @staticmethod
    def of(limit: Limit, resources: Sequence[str]) -> _Limit:
        kind = _KINDS.get(limit.shape or "window", _CELLS)
        resource = resources.index(limit.resource) + 1
        period = 0 if kind == _CONCURRENCY else round(limit.per * _SECOND)
        if kind != _BUCKET:
            return _Limit(kind, resource, limit.amount, period, 0, 0, 0)
        burst = limit.burst if limit.burst is not None else limit.amount
        exact = period / max(1, limit.amount)  # one of 0 has no burst, so it admits nothing
        step = float(math.ceil(exact)) if exact >= _WHOLE_STEPS else math.nextafter(exact, math.inf)
        guard = int(min((burst - 1) * step / 16, _SECOND))
        return _Limit(
            kind,
            resource,
            limit.amount,
            period,
            burst,
            step,
            0 if guard < _LEAST_GUARD else guard,
        )

    @property
    def identity(self) -> tuple[int, int, int]:
        """What makes it the same limit in another process, whatever its amount is there."""
        return (self.resource, self.kind, self.period)

    def listed(self) -> list[float]:
        return [
            self.kind,
            self.resource,
            self.amount,
            self.period,
            self.burst,
            self.step,
            self.guard,
        ]

    def says(self, listed: Sequence[float]) -> bool:
        """Whether that is the same limit: the script's numbers come with fourteen digits.

        What follows from the rest was rounded on its way as well.
        """
        ours = [float(f"{each:.14g}") for each in self.listed()[:5]]
        return [float(each) for each in listed[:5]] == ours


@dataclass(frozen=True)
class _Due:
    """Credit that may be used from an instant on, by resource."""

    at: int
    units: list[int]


@dataclass
class Holding:
    """What a process says it holds, of one instant; by resource, or by limit where it says so.

    usable: granted, and nobody's yet. credit: granted and not used: with that of those who have
    waited and not gone on. spent: used of what was granted, ever. refunded: given back of what was
    used, ever. ages: ns since something was used last. held: by limit, units in use or counted.
    """

    usable: list[int]
    credit: list[int]
    spent: list[int]
    refunded: list[int]
    ages: list[int]
    held: list[int]
    departures: list[list[tuple[int, int, float]]]

    @property
    def anything(self) -> bool:
        return any(self.credit) or any(self.held)

    def differs(self, told: Holding) -> bool:
        """Whether there is something to tell: time alone passes there as well."""
        return (self.credit, self.spent, self.refunded, self.held) != (
            told.credit,
            told.spent,
            told.refunded,
            told.held,
        )


@dataclass
class Answer:
    """What an exchange has come to.

    granted: how many of those asked for. wait: ns until asking again makes sense; None: nobody can
    tell. lost: nothing was done; to be said anew. left: Redis knows nothing of this process any
    more. adopted: other limits hold in Redis, and by now here. differs: limits of other kinds do.
    """

    granted: int = 0
    wait: int | None = 0
    lost: bool = False
    left: bool = False
    adopted: bool = False
    differs: bool = False


@final
class Books:
    """The books of one bucket. Times are ns of time.monotonic_ns(), or what a test has instead.

    words: whose credit is granted here; their own meters count the same limits for this process
    alone. Shared are those that they begin with of the resources that have credit; all others are
    this process's own. heartbeat, key_ttl: seconds.
    """

    def __init__(self, words: LimiterCore, heartbeat: float, key_ttl: float) -> None:
        self._words = words
        self._heard = 2 * heartbeat
        self._valid = round(_VALID * heartbeat * _SECOND)
        present = _core.limits(words)
        granted = {each.resource for each in present if each.shape == "credit"}
        self.limits = {
            meter: each
            for meter, each in enumerate(present)
            if each.shape != "credit" and each.resource in granted
        }
        """By their places among the limits of the words."""
        # In an order that all processes have: they give limits, and number resources, as they like.
        self._resources = tuple(sorted({each.resource for each in self.limits.values()}))
        self._places = [_core.resources(words).index(name) for name in self._resources]
        self._meters = sorted(
            self.limits, key=lambda meter: _Limit.of(self.limits[meter], self._resources).identity
        )
        self._limits = [_Limit.of(self.limits[each], self._resources) for each in self._meters]
        # What is used must not be forgotten before it has left.
        # What is held is listed without credit.
        counted = [meter for meter, each in enumerate(present) if each.shape != "credit"]
        self._held_at = [counted.index(each) for each in self._meters]
        rates = [each.per for each in self.limits.values() if each.shape != "concurrency"]
        longest = max(rates, default=0)
        self._key_ttl = max(key_ttl, 2 * longest)
        self.peers = 0
        """How many processes held something of it when Redis answered last, this one included."""
        self._epoch = ""
        self._generation = 0
        # Where limits were set here: whether so much is owed, or such a share; and which, from 1.
        self._debt: str | None = None
        self._changed: set[int] = set()
        # By limit, what all hold together, as Redis said last: units, or ns that are owed.
        self._used: list[float] = []
        self._told_at = 0
        self._who = secrets.token_hex(6)
        self._turn = 0
        self._telling_of: Holding | None = None
        self._begin(recalls=False)

    def _begin(self, *, recalls: bool) -> None:
        """Redis does not know this process: what it has granted is not ours any more.

        recalls: it may have lost its data, and is told again what it said last.
        """
        self._anew, self._recalls = True, recalls and bool(self._used)
        self._due: deque[_Due] = deque()
        _core.take_back(self._words)
        self._refunded_before = self._ours(_core.holds(self._words)[2])
        self._granted = [0] * len(self._resources)
        self._told: Holding | None = None
        # What was told of runs that leave, by limit and run: units, and the instant.
        self._counted: dict[tuple[int, int], tuple[int, int]] = {}
        # Of the message that is under way.
        self._asked: Asks = ()
        self._telling = self._counted
        self._sent_at = 0
        self._leaving = False

    def begin_anew(self) -> None:
        """In a forked child: what was granted is the parent's."""
        self._who = secrets.token_hex(6)
        self._begin(recalls=False)

    @property
    def next_due(self) -> int | None:
        """When credit may be used that may not be yet."""
        return self._due[0].at if self._due else None

    def in_use(self) -> dict[int, int]:
        """By the place of each limit, what all together use, in units; {} before Redis says so.

        Of a bucket as of then, less what was paid for since.
        """
        since = time.monotonic_ns() - self._told_at
        return {
            meter: max(0, math.ceil((held - since) / each.step))
            if each.kind == _BUCKET
            else int(held)
            for meter, held, each in zip(self._meters, self._used, self._limits, strict=False)
        }

    def set_limit(self, meter: int, limit: Limit, proportional: bool) -> None:
        """A limit has changed here, and is to for all who share it."""
        place = self._meters.index(meter)
        self.limits[meter] = limit
        self._limits[place] = _Limit.of(limit, self._resources)
        if _core.limits(self._words)[meter] != limit:  # another process's has come in between
            _core.set_limit(self._words, meter, limit, proportional)
        self._debt = "proportional" if proportional else "absolute"
        self._changed.add(place + 1)

    def _ours(self, by_resource: Sequence[Any]) -> list[Any]:
        """Of what there is of each resource of the words, that of those that are shared."""
        return [by_resource[place] for place in self._places]

    def _later(self, resource: int) -> int:
        return sum(due.units[resource] for due in self._due)

    def holding(self) -> Holding:
        """What is held now."""
        held = _core.holds(self._words)
        usable, unbegun, refunded, ages = (self._ours(each) for each in held[:4])
        meters = [held[4][place] for place in self._held_at]
        usable = [here + self._later(r) for r, here in enumerate(usable)]
        credit = [here + waiting for here, waiting in zip(usable, unbegun, strict=True)]
        return Holding(
            usable,
            credit,
            [all_ - here for all_, here in zip(self._granted, credit, strict=True)],
            [all_ - one for all_, one in zip(refunded, self._refunded_before, strict=True)],
            [round(each * _SECOND) for each in ages],
            [units for units, _ in meters],
            [departures for _, departures in meters],
        )

    def has_news(self, holding: Holding) -> bool:
        """Whether Redis is to be told something."""
        if self._told is None:
            return holding.anything
        return self._debt is not None or holding.differs(self._told)

    @property
    def is_shared(self) -> bool:
        """Whether anybody else has the words, or waits or holds something there."""
        return _core.is_shared(self._words)

    @property
    def waited_for(self) -> list[int]:
        """What those want, by resource, whom credit would let go, or will."""
        wanted = [0] * len(self._resources)
        for count, all_amounts in _core.demand(self._words, MOST):
            amounts = self._ours(all_amounts)
            wanted = [one + count * each for one, each in zip(wanted, amounts, strict=True)]
        return wanted

    def demand(self) -> Asks:
        """What those ask who wait, less what there is for the first of them, or will be."""
        # What is there comes first: who is admitted meanwhile is then not asked for twice.
        left = self.holding().usable
        asked = _core.demand(self._words, MOST)
        wanted = []
        for count, all_amounts in asked:
            amounts = tuple(self._ours(all_amounts))
            fits = [count, *(left[r] // each for r, each in enumerate(amounts) if each > 0)]
            covered = min(fits)
            left = [here - covered * each for here, each in zip(left, amounts, strict=True)]
            if covered < count:
                wanted.append((count - covered, amounts))
                left = [0] * len(left)  # nobody passes the first who waits
        return wanted

    def message(
        self, now: int, asks: Asks, horizon: int, server: str = "", *, leaves: bool = False
    ) -> str:
        """What Redis is to be told now, as JSON; the answer to it goes to `answered`.

        horizon: ns; credit that may be used so much later is wanted, too. server: which one it goes
        to, that others may know whether its data can be older than what it has answered. leaves:
        nothing is held, and nobody waits.
        """
        holding = self.holding()
        opened, counted = [], []
        self._telling = {}
        for i, departures in enumerate(holding.departures):
            left = holding.held[i]
            for run, units, seconds in departures:
                left -= units
                leaves_in = round(seconds * _SECOND)
                known = self._counted.get((i, run))
                # The instant moves only where another one of them was counted later.
                if known is None or known[0] != units or now + leaves_in > known[1] + _SLOT:
                    counted.append([i + 1, run, units, leaves_in])
                    known = (units, now + leaves_in)
                self._telling[i, run] = known
            opened.append(max(0, left))
        # What was to leave is given back by now, or has been joined by what nobody can tell of.
        for (i, run), (_, at) in self._counted.items():
            if (i, run) not in self._telling and at > now:
                counted.append([i + 1, run, 0, at - now])
        self._turn += 1
        self._sent_at = now
        self._asked = asks
        self._leaving = leaves
        self._telling_of = holding
        said: dict[str, Any] = {
            "who": self._who,
            "turn": self._turn,
            "fresh": secrets.token_hex(4),
            "epoch": self._epoch,
            "server": server,
            "peers": self.peers,
            "generation": self._generation,
            "resources": self._resources,
            "limits": [each.listed() for each in self._limits],
            "ttl": round(self._key_ttl * 1000),
            "heard": round(self._heard * 1e6),
            "usable": holding.usable,
            "credit": holding.credit,
            "spent": holding.spent,
            "age": [min(each, now) for each in holding.ages],
            "refunded": holding.refunded,
            "open": opened,
            "counted": counted,
            "asks": [[count, *amounts] for count, amounts in asks],
            "horizon": horizon,
        }
        if self._anew:
            said["anew"] = True
        if self._recalls:
            since = now - self._told_at
            said["owed"] = [
                max(0, round(held - since)) if each.kind == _BUCKET else 0
                for held, each in zip(self._used, self._limits, strict=True)
            ]
        if self._debt is not None:
            said["set"] = self._debt
            said["changed"] = sorted(self._changed)
        if leaves:
            said["leaves"] = True
        return json.dumps(said, separators=(",", ":"))

    def answered(self, text: str | bytes, now: int) -> Answer:
        """What Redis has answered to the last message; `now`: when that was read."""
        said = json.loads(text)
        self._epoch = said["epoch"]
        if said["state"] != "done":
            if said["state"] == "unknown":
                self._begin(recalls=True)
            return Answer(lost=True, differs=said["state"] == "differs")
        self._told_at = self._sent_at
        self._anew = self._recalls = False
        # Before limits are adopted, which others may have set since: then they hold, not ours.
        self._debt = None
        self._changed.clear()
        self.peers = said["peers"]
        self._used = list(said["used"])
        answer = Answer(adopted=self._adopt(said), left=self._leaving)
        if self._leaving:
            self._begin(recalls=False)
            self._epoch = ""
            return answer
        self._told = self._telling_of
        self._counted = self._telling
        _core.keep_credit(self._words, (self._sent_at + self._valid - now) / _SECOND)
        for (_, amounts), (count, when) in zip(self._asked, said["granted"], strict=False):
            answer.granted += int(count)
            self._schedule(now, amounts, int(count), when)
        blocked = said["blocked"]
        if blocked is not None:
            if self._due:
                answer.wait = self._due[-1].at - now
            else:
                answer.wait = None if blocked[1] < 0 else int(blocked[1])
        return answer

    def _adopt(self, said: dict[str, Any]) -> bool:
        """What holds for all who share it holds here; whether anything has changed by that."""
        known, self._generation = self._generation, said["generation"]
        changed = False
        if "limits" not in said or known == self._generation:
            return False
        for place, theirs in enumerate(said["limits"]):
            if self._limits[place].says(theirs):
                continue
            meter = self._meters[place]
            old = self.limits[meter]
            burst = int(theirs[4]) if old.shape == "bucket" else None
            amount = min(int(theirs[2]), _MOST_AMOUNT)
            limit = Limit(amount, old.resource, old.per, old.shape, burst, old.anchor)
            _core.set_limit(self._words, meter, limit, False)
            self.limits[meter] = limit
            self._limits[place] = _Limit.of(limit, self._resources)
            changed = True
        return changed

    def _schedule(
        self, now: int, amounts: Amounts, count: int, when: Sequence[Sequence[float]]
    ) -> None:
        """Credit for so many of the same amounts, each from its instant on.

        when: by each bucket, in ns from now, when the first may go, and how much later each
        further one.
        """
        done = 0
        while done < count:
            first = max([0.0, *(begin + done * each for begin, each in when)])
            end = first + _SLOT if first > 0 else 0.0
            fit = min(
                [count - done]
                + [math.floor((end - begin) / each) + 1 - done for begin, each in when]
            )
            done += max(1, fit)
            last = max([0.0, *(begin + (done - 1) * each for begin, each in when)])
            self._put(_Due(now + math.ceil(last), [each * max(1, fit) for each in amounts]))

    def _put(self, due: _Due) -> None:
        for r, each in enumerate(due.units):
            self._granted[r] += each
            if self._told is not None:
                self._told.credit[r] += each  # Redis knows
        self._due.append(due)
        if len(self._due) > 1 and self._due[-2].at > due.at:
            self._due = deque(sorted(self._due, key=lambda each: each.at))

    def deposit(self, now: int) -> None:
        """Grants what may be used by now."""
        units = [0] * len(self._resources)
        while self._due and self._due[0].at <= now:
            units = [a + b for a, b in zip(units, self._due.popleft().units, strict=True)]
        if any(units):
            _core.grant(self._words, dict(zip(self._resources, units, strict=True)))

    def give_back(self, keep: Sequence[int] = ()) -> None:
        """Credit that nobody has used is given back with the next message, but for so much."""
        taken = _core.take_back(self._words)
        kept = {}
        for r, name in enumerate(self._resources):
            here = taken.get(name, 0)
            kept[name] = min(here, keep[r]) if keep else 0
            self._granted[r] -= here - kept[name] + self._later(r)
        self._due.clear()
        if any(kept.values()):
            _core.grant(self._words, kept)
