"""What schedulers count, in get_metrics(), in prometheus_client and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import gc
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from typing import Any

import prometheus_client
import pytest
from users import at_once, until

from headway import (
    CapacityExceededError,
    DeadlineExceededError,
    ManualClock,
    ProviderError,
    ProviderInterface,
    QueueOverflowError,
    RateLimiterConfig,
    RequestMetadata,
    RequestTimeoutError,
    SchedulerStoppedError,
    TooManyFailedRequestsError,
    create_scheduler,
    metrics,
)
from headway.scheduler import Scheduler, StateConfig, buckets, verdicts


def make(**options: Any) -> tuple[Scheduler, str]:
    """A scheduler, and the name that its metrics bear: each test has its own."""
    name = uuid.uuid4().hex
    own = ("limits", "clock", "mode", "provider", "classifier")
    given = {each: options.pop(each) for each in own if each in options}
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, max_backoff=0.001, **options)
    state_config = StateConfig(namespace=name)
    return create_scheduler(object(), config=config, state_config=state_config, **given), name


def asks(**fields: Any) -> RequestMetadata:
    return RequestMetadata("r", fields.pop("model", "m"), "text", **fields)


def samples(text: str, scheduler: str) -> dict[str, float]:
    """The samples of one scheduler, its label left out."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line)
        own = f'scheduler="{scheduler}"'
        if match and own in match[2]:
            labels = ",".join(each for each in match[2].split(",") if each != own)
            found[f"{match[1]}{{{labels}}}" if labels else match[1]] = float(match[3])
    return found


def sorted_labels(found: dict[str, float]) -> dict[str, float]:
    """The same where each way out writes labels in an order of its own; without histograms."""
    return {
        re.sub(r"\{(.*)\}", lambda match: f"{{{','.join(sorted(match[1].split(',')))}}}", each): n
        for each, n in found.items()
        if not re.search(r"_(bucket|sum|count)\b", each)
    }


async def call() -> int:
    return 1


async def fails() -> None:
    raise ValueError


def lived(**options: Any) -> tuple[Scheduler, str]:
    """One that has seen a little of everything."""
    attempts = 0

    class Refused(Exception):
        status_code = 429
        headers = {"retry-after": "0"}  # noqa: RUF012

    async def refused_once() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise Refused
        return 1

    async def used() -> dict[str, Any]:
        return {"usage": {"total_tokens": 4}}

    async def run() -> tuple[Scheduler, str]:
        clock = ManualClock()
        scheduler, name = make(
            limits=["60 requests/min bucket burst 6", "1_000 tokens/min"],
            clock=clock,
            max_queue_size=1,
            **options,
        )
        async with scheduler:
            await scheduler.submit_request(asks(estimated_tokens=10), call)
            await scheduler.submit_request(asks(estimated_tokens=10), used)
            with contextlib.suppress(ValueError):
                await scheduler.submit_request(asks(), fails)
            await scheduler.submit_request(asks(), refused_once)
            with contextlib.suppress(Exception):
                await scheduler.submit_request(asks(cost={"requests": 7}), call)
            await scheduler.submit_request(asks(), call)
            waiting = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await asyncio.sleep(0)
            with contextlib.suppress(Exception):
                await scheduler.submit_request(asks(), call)
            with contextlib.suppress(Exception):
                await scheduler.submit_request(asks(deadline=0.1), call)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return scheduler, name

    return asyncio.run(run())


EXPECTED = {
    'headway_requests_total{bucket="m",outcome="succeeded"}': 4,
    'headway_requests_total{bucket="m",outcome="failed"}': 1,
    'headway_requests_total{bucket="m",outcome="cancelled"}': 1,
    'headway_requests_total{bucket="m",outcome="overflowed"}': 2,
    'headway_requests_total{bucket="m",outcome="never_fits"}': 1,
    'headway_requests_total{bucket="m",outcome="timed_out"}': 0,
    'headway_attempts_total{bucket="m"}': 6,
    'headway_retries_total{bucket="m"}': 1,
    'headway_refusals_total{bucket="m"}': 1,
    'headway_refusal_verdicts_total{bucket="m",verdict="another consumer"}': 1,
    'headway_cooldowns_total{bucket="m"}': 1,
    'headway_denials_total{bucket="m",limit="requests/min"}': 3,
    'headway_reserved_units_total{bucket="m",resource="tokens"}': 20,
    'headway_settled_units_total{bucket="m",resource="tokens"}': 14,
    'headway_refunded_units_total{bucket="m",resource="tokens"}': 6,
    'headway_wait_seconds_count{bucket="m"}': 5,
    'headway_queue_depth{bucket="m"}': 0,
    'headway_in_flight{bucket="m"}': 0,
    'headway_remaining_units{bucket="m",limit="tokens/min",resource="tokens"}': 986,
    'headway_capacity_units{bucket="m",limit="tokens/min",resource="tokens"}': 1000,
}


def test_what_threads_do_is_counted_as_well() -> None:
    attempts = 0

    class Refused(Exception):
        status_code = 429
        headers = {"retry-after": "0"}  # noqa: RUF012

    def refused_once() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise Refused
        return 1

    def fails() -> None:
        raise ValueError

    scheduler, name = make(
        limits=["60 requests/min bucket burst 6", "1_000 tokens/min"],
        clock=ManualClock(),
        max_queue_size=1,
    )
    scheduler.start_sync()
    scheduler.submit_sync(asks(estimated_tokens=10), lambda: 1)
    scheduler.submit_sync(asks(estimated_tokens=10), lambda: {"usage": {"total_tokens": 4}})
    with pytest.raises(ValueError):
        scheduler.submit_sync(asks(), fails)
    scheduler.submit_sync(asks(), refused_once)
    with pytest.raises(CapacityExceededError):
        scheduler.submit_sync(asks(cost={"requests": 7}), lambda: 1)
    scheduler.submit_sync(asks(), lambda: 1)
    stopped: list[BaseException] = []

    def waits() -> None:
        try:
            scheduler.submit_sync(asks(), lambda: 1)
        except SchedulerStoppedError as error:
            stopped.append(error)

    waiting = threading.Thread(target=waits)
    waiting.start()
    while scheduler.get_metrics()["buckets"]["m"]["queue_depth"] == 0:
        time.sleep(0.001)
    for deadline in (None, 0.1):
        with pytest.raises(QueueOverflowError):
            scheduler.submit_sync(asks(deadline=deadline), lambda: 1)
    scheduler.stop_sync(0)
    waiting.join(10)
    assert len(stopped) == 1
    found = samples(metrics.exposition(), name)
    expected = EXPECTED | {
        'headway_requests_total{bucket="m",outcome="cancelled"}': 0,
        'headway_requests_total{bucket="m",outcome="stopped"}': 1,
    }
    assert {each: found.get(each) for each in expected} == expected


def test_everything_is_counted_and_all_ways_out_tell_the_same() -> None:
    scheduler, name = lived()
    text = samples(metrics.exposition(), name)
    assert {each: text.get(each) for each in EXPECTED} == EXPECTED
    theirs = samples(prometheus_client.generate_latest().decode(), name)
    assert sorted_labels(text) == sorted_labels(theirs)
    assert theirs['headway_wait_seconds_count{bucket="m"}'] == 5
    found = scheduler.get_metrics()
    assert (found["attempts"], found["retries"], found["requests_completed"]) == (6, 1, 4)
    assert found["queue_overflows"] == 2
    ours = {}
    for series, listed in found["series"].items():
        for each in listed:
            labels = sorted(f'{k}="{v}"' for k, v in each.items() if k not in ("value", "le"))
            if "value" in each:
                ours[f"{series}{{{','.join(labels)}}}".replace("{}", "")] = each["value"]
    histogram = re.compile(r"_(bucket|sum|count)\b")
    assert ours == {
        each: n for each, n in sorted_labels(text).items() if not histogram.search(each)
    }
    (waits,) = found["series"]["headway_wait_seconds"]
    assert (waits["bucket"], waits["count"]) == ("m", 5)
    assert waits["sum"] == text['headway_wait_seconds_sum{bucket="m"}']
    assert max(waits["le"].values()) <= 5
    silent = create_scheduler(None, config=RateLimiterConfig(metrics_enabled=False))
    assert silent.get_metrics()["series"] == {}


def test_what_goes_wrong_and_what_is_out_is_told_over_http_and_by_prometheus_client() -> None:
    class Provider(ProviderInterface):
        name = "none"

        async def discover_limits(self, *_: Any, **__: Any) -> Any:
            return {}

        def parse_rate_limit_response(self, *_: Any, **__: Any) -> Any:
            raise ValueError

        async def get_bucket_for_model(self, model_id: str, *_: Any, **__: Any) -> str:
            return model_id

    class Breaker:
        async def can_execute(self, model_id: str) -> bool:
            raise ValueError

    class Classifier:
        async def classify(self, request: dict[str, Any]) -> Any:
            raise ValueError

    class Unavailable(Exception):
        status_code = 503
        headers: dict[str, str] = {}  # noqa: RUF012

    async def unavailable() -> None:
        raise Unavailable

    async def hangs() -> None:
        await asyncio.Event().wait()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    clock = ManualClock()
    scheduler, name = make(
        limits={"m": ["60 requests/min bucket burst 2"]},
        clock=clock,
        provider=Provider(),
        classifier=Classifier(),
        max_queue_size=1,
        overflow_policy="drop_oldest",
        max_failures=1,
        max_retries=0,
        start_prometheus_server=True,
        prometheus_port=port,
    )

    async def run() -> None:
        async with scheduler:
            assert await scheduler.submit_request(asks(), call) == 1  # its bucket is known now
            out = asyncio.ensure_future(scheduler.submit_request(asks(), hangs))
            await asyncio.sleep(0)
            with pytest.raises(DeadlineExceededError):
                await scheduler.submit_request(asks(deadline=0.5), call)
            oldest = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await asyncio.sleep(0)
            late = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            with pytest.raises(QueueOverflowError):
                await oldest
            # Admitted when it is due, and handed over 4 ms later.
            clock.advance(2)  # it is admitted now, and handed over 4 ms later
            clock.advance(0.004)
            assert await late == 1
            with pytest.raises(RequestTimeoutError):
                await scheduler.submit_request(asks(model="slow", timeout=0.01), hangs)
            with pytest.raises(Unavailable):
                await scheduler.submit_request(asks(model="down"), unavailable)
            with pytest.raises(TooManyFailedRequestsError):
                await scheduler.submit_request(asks(model="down"), call)
            with pytest.raises(ProviderError):
                await scheduler.submit_request({}, call)  # type: ignore[arg-type]
            scheduler.circuit_breaker = Breaker()
            waits = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await until(lambda: scheduler.get_metrics()["buckets"]["m"]["queue_depth"] == 1)

            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            found = samples(text, name)
            expected = {
                'headway_requests_total{bucket="m",outcome="succeeded"}': 2,
                'headway_requests_total{bucket="slow",outcome="timed_out"}': 1,
                'headway_requests_total{bucket="m",outcome="deadline"}': 1,
                'headway_requests_total{bucket="m",outcome="dropped"}': 1,
                'headway_requests_total{bucket="down",outcome="failed"}': 1,
                'headway_requests_total{bucket="down",outcome="breaker"}': 1,
                'headway_queue_depth{bucket="m"}': 1,
                'headway_in_flight{bucket="m"}': 1,
                'headway_in_flight{bucket="down"}': 0,
                'headway_lateness_seconds_count{bucket="m"}': 1,
                'headway_lateness_seconds_sum{bucket="m"}': 0.004,
                'headway_lateness_seconds_bucket{bucket="m",le="0.0025"}': 0,
                'headway_lateness_seconds_bucket{bucket="m",le="0.005"}': 1,
                'headway_user_code_errors_total{origin="provider"}': 1,
                'headway_user_code_errors_total{origin="classifier"}': 1,
                'headway_user_code_errors_total{origin="callback"}': 1,
            }
            assert {each: found.get(each) for each in expected} == pytest.approx(expected)
            theirs = samples(prometheus_client.generate_latest().decode(), name)
            assert sorted_labels(found) == sorted_labels(theirs)
            for task in (out, waits):
                task.cancel()
            await asyncio.gather(out, waits, return_exceptions=True)

    asyncio.run(run())
    found = samples(metrics.exposition(), name)
    assert found['headway_in_flight{bucket="m"}'] == found['headway_queue_depth{bucket="m"}'] == 0
    assert found['headway_requests_total{bucket="m",outcome="cancelled"}'] == 2


def test_what_a_stream_has_used_is_settled_however_it_ends() -> None:
    async def chunks() -> Any:
        yield {"usage": {"total_tokens": 4}}
        yield {}

    async def opens() -> Any:
        return chunks()

    scheduler, name = make(limits=["1_000 tokens/min"])

    def units(event: str, resource: str = "tokens") -> float:
        key = f'headway_{event}_units_total{{bucket="m",resource="{resource}"}}'
        return samples(metrics.exposition(), name)[key]

    async def run() -> list[Any]:
        await scheduler.start()
        ended = await scheduler.submit_request(asks(estimated_tokens=10), opens)
        assert (units("reserved"), units("settled")) == (10, 0)
        async for _ in ended:
            pass
        assert (units("settled"), units("refunded")) == (4, 6)
        await ended.aclose()
        closed = await scheduler.submit_request(asks(estimated_tokens=10), opens)
        await closed.aclose()
        assert (units("settled"), units("refunded")) == (14, 6)
        return [await scheduler.submit_request(asks(estimated_tokens=10), opens)]

    left = asyncio.run(run())
    assert units("settled") == 14
    left.clear()  # its loop has gone, and cannot release it
    gc.collect()
    assert (units("settled"), units("refunded")) == (24, 6)
    assert units("settled", "requests") == units("reserved", "requests") == 3
    asyncio.run(scheduler.stop(0))


def test_what_forgotten_buckets_have_done_stays_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MOST_BUCKETS", 10)
    counted = ("requests_scheduled", "requests_completed", "requests_failed", "attempts")

    async def run() -> None:
        clock = ManualClock()
        scheduler, _ = make(limits=["5 requests/s"], clock=clock, max_retries=1)
        paused, go_on = asyncio.Event(), asyncio.Event()

        async def pause(_: float) -> None:
            paused.set()
            await go_on.wait()

        async def call(number: int) -> int:
            if number % 2:
                raise ValueError(number)
            return number

        async def fails() -> None:
            raise ConnectionError

        async with scheduler:
            await scheduler.submit_request(asks(model="retried"), at_once)
            with monkeypatch.context() as patched:
                patched.setattr(verdicts.asyncio, "sleep", pause)
                retried = asyncio.ensure_future(
                    scheduler.submit_request(asks(model="retried"), fails)
                )
                await paused.wait()
            for number in range(50):
                clock.advance(5)  # nothing of what went before counts any more
                call_it = functools.partial(call, number)
                with contextlib.suppress(ValueError):
                    await scheduler.submit_request(asks(model=f"m{number}"), call_it)
            assert len(scheduler.get_metrics()["buckets"]) < 30
            go_on.set()
            with pytest.raises(ConnectionError):
                await retried
            found = scheduler.get_metrics()
            assert [found[name] for name in counted] == [52, 26, 26, 53]

    asyncio.run(run())


def test_without_metrics_nothing_is_kept() -> None:
    _, name = lived(metrics_enabled=False)
    assert not samples(metrics.exposition(), name)


def test_a_bucket_whose_limits_are_not_known_shows_none() -> None:
    async def run() -> str:
        scheduler, name = make()
        async with scheduler:
            await scheduler.submit_request(asks(), call)
            found = samples(metrics.exposition(), name)
        assert found['headway_requests_total{bucket="m",outcome="succeeded"}'] == 1
        assert not any("remaining" in each for each in found)
        return name

    asyncio.run(run())


# Prints what is served at a URL, once it is told to.
FETCH = """
import sys, urllib.request
sys.stdin.readline()
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
"""


def test_it_is_served_without_the_gil_while_the_scheduler_runs() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    scheduler, name = make(
        limits=["60 requests/min"], start_prometheus_server=True, prometheus_port=port
    )
    scheduler.start_sync()
    scheduler.submit_sync(asks(), lambda: 1)
    fetching = subprocess.Popen(
        [sys.executable, "-c", FETCH, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert fetching.stdin is not None
    assert fetching.stdout is not None
    # What is called so keeps the GIL: nobody else here has it until the other process, which begins
    # only now, has its answer or has given up.
    libc, first = ctypes.PyDLL(None), ctypes.create_string_buffer(1)
    libc.write(fetching.stdin.fileno(), b"\n", 1)
    length = libc.read(fetching.stdout.fileno(), first, 1)
    text = (first.raw + fetching.communicate()[0]).decode()
    assert length == 1
    found = samples(text, name)
    assert found['headway_attempts_total{bucket="m"}'] == 1
    assert (
        found['headway_remaining_units{bucket="m",limit="requests/min",resource="requests"}'] == 59
    )
    scheduler.stop_sync()
    with pytest.raises(OSError):
        urllib.request.urlopen(url)


def test_schedulers_of_one_process_share_a_port_until_the_last_of_them_stops() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"

    async def run() -> None:
        options = {"start_prometheus_server": True, "prometheus_port": port}
        schedulers = [make(**options) for _ in range(3)]
        for scheduler, _ in schedulers:
            await scheduler.start()
            await scheduler.submit_request(asks(), call)
        for scheduler, _ in schedulers:
            text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            for _, name in schedulers:
                assert samples(text, name)['headway_attempts_total{bucket="m"}'] == 1
            await scheduler.stop()

    for _ in range(2):  # the port is free again, and can be shared again
        asyncio.run(run())
        with pytest.raises(OSError):
            urllib.request.urlopen(url)


def test_a_port_that_somebody_else_has_is_named() -> None:
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        port = theirs.getsockname()[1]
        scheduler, _ = make(start_prometheus_server=True, prometheus_port=port)
        with pytest.raises(OSError, match=rf"metrics .* at 127\.0\.0\.1:{port}: .* in use"):
            scheduler.start_sync()
        assert not scheduler.is_running()


def test_reading_it_from_threads_while_buckets_come_and_go_harms_nothing() -> None:
    scheduler, name = make()
    scheduler.start_sync()
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                metrics.exposition()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1_200):
        scheduler.submit_sync(asks(model=f"m{i}"), lambda: 1)
    stop.set()
    for thread in threads:
        thread.join(30)
    scheduler.stop_sync()
    assert not errors
    found = samples(metrics.exposition(), name)
    total = sum(n for each, n in found.items() if each.startswith("headway_attempts_total"))
    assert total == 1_200
    assert 'headway_attempts_total{bucket="other"}' in found


def test_the_child_of_a_fork_lets_the_port_go(fork: Any) -> None:
    def waits(read: int, write: int) -> int:
        """Until the parent has closed its port, and bound it anew."""
        os.close(write)
        return len(os.read(read, 1))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scheduler, _ = make(start_prometheus_server=True, prometheus_port=port)

    async def run() -> None:
        read, write = os.pipe()
        async with scheduler:
            child = fork(lambda: waits(read, write))
            os.close(read)
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))
            again.listen()
        os.close(write)
        assert await asyncio.to_thread(child.status) == 0

    asyncio.run(run())
