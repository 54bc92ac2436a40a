"""Minutes of load on the real clock, for what seconds do not show: `make soak`.

HEADWAY_SOAK_SECONDS is how long each storm lasts (240). A storm prints its seed, and HEADWAY_SEED
repeats it as far as threads can be repeated.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from array import array

import httpx
import pytest

from headway import DeadlineExceededError, Limiter, Reservation
from headway.simulate import SimulatorProcess
from headway.transports import Connections, NetworkDelays, send

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("HEADWAY_SOAK_SECONDS", "240"))
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
NS = 1_000_000_000
# What one storm may add to a process that is warm: fragments and caches, not a leak.
GROWTH = 16 << 20


def resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def most_in_any_second(stamps: list[int]) -> int:
    stamps.sort()
    most = first = 0
    for last, at in enumerate(stamps):
        while stamps[first] + NS <= at:
            first += 1
        most = max(most, last - first + 1)
    return most


class Storm:
    """Callers of one limiter, and what they saw."""

    limit = 2_000
    at_once = 60

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.limiter = Limiter(
            [
                f"{self.at_once} concurrency",
                f"{self.limit} requests/s window",
                "40_000 tokens/s bucket",
            ]
        )
        self.end = time.monotonic() + SECONDS
        self.stamps: list[array[int]] = []
        self.given_up = 0
        self.most_running = 0
        self._running = 0
        self._lock = threading.Lock()

    def options(self, draw: random.Random) -> dict[str, float | int | None]:
        return {"priority": draw.randint(0, 2), "timeout": draw.choice([None, 0.05, 1.0])}

    def counted(self, reservation: Reservation, mine: array[int]) -> None:
        """A server counts the request now; it was sent by the instant that is told."""
        with self._lock:
            self._running += 1
            self.most_running = max(self.most_running, self._running)
        mine.append(time.monotonic_ns())
        reservation.sent(network_delay=0)

    def ended(self, draw: random.Random, reservation: Reservation) -> None:
        with self._lock:
            self._running -= 1
        if draw.random() < 0.1:
            reservation.expire()
        else:
            reservation.settle(1, 1, draw.randint(0, 60))

    def memory(self) -> array[int]:
        self.stamps.append(array("q"))
        return self.stamps[-1]

    async def task(self, number: int) -> None:
        draw = random.Random(f"{self.seed} task {number}")
        mine = self.memory()

        async def wait() -> Reservation:
            reservation = await self.limiter.acquire(
                1, 1, draw.randint(1, 60), **self.options(draw)
            )
            assert isinstance(reservation, Reservation)
            return reservation

        while time.monotonic() < self.end:
            try:
                # Some are cancelled while they wait, or just as they are admitted.
                reservation = await asyncio.wait_for(wait(), draw.choice([0.001, 0.01, 30, 30, 30]))
            # DeadlineExceededError is one, too; asyncio's is another class before Python 3.11.
            except (TimeoutError, asyncio.TimeoutError):
                self.given_up += 1
                continue
            self.counted(reservation, mine)
            await asyncio.sleep(draw.choice([0, 0, 0.001, 0.02]))
            self.ended(draw, reservation)

    def loop(self, first: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(self.task(first + i) for i in range(40)))

        asyncio.run(main())

    def thread(self, number: int) -> None:
        draw = random.Random(f"{self.seed} thread {number}")
        mine = self.memory()
        while time.monotonic() < self.end:
            try:
                reservation = self.limiter.acquire_sync(
                    1, 1, draw.randint(1, 60), **self.options(draw)
                )
            except DeadlineExceededError:
                self.given_up += 1
                continue
            self.counted(reservation, mine)
            time.sleep(draw.choice([0, 0.001, 0.02]))
            self.ended(draw, reservation)

    def changes(self) -> None:
        draw = random.Random(f"{self.seed} changes")
        while time.monotonic() < self.end:
            self.limiter.set_limit(
                f"{draw.choice([self.limit, self.limit // 4])} requests/s window"
            )
            self.limiter.set_limit(f"{draw.choice([40_000, 4_000])} tokens/s bucket")
            self.limiter.explain(1, 1, 30)
            time.sleep(draw.uniform(0, 2))


def test_loops_and_threads_at_one_limiter_for_minutes() -> None:
    seed = int(os.environ.get("HEADWAY_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"HEADWAY_SEED={seed}")
    storm = Storm(seed)
    open_before = descriptors()
    threads = [threading.Thread(target=storm.loop, args=(100 * i,)) for i in range(3)]
    threads += [threading.Thread(target=storm.thread, args=(i,)) for i in range(8)]
    threads.append(threading.Thread(target=storm.changes))
    for each in threads:
        each.start()
    time.sleep(SECONDS / 4)
    warm, so_far = resident(), sum(map(len, storm.stamps))
    for each in threads:
        each.join(SECONDS + 60)
        assert not each.is_alive(), "hangs"
    stamps = [at for mine in storm.stamps for at in mine]
    grown = resident() - warm - 8 * (len(stamps) - so_far) - 36 * len(stamps)
    print(f"{len(stamps)} admitted, {storm.given_up} given up, {grown / 2**20:.1f} MiB grown")
    assert len(stamps) > 100 * SECONDS
    assert most_in_any_second(stamps) <= storm.limit
    assert storm.most_running <= storm.at_once
    assert grown < GROWTH
    # And all of it comes back.
    storm.limiter.set_limit(f"{storm.limit} requests/s window")
    storm.limiter.set_limit("40_000 tokens/s bucket")
    with storm.limiter.acquire_sync(storm.at_once, storm.limit, 40_000, timeout=60):
        look = storm.limiter.explain()
    assert (look.waiting, [each.used for each in look.limits]) == (
        0,
        [storm.at_once, storm.limit, 40_000],
    )
    assert descriptors() - open_before <= 2, "the dispatcher's, and this thread's mailbox"


@pytest.mark.parametrize("shape", ["window", "bucket", "fixed"])
def test_a_server_kept_busy_for_minutes_refuses_nothing(shape: str) -> None:
    limit = f"150 requests/s {shape}" if shape != "bucket" else "150 requests/s bucket burst 300"
    grown: list[int] = []

    async def main(url: str) -> int:
        limiter = Limiter(limit)
        delays = NetworkDelays()
        end = time.monotonic() + SECONDS
        sent = 0

        async with httpx.AsyncClient(transport=Connections(), timeout=60) as client:

            async def exchange(request: httpx.Request) -> httpx.Response:
                return await client.send(request, stream=True)

            async def caller() -> None:
                nonlocal sent
                while time.monotonic() < end:
                    reservation = await limiter.acquire()
                    assert isinstance(reservation, Reservation)
                    request = client.build_request("POST", f"{url}/v1/chat/completions", json=BODY)
                    response = await send(exchange, request, reservation, delays)
                    await response.aread()
                    await response.aclose()
                    reservation.settle()
                    sent += 1

            tasks = [asyncio.ensure_future(caller()) for _ in range(200)]
            await asyncio.sleep(SECONDS / 4)
            grown.append(resident())
            await asyncio.gather(*tasks)
            grown.append(resident())
        return sent

    open_before = descriptors()
    with SimulatorProcess("--limits", limit, "--latency", "lognormal:0.2:0.5") as simulator:
        sent = asyncio.run(main(simulator.url))
        stats = simulator.stats()
    print(f"{stats['admitted']} admitted, {stats['refused']} refused")
    assert stats["refused"] == 0
    assert stats["admitted"] == sent > 0.95 * 150 * SECONDS
    assert grown[1] - grown[0] < GROWTH
    assert descriptors() <= open_before
