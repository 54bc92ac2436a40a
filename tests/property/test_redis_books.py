"""The books and the script of the Redis backend, against a provider that keeps a log.

Real redis-server, virtual time: some processes take and end calls, ask, fall silent, die; messages
and answers are lost or late. The provider counts each call at its own instant, and must never see
more than the limit.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from headway import Limit, ManualClock, Reservation, _core
from headway._core import LimiterCore
from headway.backends.redis._books import Books
from headway.backends.redis._courier import SCRIPT
from redis_server import RedisServer

SECOND = 1_000_000_000
SEED = int(os.environ.get("HEADWAY_SEED", "1"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    own = redis.Redis.from_url(server.url)
    yield own
    own.close()
    server.stop()


@dataclass
class Provider:
    """Counts what it gets, at the instant at which it gets it."""

    limit: Limit
    log: list[tuple[int, int]] = field(default_factory=list)

    def excess(self) -> int:
        """By how many units the limit was passed at the worst instant; 0: never."""
        events = sorted(self.log)
        period = round(self.limit.per * SECOND)
        worst = 0
        if self.limit.shape == "bucket":
            burst = self.limit.burst or self.limit.amount
            level, seen = burst * period, 0  # in units of 1 / (amount * period)
            for at, amount in events:
                level = min(burst * period, level + (at - seen) * self.limit.amount)
                seen = at
                level -= amount * period
                worst = max(worst, -(level // period))
        elif self.limit.shape == "fixed":
            windows: dict[int, int] = {}
            for at, amount in events:
                windows[at // period] = windows.get(at // period, 0) + amount
            worst = max(windows.values(), default=0) - self.limit.amount
        else:
            inside: deque[tuple[int, int]] = deque()
            total = 0
            for at, amount in events:
                inside.append((at, amount))
                total += amount
                while inside[0][0] <= at - period:
                    total -= inside.popleft()[1]
                worst = max(worst, total - self.limit.amount)
        return max(0, worst)


class Process:
    """One process: calls on words of its own, and its books of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.words = LimiterCore(world.limits, world.clock, world.resources, credit=world.resources)
        self.books = Books(self.words, heartbeat=5.0, key_ttl=3600)
        self.out: list[tuple[Reservation, int, list[int]]] = []  # ends when, with which amounts
        self.dead = False

    def exchange(self) -> None:
        world = self.world
        rng = world.rng
        amounts = world.cost()
        asks = [(rng.randrange(1, 12), amounts)] if rng.random() < 0.8 else []
        message = self.books.message(world.now, asks, rng.choice([0, SECOND // 20]))
        if rng.random() < 0.08:
            return  # it never got there
        world.advance(rng.random() * 0.03)
        answer = world.run(message)
        if rng.random() < 0.08:
            return  # nobody heard of it
        world.advance(rng.random() * 0.03)
        self.books.answered(answer, world.now)
        self.books.deposit(world.now)

    def take(self) -> None:
        world = self.world
        self.books.deposit(world.now)
        for _ in range(world.rng.randrange(1, 8)):
            amounts = world.cost()
            got = self.words.try_reserve(*amounts)
            if not isinstance(got, Reservation):
                return
            if world.rng.random() < 0.1:
                got.cancel()
                continue
            delay = world.rng.random() * 0.02 if world.may_be_late else 0.0
            if world.rng.random() < 0.5:
                got.sent(0.02)
            used = [*amounts]
            for i, limit in enumerate(world.providers):
                resource = world.resources.index(world.limits[i].resource)
                if limit is not None and amounts[resource]:
                    limit.log.append((world.now + round(delay * SECOND), amounts[resource]))
            ends = world.now + round((0.03 + world.rng.expovariate(1 / 2.0)) * SECOND)
            self.out.append((got, ends, used))

    def end(self) -> None:
        for call in [each for each in self.out if each[1] <= self.world.now]:
            self.out.remove(call)
            call[0].answered()
            call[0].settle(*call[2])


@dataclass
class World:
    limits: list[Limit]
    rng: random.Random
    client: Any
    keys: list[str]
    now: int = 1_000 * SECOND

    def __post_init__(self) -> None:
        self.clock = ManualClock(self.now / SECOND)
        self.resources = tuple(dict.fromkeys(limit.resource for limit in self.limits))
        words = LimiterCore(self.limits, self.clock, self.resources)
        self.limits = list(_core.limits(words))
        self.providers = [
            None if limit.shape == "concurrency" else Provider(limit) for limit in self.limits
        ]
        # An even pace has no room for a network: DESIGN's guard is nothing there.
        self.may_be_late = all(
            limit.shape != "bucket"
            or ((limit.burst or limit.amount) - 1) * limit.per / limit.amount / 16 >= 0.02
            for limit in self.limits
        )
        self.script = self.client.register_script(SCRIPT)

    def cost(self) -> tuple[int, ...]:
        return tuple(
            1 if name in ("requests", "concurrency") else self.rng.randrange(1, 40)
            for name in self.resources
        )

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
        self.clock.advance(self.now / SECOND - self.clock.now())

    def run(self, message: str) -> Any:
        return self.script(keys=self.keys, args=[message, str(self.now // 1000)])


LIMITS = {
    "window": ["60 requests/6s window"],
    "fixed": ["60 requests/6s fixed"],
    "bucket": ["60 requests/6s bucket"],
    "small-bucket": ["10 requests/s bucket burst 2"],
    "tokens": ["60 requests/6s bucket", "900 tokens/6s window"],
    "concurrency": ["8 concurrency", "600 requests/6s bucket"],
}


@pytest.mark.parametrize("kind", LIMITS)
def test_no_provider_ever_sees_more_than_its_limit(client: Any, kind: str) -> None:
    for run in range(30):
        rng = random.Random(f"{SEED + run} {kind}")
        client.flushall()
        limits = [Limit.parse(text) for text in LIMITS[kind]]
        world = World(limits, rng, client, [f"{{test}}:{part}" for part in "abcde"])
        processes = [Process(world) for _ in range(rng.randrange(1, 5))]
        for _ in range(600):
            # Silent for so long, a process is taken for dead; what it holds open then is its own.
            silent = rng.random() < 0.01 and kind != "concurrency"
            world.advance(rng.random() * 15 if silent else rng.expovariate(1 / 0.02))
            process = rng.choice(processes)
            process.end()
            what = rng.random()
            if what < 0.4:
                process.exchange()
            elif what < 0.98:
                process.take()
            elif len(processes) > 1 and what < 0.985:
                processes.remove(process)  # it dies, with all that it holds
                processes.append(Process(world))
            for i, limit in enumerate(world.limits):
                if limit.shape == "concurrency":
                    open_calls = sum(len(each.out) for each in processes)
                    assert open_calls <= limit.amount, f"HEADWAY_SEED={SEED + run} {i}"
        for provider in world.providers:
            if provider is not None:
                assert provider.excess() == 0, f"HEADWAY_SEED={SEED + run}: {provider.limit}"
                assert len(provider.log) > 10


def world_of(client: Any, limit: str) -> World:
    client.flushall()
    return World([Limit.parse(limit)], random.Random(SEED), client, [f"{{t}}:{p}" for p in "abcde"])


def ask(process: Process, count: int, server: str = "") -> None:
    """So many are asked for, and what is granted for now is there."""
    message = process.books.message(process.world.now, [(count, (1,))], 0, server)
    process.books.answered(process.world.run(message), process.world.now)
    process.books.deposit(process.world.now)


def taken(process: Process, late: float = 0.0) -> int:
    """As many as may go do, and are counted so many seconds later."""
    count = 0
    while isinstance(got := process.words.try_reserve(1), Reservation):
        provider = process.world.providers[0]
        assert provider is not None
        provider.log.append((process.world.now + round(late * SECOND), 1))
        got.sent(0.02)  # else the last of a first burst waits for the others
        process.out.append((got, process.world.now, [1]))
        count += 1
    return count


def test_who_was_silent_for_too_long_uses_nothing_that_it_was_granted_before(client: Any) -> None:
    world = world_of(client, "60 requests/6s window")
    silent, other = Process(world), Process(world)
    ask(silent, 60)
    world.advance(10.1)
    ask(other, 60)
    world.advance(6.1)  # what the silent one held is counted for a period from then on
    ask(other, 60)
    assert taken(other) == 60
    assert taken(silent) == 0


def test_what_the_dead_may_have_used_stays_counted_for_a_period(client: Any) -> None:
    world = world_of(client, "60 requests/6s window")
    dies, other = Process(world), Process(world)
    ask(dies, 60)
    world.advance(8.9)
    assert taken(dies) == 60
    world.advance(1.2)
    ask(other, 60)
    assert taken(other) == 0
    world.advance(6.1)
    ask(other, 60)
    assert taken(other) == 60


def test_nothing_is_granted_by_old_data_before_all_have_said_what_they_hold(client: Any) -> None:
    """A snapshot is put back that knows nothing of what one of two was granted since."""
    world = world_of(client, "60 requests/6s bucket")
    one, other = Process(world), Process(world)
    ask(one, 10, "first")
    ask(other, 1, "first")
    assert taken(one) + taken(other) == 11
    saved = {key: client.dump(key) for key in client.keys("*")}
    ask(other, 49, "first")
    assert taken(other) >= 40
    client.flushall()
    for key, value in saved.items():
        client.restore(key, 0, value)
    ask(one, 50, "second")  # it is told to say anew what it holds
    ask(one, 50, "second")
    assert taken(one) == 0
    ask(other, 50, "second")
    ask(other, 50, "second")
    ask(one, 50, "second")
    assert taken(one) + taken(other) == 0
    world.advance(3.0)
    for process in (one, other):
        ask(process, 50, "second")
        taken(process)
    provider = world.providers[0]
    assert provider is not None
    assert provider.excess() == 0
    assert len(provider.log) > 75


def test_what_has_left_is_not_forgotten_by_a_message_that_comes_late(client: Any) -> None:
    world = world_of(client, "60 requests/6s window")
    process, other = Process(world), Process(world)
    ask(process, 60)
    assert taken(process) == 60
    world.advance(0.03)
    process.end()
    late = process.books.message(world.now, [], 0)
    process.books.answered(world.run(late), world.now)
    world.advance(6.1)
    world.run(late)  # once more, when all of it has left
    ask(other, 60)
    assert taken(other) == 60


def test_a_burst_that_is_counted_a_little_late_costs_no_refusal(client: Any) -> None:
    world = world_of(client, "60 requests/6s bucket")
    process = Process(world)
    ask(process, 60)
    assert taken(process, late=0.02) == 60
    ask(process, 1)
    assert process.books.next_due is not None
    world.advance((process.books.next_due - world.now) / SECOND)
    process.books.deposit(world.now)
    assert taken(process) == 1
    provider = world.providers[0]
    assert provider is not None
    assert provider.excess() == 0
