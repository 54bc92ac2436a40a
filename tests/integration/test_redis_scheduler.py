"""Schedulers, and a backend's own methods, over one limit in Redis: a real redis-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway import (
    TEXT,
    CapacityExceededError,
    ConfigurationError,
    Limiter,
    ManualClock,
    RateLimiterConfig,
    RequestMetadata,
    Scheduler,
    create_scheduler,
)
from headway.backends.redis import RedisBackend
from redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    own = RedisServer(tmp_path)
    yield own
    own.stop()


@pytest.fixture
def backend(server: RedisServer) -> Iterator[RedisBackend]:
    with RedisBackend(server.url) as own:
        yield own


def scheduler_of(backend: RedisBackend, limits: object, **options: object) -> Scheduler:
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    config = RateLimiterConfig(**options)  # type: ignore[arg-type]
    return create_scheduler(None, config=config, limits=limits, backend=backend)


async def said() -> str:
    return "an answer"


def one(tokens: int = 0) -> RequestMetadata:
    return RequestMetadata("r", "m", TEXT, estimated_tokens=tokens)


def test_what_one_scheduler_has_used_another_one_waits_for(server: RedisServer) -> None:
    async def run() -> None:
        limits = ["5 requests/2s window"]
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            async with scheduler_of(first, limits) as ours, scheduler_of(second, limits) as theirs:
                for _ in range(5):
                    assert await ours.submit_request(one(), said) == "an answer"
                used = time.monotonic()
                assert await theirs.submit_request(one(), said) == "an answer"
                assert time.monotonic() - used >= 1.5
                assert " of 5 used" in str(theirs.explain(one()))
                assert "shared by 2 processes in Redis" in str(theirs.explain(one()))

    asyncio.run(run())


def test_a_limiter_of_a_buckets_name_shares_its_limit(backend: RedisBackend) -> None:
    async def run() -> None:
        limiter = Limiter(["3 requests/min window"], backend=backend, name="m")
        for _ in range(3):
            (await limiter.acquire()).settle()
        async with scheduler_of(backend, ["3 requests/min window"]) as scheduler:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(scheduler.submit_request(one(), said), 0.5)

    asyncio.run(run())


def test_each_bucket_has_its_own_and_tokens_count_too(backend: RedisBackend) -> None:
    async def run() -> None:
        limits = ["100 requests/min", "1_000 tokens/min"]
        async with scheduler_of(backend, limits) as scheduler:
            await scheduler.submit_request(one(600), said)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(scheduler.submit_request(one(600), said), 0.5)
            other = RequestMetadata("r", "other", TEXT, estimated_tokens=600)
            assert await scheduler.submit_request(other, said) == "an answer"
            with pytest.raises(CapacityExceededError):
                await scheduler.submit_request(one(1_001), said)

    asyncio.run(run())


def test_credit_is_not_taken_for_who_waits_at_the_gate(server: RedisServer) -> None:
    async def run() -> None:
        limits = ["1_000 requests/min"]
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            gated = scheduler_of(first, limits, max_concurrent_executions=1)
            async with gated as ours, scheduler_of(second, limits) as theirs:
                going = asyncio.Event()

                async def long() -> None:
                    await going.wait()

                held = [asyncio.ensure_future(ours.submit_request(one(), long)) for _ in range(500)]
                await asyncio.sleep(0.5)  # half a second of looks at what is held and not used
                before = time.monotonic()
                many = (theirs.submit_request(one(), said) for _ in range(900))
                assert len(await asyncio.gather(*many)) == 900
                assert time.monotonic() - before < 5
                going.set()
                for each in held:
                    each.cancel()
                await asyncio.gather(*held, return_exceptions=True)

    asyncio.run(run())


def test_who_has_credit_at_the_gate_keeps_it_until_his_turn(backend: RedisBackend) -> None:
    async def run() -> None:
        limits = {"m": ["1_000 requests/min"]}
        async with scheduler_of(backend, limits, max_concurrent_executions=1) as scheduler:

            async def slow() -> None:
                await asyncio.sleep(0.4)

            free = RequestMetadata("r", "u", TEXT)
            busy = [asyncio.ensure_future(scheduler.submit_request(free, slow))]
            await asyncio.sleep(0.05)
            before = time.monotonic()
            ours = asyncio.ensure_future(scheduler.submit_request(one(), said))
            await asyncio.sleep(0.01)
            busy += [asyncio.ensure_future(scheduler.submit_request(free, slow)) for _ in range(60)]
            assert await ours == "an answer"
            # Of 60 that have come after it, and take 24 seconds, one or two went before.
            assert time.monotonic() - before < 2
            for each in busy:
                each.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    asyncio.run(run())


def test_limits_in_another_order_are_the_same_and_other_resources_are_not(
    server: RedisServer,
) -> None:
    async def run() -> None:
        limits = ["3 requests/min", "1_000 tokens/min"]
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            async with scheduler_of(first, limits) as ours:
                for _ in range(2):
                    await ours.submit_request(one(1), said)
            async with scheduler_of(second, limits[::-1]) as theirs:
                await theirs.submit_request(one(1), said)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(theirs.submit_request(one(1), said), 0.5)
            # Whoever comes second must not take tokens for requests.
            requests = Limiter(["100 requests/min"], backend=first, name="n")
            (await requests.acquire()).settle()
            tokens = Limiter(["5_000 tokens/min"], backend=second, name="n")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(tokens.acquire(1), 0.5)
            assert [str(each) for each in requests.limits] == ["100 requests/min"]

    asyncio.run(run())


def test_a_limit_that_one_process_changes_leaves_the_others_as_they_are(
    server: RedisServer,
) -> None:
    async def run() -> None:
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            changes = ((first, 5, 100), (second, 5, 100), (first, 5, 50), (second, 9, 100))
            for backend, rpm, tpm in changes:
                given = {"rpm_limit": rpm, "tpm_limit": tpm}
                assert (await backend.check_and_reserve_capacity("k", 1, 0, given))[0]
            # It has heard of the 9; and whoever said so knew nothing of the 50.
            assert (await first.check_and_reserve_capacity("k", 1, 0))[0]
            state = await first.get_state("k")
            assert state is not None
            assert (state["request_limit"], state["token_limit"]) == (9, 50)

    asyncio.run(run())


def test_without_limits_nothing_is_asked_of_redis(backend: RedisBackend) -> None:
    async def run() -> None:
        async with scheduler_of(backend, None) as scheduler:
            assert await scheduler.submit_request(one(), said) == "an answer"
        assert (await backend.health_check()).metadata["scripts"] == 0

    asyncio.run(run())


def test_a_clock_of_ones_own_is_refused(backend: RedisBackend) -> None:
    with pytest.raises(ConfigurationError, match="clock: must be that of the backend"):
        create_scheduler(None, backend=backend, clock=ManualClock())


def test_what_is_reserved_by_key_is_shared(server: RedisServer) -> None:
    async def run() -> None:
        limits = {"rpm_limit": 3, "tpm_limit": 1_000}
        with RedisBackend(server.url) as first, RedisBackend(server.url) as second:
            taken = [await first.check_and_reserve_capacity("k", 1, 100, limits) for _ in range(2)]
            assert all(ok for ok, _ in taken)
            ok, last = await second.check_and_reserve_capacity("k", 1, 100, limits)
            assert ok
            assert last is not None
            assert await first.check_and_reserve_capacity("k", 1, 100, limits) == (False, None)
            assert await second.check_and_reserve_capacity("k", 4, 0, limits) == (False, None)
            assert await second.release_reservation("k", last)
            # It is there again when Redis has been told.
            deadline = time.monotonic() + 5
            while not (await first.check_and_reserve_capacity("k", 1, 100, limits))[0]:
                assert time.monotonic() < deadline
            state = await first.get_state("k")
            assert state is not None
            assert (state["request_limit"], state["remaining_requests"]) == (3, 0)

    asyncio.run(run())


def test_without_an_answer_nothing_is_reserved_and_health_says_so(
    server: RedisServer,
) -> None:
    async def run() -> None:
        with RedisBackend(server.url, operation_timeout=0.2) as backend:
            limits = {"rpm_limit": 3}
            assert (await backend.check_and_reserve_capacity("k", 1, 0, limits))[0]
            assert (await backend.health_check()).metadata["state"] == "normal"
            server.stop()
            assert await backend.check_and_reserve_capacity("k", 1, 0, limits) == (False, None)
            health = await backend.health_check()
            assert not health.healthy
            assert health.backend_type == "redis"
            assert health.metadata is not None
            assert health.metadata["state"] == "degraded"
            server.start()

    asyncio.run(run())
