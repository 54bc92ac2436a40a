"""Clocks that jump, processes that are stopped or forked: no limit is broken, none runs twice."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from users import Provider, Refused, asks, idle, make, until

from headway import ManualClock
from headway.scheduler import Account, Scheduler

LOADED = """
import asyncio, json, sys, time
from headway import RequestMetadata
from headway.scheduler import RateLimiterConfig, create_scheduler

async def run():
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, max_queue_size=100_000)
    starts = []

    async def call():
        starts.append(time.monotonic())

    async with create_scheduler(None, config=config, limits=["100 requests/s window"]) as scheduler:
        await scheduler.submit_request(RequestMetadata("r", "m", "text"), call)
        await asyncio.sleep(0)
        tasks = [
            asyncio.ensure_future(scheduler.submit_request(RequestMetadata("r", "m", "text"), call))
            for _ in range(3000)
        ]
        print("running", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await scheduler.stop(0)
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(starts), flush=True)

asyncio.run(run())
"""


@pytest.mark.long
def test_a_process_that_was_stopped_breaks_no_limit_when_it_goes_on_and_loses_none() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LOADED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "running\n"
        time.sleep(2.5)
        child.send_signal(signal.SIGSTOP)
        time.sleep(10)
        child.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        time.sleep(6)
        told, _ = child.communicate("stop\n", timeout=30)
    finally:
        child.kill()
    assert child.returncode == 0
    starts = json.loads(told)
    for first, last in zip(starts, starts[100:], strict=False):
        assert last - first >= 1.0
    assert not [at for at in starts if resumed - 9.5 < at < resumed], "it was stopped"
    after = [at for at in starts if resumed <= at < resumed + 6]
    assert len(after) >= 0.95 * 600


def test_a_jump_of_an_hour_and_back_admits_no_more_than_time_allows() -> None:
    async def run() -> None:
        clock = ManualClock()
        ran: list[float] = []

        async def call() -> None:
            ran.append(clock.now())

        limits = {
            "w": ["10 requests/min"],
            "b": ["60 requests/min bucket burst 5"],
            "f": ["10 requests/min fixed"],
        }
        async with make(limits=limits, clock=clock) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(name), call))
                for name in limits
                for _ in range(40)
            ]

            async def count() -> int:
                for _ in range(10):
                    await asyncio.sleep(0.002)
                return len(ran)

            assert await count() == 10 + 5 + 10
            clock.advance(3600)
            assert await count() == 2 * (10 + 5 + 10), "an hour of sleep is not an hour of credit"
            clock.advance(-3600)
            assert await count() == 2 * (10 + 5 + 10)
            clock.advance(3600)
            assert await count() == 2 * (10 + 5 + 10)
            clock.advance(60)
            assert await count() == 3 * (10 + 5 + 10)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert idle(scheduler)

    asyncio.run(run())


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_wall_clock_that_is_set_changes_nothing(
    jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = time.time
    offset = 0.0
    monkeypatch.setattr(time, "time", lambda: wall() + offset)

    async def run() -> list[float]:
        nonlocal offset
        ran: list[float] = []

        async def call() -> None:
            ran.append(time.monotonic())
            if len(ran) == 5:
                raise Refused(429, {"retry-after": "0.2"})

        limits = ["20 requests/s bucket burst 1"]
        async with make(limits=limits, health_check_interval=3600.0) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(deadline=30), call))
                for _ in range(8)
            ]
            await until(lambda: len(ran) >= 3)
            offset = jump
            estimate = scheduler.estimate(asks())
            assert estimate is not None
            assert 0 < estimate < 1
            await asyncio.wait_for(asyncio.gather(*tasks), 20)
            await scheduler.stop(drain_timeout=5)
        return ran

    began = time.monotonic()
    ran = asyncio.run(run())
    assert len(ran) == 9
    pauses = [after - before for before, after in pairwise(ran)]
    # Each may be late, but none is early.
    assert ran[4] - ran[0] > 0.18
    assert ran[8] - ran[5] > 0.13
    assert pauses[4] > 0.19, "it has cooled for as long as it was told"
    assert time.monotonic() - began < 5


STEP = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

volatile long long wall_step;  // nanoseconds

int clock_gettime(clockid_t clock, struct timespec* out) {
  const int done = syscall(SYS_clock_gettime, clock, out);
  if (done == 0 && clock == CLOCK_REALTIME) {
    const long long now = out->tv_sec * 1000000000LL + out->tv_nsec + wall_step;
    out->tv_sec = now / 1000000000;
    out->tv_nsec = now % 1000000000;
  }
  return done;
}
"""
"""A wall clock that a process may step for itself, in the core as well as in Python."""

STEPPED = """
import asyncio, ctypes, json, sys, time
from headway import RequestMetadata
from headway.scheduler import RateLimiterConfig, create_scheduler

step = ctypes.c_longlong.in_dll(ctypes.CDLL(None), "wall_step")
jump = float(sys.argv[1])
offset = max(time.time() - time.monotonic() for _ in range(100))
starts = {"before": [], "after": []}
began = {}

async def run():
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
    under_way = asyncio.Event()

    def submit(model, count):
        async def call():
            starts[model].append(time.monotonic() + offset)
            if len(starts["before"]) == 15:
                under_way.set()

        began[model] = time.monotonic() + offset
        request = RequestMetadata("r", model, "text")
        return [scheduler.submit(request, call) for _ in range(count)]

    async with create_scheduler(None, config=config, limits=["10 requests/s fixed"]) as scheduler:
        handles = submit("before", 35)
        await under_way.wait()
        step.value = int(jump * 1e9)
        handles += submit("after", 25)
        await asyncio.gather(*handles)
    stepped = time.time() - time.monotonic() - offset
    print(json.dumps({"stepped": stepped, "began": began, "starts": starts}))

asyncio.run(run())
"""


@pytest.fixture(scope="module")
def stepping_clock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """To be loaded first by a process that is to step its wall clock."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("the wall clock of a process is stepped by what a C compiler makes")
    made = tmp_path_factory.mktemp("step") / "step.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", made],
        input=STEP,
        text=True,
        check=True,
    )
    return str(made)


@pytest.mark.parametrize("jump", [3600.5, -3600.5])
def test_a_wall_clock_that_is_set_moves_no_window_that_was_anchored_by_then(
    jump: float, stepping_clock: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPPED, str(jump)],
        env={**os.environ, "LD_PRELOAD": stepping_clock},
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )
    told = json.loads(done.stdout)
    assert abs(told["stepped"] - jump) < 60
    # Each may be late, but none is early: in windows that begin with the seconds of the clock as it
    # was when the limit was made.
    for model, seen_by in (("before", 0.0), ("after", jump)):
        first = math.floor(told["began"][model] + seen_by) - seen_by - 0.01
        starts = told["starts"][model]
        assert len(starts) == {"before": 35, "after": 25}[model]
        assert not [
            (number, at) for number, at in enumerate(sorted(starts)) if at < first + number // 10
        ]


# -- fork -----------------------------------------------------------------------------------------


def child_works(scheduler: Scheduler, calls: list[Any], note: Any) -> int:
    """In the forked child: a status, 0 where all is well."""
    if scheduler.is_running() or scheduler.get_metrics()["active_requests"]:
        return 2
    calls.clear()
    gc.collect()

    async def run() -> list[Any]:
        async with scheduler:
            return await asyncio.gather(
                *(
                    scheduler.submit_request(
                        asks(f"m{i % 3}", client_id=f"c{i % 3}"), lambda i=i: note(f"child {i}")
                    )
                    for i in range(30)
                )
            )

    if asyncio.run(run()) != [None] * 30:
        return 3
    gc.collect()
    return 0 if idle(scheduler) else 4


@pytest.mark.parametrize("mode", ["basic", "intelligent", "account"])
def test_both_sides_of_a_fork_in_mid_flight_work_and_no_request_runs_twice(
    mode: str, tmp_path: Path, fork: Any
) -> None:
    path = tmp_path / "ran"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    accounts = {"c0": 3, "c1": Account(1, limits=["1_000 requests/s bucket burst 20"])}
    scheduler = make(
        mode=mode,
        limits=["200 requests/s bucket burst 10"],
        max_concurrent_executions=5,
        accounts=accounts if mode == "account" else None,
    )
    scheduler.start_sync()
    calls: list[Any] = []
    under_way = threading.Event()

    async def note(text: str) -> None:
        os.write(file, f"{os.getpid()} {text}\n".encode())

    async def load() -> None:
        async def call(number: int) -> None:
            await note(f"parent {number}")
            if number == 20:
                under_way.set()
            await asyncio.sleep(0.01)

        for i in range(100):
            metadata = asks(f"m{i % 3}", client_id=f"c{i % 3}")
            calls.append(scheduler.submit_request(metadata, lambda i=i: call(i)))  # type: ignore[misc]
        await asyncio.gather(*(asyncio.create_task(each) for each in calls))

    thread = threading.Thread(target=lambda: asyncio.run(load()))
    thread.start()
    assert under_way.wait(20)
    child = fork(lambda: child_works(scheduler, calls, note))
    status = child.status()
    thread.join(60)
    scheduler.stop_sync()
    os.close(file)
    assert status == 0
    assert scheduler.get_metrics()["active_requests"] == 0
    ran = Counter(path.read_text().split("\n")[:-1])
    assert set(ran.values()) == {1}
    expected = {f"{os.getpid()} parent {i}" for i in range(100)}
    expected |= {f"{child.pid} child {i}" for i in range(30)}
    assert set(ran) == expected


def descriptors() -> set[int]:
    """Those by which loops and threads are woken: eventfds, sockets and epolls."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that the folder was read through
            kind = os.readlink(f"/proc/self/fd/{name}")
            if kind.startswith(("anon_inode:[event", "socket:")):
                found.add(int(name))
    return found


def test_a_forked_child_uses_no_descriptor_of_its_parents(fork: Any) -> None:
    scheduler = make(
        limits=["200 requests/s bucket burst 1"], provider=Provider(), health_check_interval=0.01
    )

    async def nothing() -> None:
        pass

    async def on_a_loop() -> None:
        await asyncio.gather(*(scheduler.submit_request(asks(), nothing) for _ in range(3)))

    def work() -> None:
        """Waits in this thread and on a loop, while the chores go on."""
        for _ in range(2):
            scheduler.submit_sync(asks(), lambda: None)
        loop.run_until_complete(on_a_loop())

    before = descriptors()
    loop = asyncio.new_event_loop()
    scheduler.start_sync()
    work()
    theirs = descriptors()

    def child_works() -> int:
        nonlocal loop
        # Whatever is read from one of them, or written to it, changes this.
        mark = os.eventfd(7, os.EFD_NONBLOCK)
        for each in theirs:
            os.dup2(mark, each)
        loop = asyncio.new_event_loop()
        scheduler.start_sync()
        work()
        scheduler.stop_sync()
        return 0 if os.eventfd_read(mark) == 7 else 3

    status = fork(child_works).status()
    work()  # nobody has woken its loops, nor kept what was to wake them
    scheduler.stop_sync()
    loop.close()
    assert len(theirs - before) >= 6, "of two loops, this thread, and whoever wakes them"
    assert status == 0
