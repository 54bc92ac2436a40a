"""One limit for the limiters of several processes: real processes, a real redis-server."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from headway import CapacityExceededError, ConfigurationError, Limiter
from headway.backends.redis import RedisBackend
from redis_server import RedisServer, free_port

SECOND = 1_000_000_000
WORKER = Path(__file__).with_name("redis_worker.py")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    own = RedisServer(tmp_path)
    yield own
    own.stop()


class Workers:
    """Processes that wait at one limiter, and what all of them were admitted."""

    def __init__(self, server: RedisServer, folder: Path, limits: str, **options: float) -> None:
        self._arguments = [
            limits,
            str(options.get("tasks", 20)),
            str(options.get("seconds", 4.0)),
            str(options.get("heartbeat", 5.0)),
            str(options.get("hold", 0.0)),
            str(options.get("stand", 0.0)),
        ]
        self._url = server.url
        self._folder = folder
        self._numbers = itertools.count()
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, at: str = "limiter") -> subprocess.Popen[bytes]:
        output = self._folder / f"log{next(self._numbers)}"
        command = [sys.executable, str(WORKER), self._url, str(output), *self._arguments, at]
        self.running.append(subprocess.Popen(command))
        return self.running[-1]

    def wait(self) -> None:
        for process in self.running:
            assert process.wait(60) in (0, -signal.SIGKILL)

    def admissions(self) -> list[int]:
        """When, in order; ns."""
        found = []
        for path in self._folder.glob("log*"):
            for line in path.read_text().splitlines():
                began, ended = map(int, line.split())
                if ended == 0:
                    found.append(began)
        return sorted(found)


async def acquire(limiter: Limiter) -> None:
    async with limiter.acquire():
        pass


def most_in_any(admissions: list[int], span: int) -> int:
    most, first = 0, 0
    for i, at in enumerate(admissions):
        while admissions[first] <= at - span:
            first += 1
        most = max(most, i - first + 1)
    return most


@pytest.mark.long
def test_four_processes_share_a_window_and_use_all_of_it(
    server: RedisServer, tmp_path: Path
) -> None:
    workers = Workers(server, tmp_path, "200 requests/s window", seconds=6)
    for _ in range(4):
        workers.start()
    workers.wait()
    found = workers.admissions()
    assert most_in_any(found, SECOND) <= 200
    # From the first full window to the last moment at which all were there.
    begin, end = found[0] + SECOND, found[0] + 5 * SECOND
    assert len([at for at in found if begin <= at < end]) >= 0.95 * 4 * 200


@pytest.mark.long
@pytest.mark.parametrize("shape", ["window", "bucket burst 20"])
def test_schedulers_and_limiters_of_one_name_share_a_limit_and_use_all_of_it(
    server: RedisServer, tmp_path: Path, shape: str
) -> None:
    workers = Workers(server, tmp_path, f"200 requests/s {shape}", seconds=6)
    for at in ("limiter", "scheduler", "scheduler", "scheduler"):
        workers.start(at)
    workers.wait()
    found = workers.admissions()
    if shape == "window":
        assert most_in_any(found, SECOND) <= 200
    else:
        for i, j in itertools.combinations(range(0, len(found), 7), 2):
            assert j - i <= 20 + 200 * (found[j] - found[i]) / SECOND + 1
    begin, end = found[0] + SECOND, found[0] + 5 * SECOND
    assert len([at for at in found if begin <= at < end]) >= 0.95 * 4 * 200


@pytest.mark.long
def test_four_processes_share_a_bucket_and_use_all_of_it(
    server: RedisServer, tmp_path: Path
) -> None:
    workers = Workers(server, tmp_path, "200 requests/s bucket burst 20", seconds=6)
    for _ in range(4):
        workers.start()
    workers.wait()
    found = workers.admissions()
    for i, j in itertools.combinations(range(0, len(found), 7), 2):
        assert j - i <= 20 + 200 * (found[j] - found[i]) / SECOND + 1
    begin, end = found[0] + SECOND, found[0] + 5 * SECOND
    assert len([at for at in found if begin <= at < end]) >= 0.95 * 4 * 200


@pytest.mark.long
@pytest.mark.parametrize("limit", ["40 requests/s bucket burst 40", "40 requests/s window"])
def test_who_is_admitted_and_goes_on_late_passes_no_limit(
    server: RedisServer, tmp_path: Path, limit: str
) -> None:
    workers = Workers(server, tmp_path, limit, seconds=8, stand=1.4)
    for _ in range(3):
        workers.start()
    workers.wait()
    found = workers.admissions()
    if limit.endswith("window"):
        assert most_in_any(found, SECOND) <= 40
    else:
        for i, j in itertools.combinations(range(len(found)), 2):
            assert j - i <= 40 + 40 * (found[j] - found[i]) / SECOND
    assert len(found) > 80


@pytest.mark.long
def test_who_is_killed_or_stopped_costs_the_others_no_refusal(
    server: RedisServer, tmp_path: Path
) -> None:
    workers = Workers(server, tmp_path, "100 requests/s window", seconds=9, heartbeat=0.5)
    first, second, *_ = [workers.start() for _ in range(4)]
    time.sleep(2)
    first.kill()
    os.kill(second.pid, signal.SIGSTOP)
    workers.start()
    time.sleep(3)  # longer than Redis waits for a sign of life
    os.kill(second.pid, signal.SIGCONT)
    workers.wait()
    assert most_in_any(workers.admissions(), SECOND) <= 100


@pytest.mark.long
def test_what_a_dead_process_held_open_comes_back(server: RedisServer, tmp_path: Path) -> None:
    workers = Workers(
        server, tmp_path, "4 concurrency", tasks=4, seconds=30, heartbeat=0.5, hold=60
    )
    holds_all = workers.start()
    while len(workers.admissions()) < 4:
        time.sleep(0.01)

    async def enter() -> float:
        backend = RedisBackend(server.url, heartbeat=0.5)
        limiter = Limiter(["4 concurrency"], backend=backend, name="shared")
        waiting = asyncio.ensure_future(acquire(limiter))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        holds_all.kill()
        began = time.monotonic()
        await asyncio.wait_for(waiting, 20)
        backend.close()
        return time.monotonic() - began

    assert asyncio.run(enter()) < 3
    workers.wait()


@pytest.mark.long
def test_redis_that_has_lost_its_data_is_told_anew(server: RedisServer, tmp_path: Path) -> None:
    workers = Workers(server, tmp_path, "100 requests/s window", seconds=8, heartbeat=0.5)
    for _ in range(3):
        workers.start()
    client = redis.Redis.from_url(server.url)
    for _ in range(4):
        time.sleep(1.3)
        client.flushall()
    client.close()
    workers.wait()
    assert most_in_any(workers.admissions(), SECOND) <= 100
    assert len(workers.admissions()) > 200


@pytest.mark.long
@pytest.mark.parametrize("loses", [0.0, 1.5], ids=["all is saved", "the last is lost"])
def test_redis_that_is_started_anew_grants_nothing_before_all_have_said_what_they_hold(
    tmp_path: Path, loses: float
) -> None:
    server = RedisServer(tmp_path, "--save", "900 1")
    workers = Workers(server, tmp_path, "100 requests/s window", seconds=8, heartbeat=0.5)
    for _ in range(3):
        workers.start()
    time.sleep(2)
    if loses:
        client = redis.Redis.from_url(server.url)
        client.save()
        client.close()
        time.sleep(loses)
        server.kill()
    else:
        server.stop()
    server.start()
    workers.wait()
    server.stop()
    found = workers.admissions()
    assert most_in_any(found, SECOND) <= 100
    # In the end it goes on as before: three bursts and what has begun of the next.
    assert len([at for at in found if at > found[-1] - 3.2 * SECOND]) > 280


def test_while_redis_is_away_nothing_goes_and_then_all_does(
    server: RedisServer, tmp_path: Path
) -> None:
    async def run() -> None:
        backend = RedisBackend(server.url)
        limiter = Limiter(["1_000 requests/s bucket"], backend=backend)
        async with limiter.acquire():
            pass
        server.stop()
        waiting = [asyncio.ensure_future(acquire(limiter)) for _ in range(10)]
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in waiting)
        server.start()
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        backend.close()

    asyncio.run(run())


def test_what_can_never_fit_fails_at_once_and_all_is_explained(server: RedisServer) -> None:
    async def run() -> None:
        backend = RedisBackend(server.url)
        limiter = Limiter(["10 requests/min bucket", "8 concurrency"], backend=backend)
        with pytest.raises(CapacityExceededError):
            await limiter.acquire(1, 9)
        held = await limiter.acquire(3, 2)
        said = limiter.explain()
        concurrency, requests = said.limits
        assert concurrency.used == 2
        assert 3 <= requests.used <= 4  # its refill begins up to a second late
        assert {state.learnt for state in said.limits} == {"shared by 1 process in Redis"}
        held.settle()
        backend.close()

    asyncio.run(run())


def test_nothing_is_left_in_redis_but_what_is_counted(server: RedisServer) -> None:
    async def run() -> None:
        backend = RedisBackend(server.url, namespace="n{:}", account_id="a")
        limiter = Limiter(["10 requests/s window"], backend=backend, name="m")
        async with limiter.acquire():
            pass
        backend.close()

    asyncio.run(run())
    client = redis.Redis.from_url(server.url, decode_responses=True)
    keys = set(client.keys("*"))
    assert {key.rsplit(":", 1)[1] for key in keys} == {"words", "leaving", "counted"}
    assert {key.rsplit(":", 1)[0] for key in keys} == {"headway:{n%7B%3A%7D:a:m}"}
    assert all(client.ttl(key) > 0 for key in keys)
    client.close()


def test_what_was_granted_for_who_gives_up_is_given_back(server: RedisServer) -> None:
    async def used(limiter: Limiter, fits: Callable[[int], bool]) -> None:
        while not fits(limiter.explain().limits[0].used):  # noqa: ASYNC110 - Redis tells no event
            await asyncio.sleep(0.01)

    async def run() -> None:
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            limits = ["10 requests/min bucket burst 4"]
            one, other = (Limiter(limits, backend=backend) for backend in (first, second))
            await acquire(one)
            waiting = asyncio.ensure_future(other.acquire(4).__aenter__())
            # It has an instant of its own, six seconds from now.
            await used(other, lambda units: units >= 5)
            waiting.cancel()
            await used(other, lambda units: units <= 2)

    asyncio.run(asyncio.wait_for(run(), 5))


def test_any_client_of_redis_py_leads_there_and_is_not_used_itself(server: RedisServer) -> None:
    async def run(client: object) -> None:
        with RedisBackend(redis_client=client) as backend:
            limiter = Limiter(["10 requests/min bucket"], backend=backend, name="m")
            async with limiter.acquire(4):
                pass
            assert limiter.explain().limits[0].used >= 4

    for decodes in (False, True):
        blocking = redis.Redis.from_url(server.url, decode_responses=decodes)
        asyncio.run(run(blocking))
        blocking.flushall()
        # It belongs to no loop that runs; nothing of it is awaited.
        asyncio.run(run(redis.asyncio.Redis.from_url(server.url, decode_responses=decodes)))
        blocking.flushall()
        blocking.close()


def test_who_waits_in_a_thread_is_admitted_too(server: RedisServer) -> None:
    with RedisBackend(server.url) as backend:
        limiter = Limiter(["100 requests/s bucket burst 1"], backend=backend)
        began = time.monotonic()
        for _ in range(11):
            with limiter.acquire_sync():
                pass
        assert 0.1 <= time.monotonic() - began < 5


def test_a_forked_child_holds_no_socket_of_its_parents(server: RedisServer, fork: Any) -> None:
    def sockets() -> set[str]:
        folder = Path("/proc/self/fd")
        links = {os.readlink(each) for each in folder.iterdir() if each.is_symlink()}
        return {link for link in links if link.startswith("socket:")}

    before = sockets()
    with RedisBackend(server.url) as backend:
        limiter = Limiter(["10 requests/h bucket"], backend=backend)
        with limiter.acquire_sync(3):
            pass
        ours = sockets() - before
        assert ours
        assert fork(lambda: len(ours & sockets())).status() == 0
        with limiter.acquire_sync(3):  # the parent's goes on
            pass


def test_a_forked_child_asks_by_itself(server: RedisServer, fork: Any) -> None:
    backend = RedisBackend(server.url)
    limiter = Limiter(["10 requests/h bucket"], backend=backend)
    with limiter.acquire_sync(3):
        pass

    def child() -> int:
        with limiter.acquire_sync(5):
            pass
        time.sleep(0.2)  # it tells what it holds with the next look, and hears of all
        return limiter.explain().limits[0].used

    assert 8 <= fork(child).status() <= 9
    with limiter.acquire_sync():
        pass
    assert 9 <= limiter.explain().limits[0].used <= 10
    backend.close()


def test_a_limit_that_one_changes_holds_for_all_who_share_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        first, second = RedisBackend(server.url), RedisBackend(server.url)
        one = Limiter(["10 requests/h window"], backend=first)
        other = Limiter(["10 requests/h window"], backend=second)
        for limiter in (one, other):
            async with limiter.acquire():
                pass
        one.set_limit("20 requests/h")
        while other.limits[0].amount != 20:
            async with one.acquire():
                pass
            waiting = asyncio.ensure_future(acquire(other))
            await asyncio.wait([waiting], timeout=0.2)
            waiting.cancel()
        first.close()
        second.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert "other limits in Redis, which hold for all who share it: 20 requests/hour window" in (
        caplog.text
    )


def test_limits_of_other_kinds_under_one_name_admit_nothing_and_that_is_logged(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            async with Limiter(["10 requests/h window"], backend=first).acquire():
                pass
            other = Limiter(["10 requests/h bucket"], backend=second)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(acquire(other), 0.5)

    asyncio.run(run())
    assert "limits of other kinds or periods in Redis" in caplog.text


def test_no_secret_of_a_url_is_told(caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://user:s3cret@127.0.0.1:{free_port()}"
    backend = RedisBackend(url)
    limiter = Limiter(["10 requests/h bucket"], backend=backend)

    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(acquire(limiter), 0.5)

    asyncio.run(run())
    backend.close()
    assert "Redis does not answer (ConnectionError)" in caplog.text
    with pytest.raises(ConfigurationError) as error:
        RedisBackend("http://user:s3cret@host")
    told = (caplog.text, repr(backend), str(limiter.explain()), str(error.value))
    assert "s3cret" not in " ".join(told)


def test_what_a_long_period_counts_outlives_it(server: RedisServer) -> None:
    day = 86_400
    with RedisBackend(server.url, key_ttl=60) as backend:
        with Limiter(["10 requests/day window"], backend=backend, name="m").acquire_sync():
            pass
        client = redis.Redis.from_url(server.url)
        assert day < client.ttl(backend.keys("m")[0]) <= 2 * day
        client.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [("heartbeat", 0), ("operation_timeout", -1.0), ("key_ttl", "a"), ("namespace", 1)],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"{option} must be .*, got {value!r}"):
        RedisBackend(**{option: value})  # type: ignore[arg-type]
