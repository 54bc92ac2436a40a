"""Views: states as values, and StateManager between a scheduler and a backend."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import headway.views._provider
import headway.views.manager
from headway import (
    BackendConnectionError,
    BackendOperationError,
    BucketNotFoundError,
    ConfigurationError,
    DiscoveredBucket,
    ManualClock,
    MemoryBackend,
    ProviderInterface,
    RateLimitInfo,
    TooManyFailedRequestsError,
)
from headway.scheduler import CachePolicy, RateLimitState, StateConfig, StateManager, StateType

AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


class Provider(ProviderInterface):
    """Lists one bucket for every model but one."""

    name = "test"

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        return {"tier:1": DiscoveredBucket("tier:1", rpm_limit=3)}

    def parse_rate_limit_response(
        self,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        status_code: int | None = None,
    ) -> RateLimitInfo:
        raise NotImplementedError

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        return "unlisted" if model_id == "odd" else "tier:1"


# States.


def test_a_state_knows_only_its_model_at_first() -> None:
    before = datetime.now(timezone.utc)
    state = RateLimitState("m")
    assert (state.remaining_requests, state.request_limit, state.bucket_id) == (None, None, None)
    assert before <= state.reset_at <= datetime.now(timezone.utc)
    assert not state.is_verified
    assert not state.is_exhausted
    assert state.usage_percentage == 0.0
    with pytest.raises(FrozenInstanceError):
        state.remaining_requests = 1  # type: ignore[misc]


def test_a_state_survives_a_dump_in_either_mode() -> None:
    state = RateLimitState(
        "m", 1, 2, 3, AT, AT, AT, last_request_time=AT, request_limit=10, is_verified=True
    )
    assert RateLimitState.model_validate(state.model_dump()) == state
    dumped = json.loads(json.dumps(state.model_dump(mode="json")))
    assert dumped["reset_at"] == "2030-01-02T03:04:05+00:00"
    assert RateLimitState.model_validate(dumped) == state
    assert RateLimitState.model_validate(state) is state
    with pytest.raises(ConfigurationError, match="mode must be"):
        state.model_dump(mode="xml")


def test_what_a_store_of_texts_gives_back_is_read_and_further_keys_are_passed_over() -> None:
    state = RateLimitState.model_validate(
        {
            "model_id": "m",
            "remaining_requests": "7.0",
            "remaining_tokens": -3,
            "reset_at": str(AT.timestamp()),
            "reset_at_daily": "2030-01-02T03:04:05Z",
            "last_updated": AT.replace(tzinfo=None),
            "bucket_id": None,
            "is_verified": "1",
            "note": "mine",
        }
    )
    assert state == RateLimitState("m", 7, None, -3, AT, AT, AT, is_verified=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_id", None, "model_id must be given"),
        ("model_id", 3, "model_id must be a text, got 3"),
        ("remaining_requests", "many", "remaining_requests must be a whole number, got 'many'"),
        ("remaining_requests", float("nan"), "remaining_requests must be a whole number, got nan"),
        ("reset_at", "soon", "reset_at must be an instant, got 'soon'"),
        ("is_verified", "perhaps", "is_verified must be True or False, got 'perhaps'"),
    ],
)
def test_a_state_that_says_nonsense_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError) as error:
        RateLimitState.model_validate({"model_id": "m", field: value})
    assert str(error.value) == message
    with pytest.raises(ConfigurationError, match="state must be a dict, got int"):
        RateLimitState.model_validate(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "tokens", "exhausted"),
    [(None, None, False), (1, 1, False), (0, 1, True), (1, 0, True), (-1, None, True)],
)
def test_a_state_is_exhausted_by_requests_or_by_tokens(
    requests: int | None, tokens: int | None, exhausted: bool
) -> None:
    state = RateLimitState("m", remaining_requests=requests, remaining_tokens=tokens)
    assert state.is_exhausted == exhausted


def test_usage_is_that_of_the_scarcer_of_requests_and_tokens() -> None:
    def usage(requests: int, tokens: int, limit: int) -> float:
        state = RateLimitState(
            "m",
            remaining_requests=requests,
            remaining_tokens=tokens,
            request_limit=limit,
            token_limit=limit,
        )
        return state.usage_percentage

    assert usage(7, 4, 10) == 60.0
    assert usage(-5, 4, 10) == 100.0
    assert usage(0, 0, 0) == 100.0


def test_the_time_until_reset_is_to_the_earlier_one_that_is_to_come() -> None:
    now = datetime.now(timezone.utc)
    soon, late, past = (now + timedelta(seconds=n) for n in (50, 500, -5))
    for at, daily, expected in ((soon, late, 50), (past, late, 500), (late, soon, 50)):
        state = RateLimitState("m", reset_at=at, reset_at_daily=daily)
        assert state.time_until_reset == pytest.approx(expected, abs=5)
    assert RateLimitState("m", reset_at=past, reset_at_daily=past).time_until_reset == 0.0


def test_the_fallback_is_a_cautious_guess() -> None:
    state = RateLimitState.create_fallback_state("m", "b")
    assert (state.model_id, state.bucket_id, state.is_verified) == ("m", "b", False)
    assert state.remaining_requests == 30
    assert state.remaining_requests_daily == 500
    assert state.remaining_tokens == 5000
    assert state.reset_at - state.last_updated == timedelta(minutes=1)
    assert state.reset_at_daily - state.last_updated == timedelta(days=1)


def test_state_types_have_the_promised_values() -> None:
    assert [each.value for each in StateType] == [
        "rate_limit",
        "reservation",
        "model_config",
        "bucket_info",
        "account_limit",
    ]


# StateManager.


def test_starting_and_stopping_drives_the_backend_once_each() -> None:
    calls: list[str] = []

    class Backend(MemoryBackend):
        async def start(self) -> None:
            calls.append("start")

        async def stop(self) -> None:
            calls.append("stop")

    async def main() -> None:
        manager = StateManager(Backend())
        await manager.stop()
        for _ in range(2):
            await manager.start()
        assert manager.get_metrics()["state_manager"]["running"]
        for _ in range(2):
            await manager.stop()

    asyncio.run(main())
    assert calls == ["start", "stop"]


def test_a_state_that_is_not_there_is_none_and_nothing_is_made_up() -> None:
    async def main() -> None:
        manager = StateManager(MemoryBackend(), provider=Provider())
        assert await manager.get_state("tier:1") is None
        assert await manager.backend.get_all_states() == {}

    asyncio.run(main())


def test_a_state_that_is_none_is_refused_with_its_type() -> None:
    manager = StateManager(MemoryBackend())
    with pytest.raises(TypeError, match="state of type str: must be a RateLimitState or a dict"):
        asyncio.run(manager.set_state("m", "junk"))  # type: ignore[arg-type]


def test_a_written_state_is_what_is_read_and_what_can_be_reserved() -> None:
    async def main() -> None:
        manager = StateManager(MemoryBackend(), provider=Provider())
        state = RateLimitState("m", 2, 500, None, AT, AT, request_limit=3, bucket_id="tier:1")
        await manager.set_state("tier:1", state)
        read = await manager.get_state("tier:1")
        assert read == state
        for expected in (True, True, False):
            took, _ = await manager.check_and_reserve_capacity("m", "text")
            assert took == expected
        # At once, though a cache would have had it otherwise.
        read = await manager.get_state("tier:1")
        assert isinstance(read, RateLimitState)
        assert read.is_exhausted
        assert read.remaining_requests_daily == 500

    asyncio.run(main())


def test_states_of_several_types_do_not_meet() -> None:
    async def main() -> None:
        manager = StateManager(MemoryBackend())
        for i, state_type in enumerate(StateType):
            await manager.set_state("k", {"remaining_requests": i, "at": AT}, state_type)
        for i, state_type in enumerate(StateType):
            if state_type is not StateType.RATE_LIMIT:
                assert await manager.get_state("k", state_type) is not None
                stored = await manager.backend.get_state(f"default:{state_type.value}:k")
                assert stored is not None
                assert stored["remaining_requests"] == i
                assert stored["at"] == AT.isoformat()
        limits = await manager.get_state("k")
        assert isinstance(limits, RateLimitState)
        assert (limits.model_id, limits.remaining_requests) == ("k", 0)

    asyncio.run(main())


def test_capacity_is_reserved_and_released_in_the_bucket_of_the_model() -> None:
    async def main() -> None:
        manager = StateManager(MemoryBackend(), provider=Provider())
        took, name = await manager.check_and_reserve_capacity("m", "text", 3, 100)
        assert took
        assert name is not None
        assert await manager.check_and_reserve_capacity("n", "text") == (False, None)
        assert await manager.release_reservation(name, "n", "text")
        assert await manager.release_reservation(name, "n", "text")
        assert not await manager.release_reservation("never", "n", "text")
        state = await manager.backend.get_state("tier:1")
        assert state is not None
        assert (state["remaining_requests"], state["token_limit"]) == (3, None)

    asyncio.run(main())


def test_reserving_needs_a_provider_that_lists_the_bucket() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="needs a provider"):
            await StateManager(MemoryBackend()).check_and_reserve_capacity("m", "text")
        manager = StateManager(MemoryBackend(), provider=Provider())
        with pytest.raises(BucketNotFoundError, match=r"unlisted.* model 'odd'"):
            await manager.check_and_reserve_capacity("odd", "text")

    asyncio.run(main())


class Counting(Provider):
    """Counts what it is asked, and raises what it is told to."""

    rpm = 3

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.forced: list[bool] = []
        self.raises: Exception | None = None
        self.answers: asyncio.Event | None = None

    async def _ask(self, what: str) -> None:
        self.asked[what] += 1
        if self.answers is not None:
            await self.answers.wait()
        if self.raises is not None:
            raise self.raises

    async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
        self.forced.append(force_refresh)
        await self._ask("limits")
        return {"tier:1": DiscoveredBucket("tier:1", rpm_limit=self.rpm)}

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        await self._ask(model_id)
        return await super().get_bucket_for_model(model_id, resource_type)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """By which a manager knows how old its provider's answers are."""
    clock = ManualClock(100.0)
    monkeypatch.setattr(headway.views._provider, "monotonic", clock.now)
    return clock


def test_a_provider_is_asked_once_for_a_model_and_for_limits_now_and_then(
    clock: ManualClock,
) -> None:
    async def main() -> None:
        provider = Counting()
        provider.answers = asyncio.Event()
        manager = StateManager(MemoryBackend(), provider=provider)

        async def reserve(count: int = 1) -> list[bool]:
            asked = (manager.check_and_reserve_capacity("m", "text") for _ in range(count))
            return [took for took, _ in await asyncio.gather(*asked)]

        many = asyncio.ensure_future(reserve(50))
        given_up = asyncio.ensure_future(reserve())
        for _ in range(10):
            await asyncio.sleep(0)
        given_up.cancel()
        provider.answers.set()
        assert (await many).count(True) == 3
        await manager.update_state_from_headers("m", "text", {})
        assert provider.asked == {"m": 1, "limits": 1}
        clock.advance(29)
        await reserve()
        assert provider.asked["limits"] == 1
        provider.rpm = 5
        clock.advance(1)
        assert (await reserve(5)).count(True) == 2
        assert provider.asked == {"m": 1, "limits": 2}
        assert provider.forced == [False, True]

    asyncio.run(main())


@pytest.mark.parametrize("error", [OSError("down"), BackendConnectionError("down")])
def test_where_a_provider_fails_what_was_known_holds(
    error: Exception, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        provider = Counting()
        manager = StateManager(MemoryBackend(), provider=provider)

        async def reserve(model: str = "m") -> bool:
            took, _ = await manager.check_and_reserve_capacity(model, "text")
            return took

        def errors() -> Any:
            return manager.get_metrics()["state_manager"]["user_code_errors"]

        assert errors() == {}
        assert [await reserve(), await reserve()] == [True, True]
        provider.raises = error
        clock.advance(30)
        assert [await reserve(), await reserve()] == [True, False]
        assert errors() == {"provider": 1}
        # A model that nothing is known of is its own bucket, of which no limit is known either.
        assert [await reserve("n") for _ in range(5)] == [True] * 5
        assert provider.asked == {"m": 1, "n": 1, "limits": 2}
        assert errors() == {"provider": 2}
        provider.raises = None
        clock.advance(10)
        assert not await reserve("n"), "its bucket is full"
        assert provider.asked == {"m": 1, "n": 2, "limits": 3}

    asyncio.run(main())
    told = [each.getMessage() for each in caplog.records]
    assert len(told) == 2
    for method, message in zip(("discover_limits", "get_bucket_for_model"), told, strict=True):
        assert message.startswith(f"{method} of provider 'test' raised {type(error).__name__}")


@pytest.mark.parametrize("gives", [None, 3, {"tier:1": DiscoveredBucket("tier:1", -1)}, {}])
def test_where_nothing_that_makes_sense_is_listed_there_is_no_limit(
    gives: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Counting):
        async def discover_limits(self, *_: Any, **__: Any) -> Any:
            return gives

    async def main() -> None:
        manager = StateManager(MemoryBackend(), provider=Odd())
        for _ in range(5):
            took, _ = await manager.check_and_reserve_capacity("m", "text")
            assert took
        errors = manager.get_metrics()["state_manager"]["user_code_errors"]
        assert errors == ({} if gives == {} else {"provider": 1})

    asyncio.run(main())
    assert len(caplog.records) == (gives != {})


def test_a_bucket_of_which_the_provider_says_that_there_is_none_is_not_made_up() -> None:
    async def main() -> None:
        provider = Counting()
        provider.raises = own = BucketNotFoundError("gone")
        manager = StateManager(MemoryBackend(), provider=provider)
        with pytest.raises(BucketNotFoundError, match=r"provider 'test', model 'm'") as caught:
            await manager.update_state_from_headers("m", "text", {})
        assert caught.value.__cause__ is own

    asyncio.run(main())


def test_a_forked_child_starts_its_backend_anew(fork: Any) -> None:
    started: list[int] = []

    class Backend(MemoryBackend):
        async def start(self) -> None:
            started.append(os.getpid())

    manager = StateManager(Backend(), provider=Counting())

    async def use() -> None:
        await manager.start()
        await manager.check_and_reserve_capacity("m", "text")

    asyncio.run(use())

    def in_child() -> int:
        if manager.get_metrics()["state_manager"]["running"]:
            return 2
        ThreadPoolExecutor(1).submit(lambda: asyncio.run(use())).result(20)
        return 0 if started[1:] == [os.getpid()] else 3

    manager._lock.acquire()  # as a thread does that is counting
    child = fork(in_child)
    manager._lock.release()
    assert child.status() == 0
    assert manager.get_metrics()["state_manager"]["running"]
    assert started == [os.getpid()]


def test_headers_reach_the_bucket_and_lose_nothing_that_was_reserved() -> None:
    async def main() -> None:
        manager = StateManager(MemoryBackend(), provider=Provider())
        for _ in range(2):
            await manager.check_and_reserve_capacity("m", "text")
        headers = {"X-RateLimit-Limit-Requests": "100", "X-RateLimit-Remaining-Requests": "99"}
        assert await manager.update_state_from_headers("m", "text", headers, None, 200) == 1
        assert await manager.update_state_from_headers("m", "text", {}) == 0
        state = await manager.get_state("tier:1")
        assert isinstance(state, RateLimitState)
        assert state.remaining_requests == 97
        assert (state.model_id, state.bucket_id, state.is_verified) == ("m", "tier:1", True)
        alone = StateManager(MemoryBackend())
        assert await alone.update_state_from_headers("m", "text", headers) == 1
        assert await alone.get_state("m") is not None

    asyncio.run(main())


def test_an_error_of_the_backend_names_the_method_and_tells_no_secret() -> None:
    class Backend(MemoryBackend):
        async def get_state(self, key: str) -> dict[str, Any] | None:
            raise OSError("redis://:password@host")

        async def set_state(self, key: str, state: dict[str, Any]) -> None:
            raise BackendConnectionError("gone")

    async def main() -> None:
        manager = StateManager(Backend())
        with pytest.raises(BackendOperationError) as error:
            await manager.get_state("k")
        assert str(error.value) == "get_state of Backend failed: OSError"
        assert isinstance(error.value.__cause__, OSError)
        with pytest.raises(BackendConnectionError, match="gone"):
            await manager.set_state("k", {})

    asyncio.run(main())


def test_more_than_twenty_failures_within_half_a_minute_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock(100.0)
    monkeypatch.setattr(headway.views.manager, "monotonic", clock.now)

    async def main() -> None:
        manager = StateManager(MemoryBackend())
        for i in range(20):
            assert await manager.record_failed_request("m") == i + 1
        with pytest.raises(TooManyFailedRequestsError) as error:
            await manager.record_failed_request()
        assert str(error.value) == "Too many failed requests: 20 failures in 30 seconds"
        assert (error.value.failure_count, error.value.threshold) == (21, 20)
        assert error.value.window_seconds == 30.0
        assert manager.get_metrics()["state_manager"]["failed_request_count"] == 21
        clock.advance(30)
        assert await manager.record_failed_request() == 1

    asyncio.run(main())


def test_the_next_reset_is_of_what_is_used_up() -> None:
    now = datetime.now(timezone.utc)
    minute, day, past = (now + timedelta(seconds=n) for n in (60, 600, -60))

    async def reset(requests: int, daily: int, at: datetime, at_daily: datetime) -> object:
        manager = StateManager(MemoryBackend())
        state = RateLimitState("m", requests, daily, None, at, at_daily, request_limit=5)
        await manager.set_state("k", state)
        return await manager.get_next_reset_time("k")

    async def main() -> None:
        assert await reset(1, 1, minute, day) is None
        assert await reset(0, 1, minute, day) == minute
        assert await reset(1, 0, minute, day) == day
        assert await reset(0, 0, minute, day) == minute
        assert await reset(0, 0, past, day) == day
        assert await reset(0, 1, past, day) is None
        assert await StateManager(MemoryBackend()).get_next_reset_time("never") is None

    asyncio.run(main())


def test_health_is_told_and_never_raised(caplog: pytest.LogCaptureFixture) -> None:
    class Ill(MemoryBackend):
        async def health_check(self) -> Any:
            raise OSError("secret")

    async def main() -> None:
        manager = StateManager(MemoryBackend("here"))
        health = await manager.health_check()
        assert health.pop("metrics") == manager.get_metrics()
        assert health == {"healthy": True, "cache_healthy": True, "backend_healthy": True}
        assert manager.get_metrics()["backend"] == {"type": "MemoryBackend", "namespace": "here"}
        assert set(manager.get_metrics()) == {"state_manager", "cache", "backend", "reservations"}
        health = await StateManager(Ill()).health_check()
        assert (health["healthy"], health["backend_healthy"]) == (False, False)

    with caplog.at_level(logging.WARNING, "headway"):
        asyncio.run(main())
    assert "secret" not in caplog.text


def test_writing_back_in_production_is_to_be_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options: dict[str, Any] = {"cache_policy": CachePolicy.WRITE_BACK, "is_production": True}
    backend = MemoryBackend()
    with pytest.raises(ValueError, match="acknowledge_write_back_risk"):
        StateManager(backend, StateConfig(**options))
    with caplog.at_level(logging.WARNING, "headway"):
        config = StateConfig(**options, acknowledge_write_back_risk=True)
        manager = StateManager(backend, config, metrics_collector=caplog)
    assert len(caplog.records) == 1
    assert (manager.backend, manager.config, manager.provider) == (backend, config, None)
    StateManager(backend, StateConfig(cache_policy=CachePolicy.WRITE_BACK))
