"""Limiter against slow, obviously right counting, through the Python face, on a virtual clock.

The oracles keep everything that was ever taken in plain lists of integers (nanoseconds and units)
and share no code with the core. The limits drawn are those whose step is a whole number of
nanoseconds, so that the two must agree exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from hypothesis import given, settings
from hypothesis import strategies as st

from headway import Limit, Limiter, ManualClock

NS = 1_000_000_000


@dataclass
class Held:
    """What one admission took of one limit; of a bucket, also what it left and found."""

    at: int
    amount: int
    after: int = 0
    full: int = 0


class Oracle(Protocol):
    def fits(self, now: int, amount: int) -> bool: ...
    def take(self, now: int, amount: int) -> Held: ...
    def give_back(self, now: int, held: Held, amount: int, cancelled: bool) -> None: ...


@dataclass
class Bucket:
    """Full at first, refilling one unit each `step`; what is given back fills it no higher.

    A server may count a burst up to `guard` late. So what is taken from a bucket that has been full
    for so long may be all of it, and its refill begins that much later.
    """

    step: int
    burst: int
    missing: int = -(1 << 62)  # nanoseconds' worth of units; below zero: for how long it is full
    seen: int = 0
    began: int = 0

    @property
    def guard(self) -> int:
        guard = (self.burst - 1) * self.step // 16
        return 0 if guard < NS // 50 else min(guard, NS)

    def _refill(self, now: int) -> None:
        self.missing -= max(0, now - self.seen)
        self.seen = max(self.seen, now)

    def fits(self, now: int, amount: int) -> bool:
        self._refill(now)
        late = 0 if self.missing <= -self.guard else min(self.guard, now - self.began)
        room = self.burst * self.step - amount * self.step
        return room >= 0 and self.missing <= room - late

    def take(self, now: int, amount: int) -> Held:
        self._refill(now)
        held = Held(now, amount)
        if amount:
            held.full = max(0, -self.missing)
            if self.missing <= -self.guard:
                self.began = now
            self.missing = held.after = max(0, self.missing) + amount * self.step
        return held

    def give_back(self, now: int, held: Held, amount: int, cancelled: bool) -> None:
        self._refill(now)
        if cancelled and amount and self.missing == held.after - (now - held.at):
            self.missing -= held.full
        self.missing -= amount * self.step


@dataclass
class Window:
    """Never more than `limit` admitted in any `period`."""

    limit: int
    period: int
    held: list[Held] = field(default_factory=list)

    def inside(self, now: int) -> int:
        return sum(h.amount for h in self.held if h.at + self.period > now)

    def fits(self, now: int, amount: int) -> bool:
        return self.inside(now) + amount <= self.limit

    def take(self, now: int, amount: int) -> Held:
        held = Held(now, amount)
        self.held.append(held)
        return held

    def give_back(self, now: int, held: Held, amount: int, cancelled: bool) -> None:
        held.amount -= amount


@dataclass
class Concurrency:
    limit: int
    used: int = 0

    def fits(self, now: int, amount: int) -> bool:
        return self.used + amount <= self.limit

    def take(self, now: int, amount: int) -> Held:
        self.used += amount
        return Held(now, amount)

    def give_back(self, now: int, held: Held, amount: int, cancelled: bool) -> None:
        self.used -= amount


def oracle_of(limit: Limit) -> Oracle:
    period = round(limit.per * NS)
    if limit.shape == "concurrency":
        return Concurrency(limit.amount)
    if limit.shape == "bucket":
        assert limit.burst is not None
        return Bucket(period // limit.amount, limit.burst)
    return Window(limit.amount, period)


# Divisors of a minute in nanoseconds.
AMOUNTS = st.sampled_from([1, 2, 3, 5, 6, 10, 12, 30, 60, 100])


@st.composite
def limits(draw: st.DrawFn) -> list[Limit]:
    shapes: list[Limit] = []
    for resource in draw(st.permutations(["requests", "tokens"])):
        amount = draw(AMOUNTS)
        burst = draw(st.none() | st.integers(1, 2 * amount))
        shapes.append(Limit(amount, resource, 60.0, "bucket", burst))
    if draw(st.booleans()):
        shapes.append(Limit(draw(AMOUNTS), "requests", 6.0, "bucket"))
    if draw(st.booleans()):
        shapes.append(Limit(draw(st.integers(1, 5)), "concurrency"))
    return shapes


COSTS = st.tuples(st.integers(0, 3), st.integers(0, 40))
STEPS = st.one_of(
    st.tuples(
        st.just("advance"), st.sampled_from([1, 1000, NS // 7, NS, 5 * NS, 61 * NS, 3600 * NS])
    ),
    st.tuples(st.just("reserve"), COSTS),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(
        st.just("settle"), st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 40))
    ),
    st.tuples(st.just("expire"), st.integers(0, 30)),
)


@settings(max_examples=400, deadline=None)
@given(limits(), st.lists(STEPS, max_size=60))
def test_admission_over_several_limits_is_exactly_what_plain_counting_says(
    drawn: list[Limit], steps: list[tuple[str, Any]]
) -> None:
    clock = ManualClock(1.0)
    now = NS
    limiter = Limiter(drawn, clock=clock)
    oracles = [(limit.resource, oracle_of(limit)) for limit in drawn]
    alive: list[tuple[Any, dict[str, int], list[Held]]] = []
    for verb, value in steps:
        if verb == "advance":
            now += value
            clock.advance(value / NS)
            assert round(clock.now() * NS) == now
        elif verb == "reserve":
            requests, tokens = value
            cost = {"requests": requests, "tokens": tokens, "concurrency": 1}
            expected = all(cost[r] == 0 or oracle.fits(now, cost[r]) for r, oracle in oracles)
            got = limiter.try_reserve(*(cost[r] for r in limiter.resources))
            assert bool(got) == expected
            if expected:
                held = [oracle.take(now, cost[r]) for r, oracle in oracles]
                alive.append((got, cost, held))
        elif alive:
            index = value if isinstance(value, int) else value[0]
            reservation, cost, held = alive.pop(index % len(alive))
            if verb == "cancel":
                assert reservation.cancel()
                back = dict(cost)
            elif verb == "expire":
                assert reservation.expire()
                back = {"concurrency": 1}
            else:
                actual = {
                    "requests": min(value[1], cost["requests"]),
                    "tokens": min(value[2], cost["tokens"]),
                    "concurrency": 1,
                }
                assert reservation.settle(*(actual[r] for r in limiter.resources))
                back = {r: cost[r] - actual[r] for r in cost}
                back["concurrency"] = 1
            for (resource, oracle), taken in zip(oracles, held, strict=True):
                oracle.give_back(now, taken, back.get(resource, 0), verb == "cancel")


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, NS // 100, NS // 3, NS, 7 * NS, 59 * NS, 3600 * NS]),
            st.integers(1, 12),
            st.sampled_from(["answered", "later", "cancelled"]),
        ),
        max_size=80,
    ),
)
def test_a_window_never_admits_more_than_its_limit_in_any_period(
    amount: int, steps: list[tuple[int, int, str]]
) -> None:
    clock = ManualClock(1.0)
    limiter = Limiter(Limit(amount, per=60.0, shape="window"), clock=clock)
    oracle = Window(amount, 60 * NS)
    now = NS
    waiting: list[Any] = []
    for advance, cost, fate in steps:
        now += advance
        clock.advance(advance / NS)
        reservation = limiter.try_reserve(cost)
        if reservation:
            assert oracle.fits(now, cost), "more than the limit in some period"
            held = oracle.take(now, cost)
            if fate == "cancelled":
                assert reservation.cancel()
                oracle.give_back(now, held, cost, cancelled=True)
            elif fate == "answered":
                assert reservation.settle()
            else:
                waiting.append(reservation)
        if fate == "later" and len(waiting) > 2:
            assert waiting.pop(0).settle()
    # And everything comes back.
    for reservation in waiting:
        assert reservation.settle()
    clock.advance(7200)
    assert limiter.try_acquire(amount)
