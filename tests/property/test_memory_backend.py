"""MemoryBackend against plain lists of what was reserved, released and told, on a virtual clock.

The oracle shares no code with the core. It knows the *least* that is in use at an instant: what is
out, and what ended less than a minute ago. The core may hold units a little longer, since what it
counts leaves in cells; so admission is checked to be no looser, and giving back to be exact. Times
are multiples of a quarter of a second, which floats hold exactly.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway import ManualClock, MemoryBackend

T = TypeVar("T")

PERIOD = 60.0
LIFE = 300.0
KEY = "tier:1"


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that never waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it has waited")


@dataclass
class Entry:
    """Something that counts: until `ended` and a period more, or while that is None."""

    name: str
    cost: dict[str, int]
    made: float
    ended: float | None = None
    answered: float | None = None

    def counts(self, now: float) -> bool:
        known = self.ended if self.answered is None else self.answered
        return known is None or known + PERIOD > now


@dataclass
class Oracle:
    limits: dict[str, int]
    entries: list[Entry] = field(default_factory=list)
    others: dict[str, list[list[float]]] = field(
        default_factory=lambda: {"requests": [], "tokens": []}
    )

    def out(self) -> list[Entry]:
        return [each for each in self.entries if each.ended is None]

    def expire(self, now: float) -> None:
        for each in self.out():
            if each.made + LIFE <= now:
                each.ended = each.made + LIFE

    def least_used(self, resource: str, now: float) -> int:
        mine = sum(each.cost[resource] for each in self.entries if each.counts(now))
        return mine + int(sum(n for n, at in self.others[resource] if at + PERIOD > now))

    def tell(self, resource: str, left: int, wanted: int, now: float) -> int:
        """Somebody says that `wanted` is left where `left` is; what must be left then."""
        wanted = min(max(0, wanted), self.limits[resource])
        others = [each for each in self.others[resource] if each[1] + PERIOD > now]
        self.others[resource] = others
        if wanted < left:
            others.append([left - wanted, now])
            return wanted
        while left < wanted and others:
            amount, _ = others.pop()
            back = min(amount, wanted - left)
            left += int(back)
            if amount > back:
                others.append([amount - back, now])
        return left


COSTS = st.tuples(st.integers(0, 3), st.integers(0, 40))
WHICH = st.integers(0, 40)
STEPS = st.one_of(
    st.tuples(st.just("advance"), st.sampled_from([0.25, 1.0, 5.0, 29.0, 60.0, 61.0, 301.0])),
    st.tuples(st.just("reserve"), COSTS),
    st.tuples(st.just("reserve"), COSTS),
    st.tuples(st.just("release"), WHICH),
    st.tuples(st.just("again"), WHICH),
    st.tuples(st.just("stream"), st.tuples(WHICH, st.integers(0, 60))),
    st.tuples(st.just("tell"), st.tuples(st.sampled_from(["requests", "tokens"]), WHICH)),
    st.tuples(st.just("response"), st.tuples(WHICH, st.integers(0, 60))),
)


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 12), st.integers(1, 100), st.lists(STEPS, max_size=60))
# Of what others use a part is given back.
@example(1, 32, [("tell", ("tokens", 0)), ("tell", ("tokens", 2))])
# What others use begins together with a reservation that ends before it.
@example(
    1,
    32,
    [
        ("reserve", (0, 1)),
        ("tell", ("tokens", 0)),
        ("release", 0),
        ("advance", 61.0),
        ("tell", ("tokens", 2)),
    ],
)
def test_no_window_holds_more_than_the_limit_and_what_is_given_back_is_there_again(
    rpm: int, tpm: int, steps: list[tuple[str, Any]]
) -> None:
    clock = ManualClock(1000.0)
    backend = MemoryBackend(clock=clock)
    oracle = Oracle({"requests": rpm, "tokens": tpm})
    limits = {"rpm_limit": rpm, "tpm_limit": tpm}
    assert done(backend.check_and_reserve_capacity(KEY, 0, 0, limits))[0]
    released: list[str] = []

    def left() -> dict[str, int]:
        state = done(backend.get_state(KEY))
        assert state is not None
        return {name: state[f"remaining_{name}"] for name in ("requests", "tokens")}

    for verb, value in steps:
        now = clock.now()
        oracle.expire(now)
        out = oracle.out()
        before = left()
        for name, room in before.items():
            assert 0 <= room <= max(0, oracle.limits[name] - oracle.least_used(name, now))
        if verb == "advance":
            clock.advance(value)
        elif verb == "reserve":
            requests, tokens = value
            cost = {"requests": requests, "tokens": tokens}
            took, name = done(backend.check_and_reserve_capacity(KEY, requests, tokens, limits))
            assert took == all(cost[each] <= before[each] for each in cost)
            assert took == (name is not None)
            if took:
                assert name is not None
                for each, amount in cost.items():
                    used = oracle.least_used(each, now) + amount
                    assert amount == 0 or used <= oracle.limits[each]
                oracle.entries.append(Entry(name, cost, now))
        elif verb == "tell":
            resource, wanted = value
            done(backend.set_state(KEY, {f"remaining_{resource}": wanted}))
            expected = oracle.tell(resource, before[resource], wanted, now)
            assert left()[resource] == expected
        elif verb == "again":
            for name in ["never was", *released[value : value + 1]]:
                assert done(backend.release_reservation(KEY, name)) == (name in released)
                streamed = backend.release_streaming_reservation(KEY, name, 10, 0)
                assert done(streamed) == (name in released)
            assert left() == before
        elif out:
            entry = out[(value if verb == "release" else value[0]) % len(out)]
            if verb == "response":
                younger = sum(each.cost["requests"] for each in out[out.index(entry) + 1 :])
                remaining = value[1] % (rpm + 1)
                headers = {"X-RateLimit-Remaining-Requests": str(remaining)}
                told = backend.update_rate_limits("m", headers, KEY, entry.name, 200)
                assert done(told) == 1
                entry.answered = now if entry.answered is None else entry.answered
                wanted = max(0, remaining - younger)
                if wanted < before["requests"]:
                    assert oracle.tell("requests", before["requests"], wanted, now) == wanted
                    assert left()["requests"] == wanted
                else:
                    assert left() == before
                continue
            back = dict(entry.cost)
            if verb == "release":
                assert done(backend.release_reservation(KEY, entry.name))
                if entry.answered is not None:
                    back = dict.fromkeys(back, 0)
            else:
                # No more than there is: what is left is said no more exactly below zero.
                actual = min(value[1], entry.cost["tokens"] + before["tokens"])
                streamed = backend.release_streaming_reservation(
                    KEY, entry.name, entry.cost["tokens"], actual
                )
                assert done(streamed)
                back = {"requests": 0, "tokens": entry.cost["tokens"] - actual}
            released.append(entry.name)
            entry.ended = now
            if entry.answered is None or entry.answered + PERIOD > now:
                for name, amount in back.items():
                    assert left()[name] == before[name] + amount
            entry.cost = {name: entry.cost[name] - back[name] for name in back}

    # And everything comes back.
    clock.advance(LIFE + 2 * PERIOD)
    assert done(backend.check_and_reserve_capacity(KEY, rpm, tpm))[0]
