"""A storm: many requests from several threads and loops, of all kinds at once, and a stop in it.

What it says of itself is not asked: what ran is written down here, and counted with lists.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from users import Refused, asks, idle, make

from headway import RequestTimeoutError, SchedulerStoppedError
from headway.scheduler import Scheduler

THREADS = 4
REQUESTS = 100_000
LATE_REQUESTS = 20_000
BUCKETS = 5
ACCOUNTS = ["free", "paid", "batch"]
AT_ONCE = 300
PER_SECOND = 4_000
TOKENS_PER_SECOND = 80_000
SEED = 20_241


@dataclass
class Log:
    """What ran, as those who ran have seen it."""

    # By bucket: when an attempt began, and of how many tokens it was.
    starts: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    # By loop, bucket, account and priority: the numbers of requests as their first attempts began.
    order: dict[tuple[Any, ...], list[int]] = field(default_factory=lambda: defaultdict(list))
    calls: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most: int = 0


class Request:
    def __init__(self, log: Log, number: int, loop: int, rng: random.Random) -> None:
        self.log = log
        self.number = number
        self.bucket = f"b{rng.randrange(BUCKETS)}"
        self.tokens = rng.randrange(1, 41)
        self.account = rng.choice([*ACCOUNTS, None])
        self.priority = rng.randrange(3)
        self.kind = rng.choices(
            ["cancelled", "wrong", "unavailable", "late", "good"], [5, 3, 2, 5, 85]
        )[0]
        self.pauses = rng.random() < 0.5
        self.cancel_after = rng.random() * 6
        self.task: asyncio.Task[None] | None = None
        self.key = (loop, self.bucket, self.account, self.priority)

    async def __call__(self) -> int:
        log = self.log
        began = time.monotonic_ns()  # before it waits for the lock, which is not ours
        with log.lock:
            log.calls[self.number] += 1
            log.running += 1
            log.most = max(log.most, log.running)
            log.starts[self.bucket].append((began, self.tokens))
            if log.calls[self.number] == 1:
                log.order[self.key].append(self.number)
        try:
            if self.pauses:
                await asyncio.sleep(0)
            if self.kind == "wrong":
                raise KeyError(self.number)
            if self.kind == "unavailable":
                raise Refused(503, {})
            if self.kind == "cancelled" and self.task is not None:  # it has not waited so long
                asyncio.get_running_loop().call_soon(self.task.cancel)
            if self.kind in ("late", "cancelled"):
                await asyncio.sleep(60)
            return self.number
        finally:
            with log.lock:
                log.running -= 1

    async def end(self, scheduler: Scheduler) -> str:
        metadata = asks(
            self.bucket,
            estimated_tokens=self.tokens,
            client_id=self.account,
            priority=self.priority,
            timeout=0.01 if self.kind == "late" else None,
        )
        try:
            result = await scheduler.submit_request(metadata, self)
        except asyncio.CancelledError:
            return "cancelled"
        except SchedulerStoppedError:
            return "stopped"
        except RequestTimeoutError:
            return "late"
        except KeyError:
            return "wrong"
        except Refused:
            return "unavailable"
        assert result == self.number
        return "good"


async def blow(scheduler: Scheduler, log: Log, numbers: range, loop: int) -> None:
    """Submits them all at once, and waits until each has ended."""
    rng = random.Random(SEED + numbers.start)
    requests = [Request(log, number, loop, rng) for number in numbers]
    with log.lock:
        log.kinds.update(request.kind for request in requests)

    async def one(request: Request) -> None:
        ended = await request.end(scheduler)
        assert request.number not in log.outcomes, "each ends once"
        log.outcomes[request.number] = ended

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    for request, task in zip(requests, tasks, strict=True):
        if request.kind == "cancelled":
            request.task = task
            asyncio.get_running_loop().call_later(request.cancel_after, task.cancel)
    done, _ = await asyncio.wait(tasks)
    for task in done:
        if not task.cancelled():
            task.result()
    # Cancelled before its first step, or after its request has ended.
    for request, task in zip(requests, tasks, strict=True):
        if task.cancelled():
            log.outcomes.setdefault(request.number, "cancelled")


def on_threads(work: Callable[[int], Awaitable[None]]) -> list[Future[None]]:
    """One event loop on each thread, all at the same time."""
    pool = ThreadPoolExecutor(THREADS)
    futures = [
        pool.submit(lambda loop=loop: asyncio.run(work(loop)))  # type: ignore[misc]
        for loop in range(THREADS)
    ]
    pool.shutdown(wait=False)
    return futures


def parts(first: int, count: int) -> list[range]:
    share = count // THREADS
    return [range(first + share * i, first + share * (i + 1)) for i in range(THREADS)]


def storm(scheduler: Scheduler, first: int, count: int) -> Log:
    log = Log()
    ranges = parts(first, count)
    for future in on_threads(lambda loop: blow(scheduler, log, ranges[loop], loop)):
        future.result(120)
    return log


def check_limits(log: Log) -> None:
    """No window of a second holds more than the limits allow, wherever it begins."""
    for bucket, starts in log.starts.items():
        starts.sort()
        first = 0
        tokens = 0
        for last, (at, amount) in enumerate(starts):
            tokens += amount
            while starts[first][0] <= at - 1_000_000_000:
                tokens -= starts[first][1]
                first += 1
            assert last - first + 1 <= PER_SECOND, bucket
            assert tokens <= TOKENS_PER_SECOND, bucket
    assert log.most <= AT_ONCE


def check_order(log: Log) -> None:
    for key, numbers in log.order.items():
        assert numbers == sorted(numbers), key


def started(scheduler: Scheduler) -> tuple[int, int]:
    """How many attempts there have been, and how many of them were retries."""
    metrics = scheduler.get_metrics()
    return metrics["attempts"], metrics["retries"]


def check_calls(log: Log, scheduler: Scheduler, before: tuple[int, int]) -> None:
    """Each function was called once for each attempt, of which all but the first are retries."""
    attempts, retries = started(scheduler)
    calls = sum(log.calls.values())
    assert calls == attempts - before[0]
    # A stop may come between a retry's being decided on and its beginning.
    assert calls - len(log.calls) <= retries - before[1]


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of the C library."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "used", "free", "keep")),
    ]


def in_use(scheduler: Scheduler) -> tuple[int, int]:
    """Python's blocks and malloc's bytes that somebody holds, whatever the allocators keep."""
    for bucket in scheduler._buckets:
        bucket.breaker._failures.clear()  # bounded by max_failures, which is large here
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo
    info = mallinfo()
    return sys.getallocatedblocks(), info.used + info.hblkhd


def kept() -> Counter[str]:
    gc.collect()
    names = {"Call", "Reservation", "Request", "RequestMetadata"}
    found = Counter(type(each).__name__ for each in gc.get_objects())
    return Counter({name: found[name] for name in names})


@pytest.mark.long
def test_in_a_storm_each_request_ends_once_within_all_limits_and_in_order(
    request: pytest.FixtureRequest,
) -> None:
    before = kept()  # of other tests
    scheduler = make(
        mode="account",
        limits=[
            f"{PER_SECOND} requests/s window",
            f"{TOKENS_PER_SECOND} tokens/s window",
        ],
        max_concurrent_executions=AT_ONCE,
        max_queue_size=REQUESTS,
        max_failures=10**6,
        max_retries=2,
    )
    request.addfinalizer(lambda: scheduler.stop_sync(0))
    scheduler.start_sync()
    storm(scheduler, 0, REQUESTS)  # what keeps its largest size has it then
    blocks, held = in_use(scheduler)
    assert not kept() - before

    begun = started(scheduler)
    log = storm(scheduler, REQUESTS, REQUESTS)
    check_calls(log, scheduler, begun)  # first: one too many may pass a limit as well
    assert max(log.calls.values()) <= 3
    check_limits(log)
    check_order(log)
    ended = Counter(log.outcomes.values())
    assert sum(ended.values()) == REQUESTS
    assert ended == log.kinds, "each has ended as its kind does"
    shares = {"good": 0.84, "cancelled": 0.045, "late": 0.045, "wrong": 0.025, "unavailable": 0.015}
    for kind, share in shares.items():
        assert ended[kind] > share * REQUESTS
    assert idle(scheduler)
    # What was cancelled as it waited never ran.
    waited = REQUESTS - len(log.calls)
    assert 0.01 * REQUESTS < waited < ended["cancelled"]

    del log
    assert not kept() - before
    blocks_after, held_after = in_use(scheduler)
    assert blocks_after - blocks < REQUESTS // 50
    assert held_after - held < 10 * REQUESTS

    # And a stop in the middle of another one, from a thread of its own.
    begun = started(scheduler)
    log = Log()
    ranges = parts(3 * REQUESTS, LATE_REQUESTS)
    futures = on_threads(lambda loop: blow(scheduler, log, ranges[loop], loop))
    while sum(log.calls.values()) < LATE_REQUESTS // 5:
        time.sleep(0.005)
    scheduler.stop_sync(drain_timeout=0.3)
    for future in futures:
        future.result(60)
    check_calls(log, scheduler, begun)
    check_limits(log)
    check_order(log)
    ended = Counter(log.outcomes.values())
    assert sum(ended.values()) == LATE_REQUESTS
    assert ended["stopped"] > 1000
    assert ended["good"] > 1000
    assert idle(scheduler)
