"""MemoryBackend: what each method promises, on a virtual clock where time matters."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Coroutine
from datetime import datetime, timezone
from typing import Any, TypeVar

import pytest

from headway import BaseBackend, ConfigurationError, Limit, ManualClock, MemoryBackend, _core
from headway._core import Reservation

T = TypeVar("T")

TEN = {"rpm_limit": 10, "tpm_limit": 1000}
START = 1_000_000.0


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that never waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it has waited")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def backend(clock: ManualClock) -> MemoryBackend:
    return MemoryBackend(clock=clock)


def reserve(backend: MemoryBackend, requests: int = 1, tokens: int = 0, **options: Any) -> str:
    took, name = done(backend.check_and_reserve_capacity("k", requests, tokens, **options))
    assert took
    assert name is not None
    return name


def refused(backend: MemoryBackend, requests: int = 1, tokens: int = 0, **options: Any) -> bool:
    took, name = done(backend.check_and_reserve_capacity("k", requests, tokens, **options))
    assert took == (name is not None)
    return not took


def left(backend: MemoryBackend, key: str = "k") -> tuple[int | None, int | None]:
    state = done(backend.get_state(key))
    assert state is not None
    return state["remaining_requests"], state["remaining_tokens"]


def told(backend: MemoryBackend, *, status: int | None = 200, **headers: object) -> int:
    """What a response to "k" says, by the headers' names without their beginning."""
    request_id = headers.pop("request_id", None)
    named = {
        (name if name == "retry_after" else f"x-ratelimit-{name}").replace("_", "-"): str(value)
        for name, value in headers.items()
    }
    return done(backend.update_rate_limits("m", named, "k", request_id, status))  # type: ignore[arg-type]


def test_it_fills_in_all_that_a_backend_promises_with_the_promised_parameters() -> None:
    assert [str(each) for each in inspect.signature(MemoryBackend).parameters.values()] == [
        "namespace: 'str' = 'rate_limiter_memory'",
        "key_ttl: 'float' = 3600",
        "released_reservations_ttl: 'float' = 3600.0",
        "released_reservations_cleanup_interval: 'float' = 1800.0",
        "clock: 'ManualClock | None' = None",
    ]
    for name in BaseBackend.__abstractmethods__ - {"get_failure_count"}:
        theirs, ours = (getattr(each, name) for each in (BaseBackend, MemoryBackend))
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert inspect.iscoroutinefunction(ours)


# Capacity.


def test_all_of_a_limit_can_be_reserved_at_once_and_no_more(backend: MemoryBackend) -> None:
    for _ in range(10):
        reserve(backend, 1, 100, bucket_limits=TEN)
    assert left(backend) == (0, 0)
    assert refused(backend, 1, 0, bucket_limits=TEN)
    assert refused(backend, 0, 1, bucket_limits=TEN)


def test_both_amounts_are_taken_or_none(backend: MemoryBackend) -> None:
    assert refused(backend, 1, 1001, bucket_limits=TEN)
    assert left(backend) == (10, 1000)


def test_what_is_released_is_there_again_for_ever(backend: MemoryBackend) -> None:
    for _ in range(3):
        names = [reserve(backend, 1, 100, bucket_limits=TEN) for _ in range(10)]
        assert all(done(backend.release_reservation("k", name)) for name in names)
        assert left(backend) == (10, 1000)


def test_a_second_release_is_known_as_one_for_a_while_and_gives_nothing(
    clock: ManualClock,
) -> None:
    backend = MemoryBackend(clock=clock, released_reservations_ttl=100)
    names = [reserve(backend, bucket_limits=TEN) for _ in range(2)]
    for expected in (9, 9):
        assert done(backend.release_reservation("k", names[0]))
        assert done(backend.release_streaming_reservation("k", names[0], 100, 0))
        assert left(backend) == (expected, 1000)
    clock.advance(100)
    assert not done(backend.release_reservation("k", names[0]))


def test_ids_that_were_never_given_or_are_of_another_key_release_nothing(
    backend: MemoryBackend,
) -> None:
    name = reserve(backend, 1, 100, bucket_limits=TEN)
    for key, identity in (("k", "never"), ("other", name)):
        assert not done(backend.release_reservation(key, identity))
        assert not done(backend.release_streaming_reservation(key, identity, 100, 0))
    assert left(backend) == (9, 900)
    assert done(backend.get_state("other")) is None


@pytest.mark.parametrize(("actual", "tokens_left"), [(0, 1000), (30, 970), (100, 900), (150, 850)])
def test_a_stream_keeps_its_request_and_the_tokens_that_it_has_used(
    backend: MemoryBackend, actual: int, tokens_left: int
) -> None:
    name = reserve(backend, 1, 100, bucket_limits=TEN)
    assert done(backend.release_streaming_reservation("k", name, 100, actual))
    assert left(backend) == (9, tokens_left)


def test_what_a_stream_used_beyond_the_limit_is_charged(backend: MemoryBackend) -> None:
    name = reserve(backend, 1, 100, bucket_limits=TEN)
    assert done(backend.release_streaming_reservation("k", name, 100, 5000))
    assert left(backend) == (9, 0)
    assert done(backend.release_streaming_reservation("k", reserve(backend), 0, -5))


def test_a_slot_is_free_a_minute_after_its_release_not_after_its_reservation(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    names = [reserve(backend, bucket_limits=TEN) for _ in range(10)]
    clock.advance(50)
    for name in names:
        done(backend.release_streaming_reservation("k", name, 0, 0))
    clock.advance(59.9)
    assert refused(backend)
    clock.advance(0.1)
    assert left(backend) == (10, 1000)


def test_a_reservation_that_nobody_releases_ends_after_five_minutes_and_gives_nothing_back(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    name = reserve(backend, 1, 100, bucket_limits=TEN)
    clock.advance(299)
    assert left(backend) == (9, 900)
    clock.advance(2)
    assert not done(backend.release_reservation("k", name))
    assert left(backend) == (9, 900)
    assert done(backend.get_all_stats())["reservations_count"] == 0
    clock.advance(60)
    assert left(backend) == (10, 1000)


def test_a_request_id_is_another_name_of_its_reservation(backend: MemoryBackend) -> None:
    first = reserve(backend, bucket_limits=TEN, request_id="r")
    reserve(backend, 2, request_id="r")
    assert done(backend.release_reservation("k", "r"))  # the latest
    assert left(backend) == (9, 1000)
    assert done(backend.release_reservation("k", first))
    assert done(backend.release_reservation("k", "r"))
    assert left(backend) == (10, 1000)


def test_reserving_by_request_is_given_back_by_request(backend: MemoryBackend) -> None:
    done(backend.check_and_reserve_capacity("m", 0, 0, TEN))
    assert done(backend.reserve_capacity("m", "r", 400))
    assert done(backend.reserve_capacity("m", "r", 400))
    assert not done(backend.reserve_capacity("m", "s", 400))
    assert left(backend, "m") == (8, 200)
    done(backend.release_reservation_by_id("r"))
    done(backend.release_reservation_by_id("r"))
    done(backend.release_reservation_by_id("never"))
    assert left(backend, "m") == (10, 1000)


@pytest.mark.parametrize(
    ("margin", "limit", "kept"),
    [(0.9, 100, 90), (0.9, 1, 1), (0.0, 100, 1), (0.99, 10, 9), (1, 10, 10), (0.5, 0, 0)],
)
def test_the_safety_margin_is_the_share_of_a_limit_that_is_kept(
    backend: MemoryBackend, margin: float, limit: int, kept: int
) -> None:
    refused(backend, 0, 0, bucket_limits={"rpm_limit": limit}, safety_margin=margin)
    state = done(backend.get_state("k"))
    assert state is not None
    assert (state["request_limit"], state["token_limit"]) == (kept, None)


def test_wrong_arguments_raise_and_take_nothing(backend: MemoryBackend) -> None:
    reserve(backend, bucket_limits=TEN)
    for options in (
        {"safety_margin": 1.5},
        {"bucket_limits": {"rpm_limit": -1}},
        {"bucket_limits": {"rpm_limit": "60"}},
        {"bucket_limits": {"tpm_limit": True}},
        {"bucket_limits": {"tpm_limit": math.nan}},
        {"bucket_limits": {"rpm": 60}},
        {"bucket_limits": [60]},
        {"requests": -1},
        {"tokens": 2**60},
    ):
        with pytest.raises(ValueError):
            refused(backend, **{"requests": 1, "tokens": 1} | options)
    assert left(backend) == (9, 1000)
    with pytest.raises(ConfigurationError, match="must be positive, got 0"):
        MemoryBackend(released_reservations_cleanup_interval=0)


def test_what_was_used_before_a_limit_was_known_counts_when_it_is(backend: MemoryBackend) -> None:
    for _ in range(7):
        reserve(backend, 1, 100)
    assert left(backend) == (None, None)
    reserve(backend, bucket_limits=TEN)
    assert left(backend) == (2, 300)


def test_other_limits_than_last_time_change_the_key_and_the_same_ones_do_not(
    backend: MemoryBackend,
) -> None:
    reserve(backend, bucket_limits=TEN)
    reserve(backend, bucket_limits={"rpm_limit": 5})
    assert left(backend) == (3, 1000)
    assert told(backend, limit_requests=20) == 1
    reserve(backend, bucket_limits={"rpm_limit": 5})
    assert left(backend) == (17, 1000)


def test_whether_a_request_would_fit_and_when(backend: MemoryBackend, clock: ManualClock) -> None:
    assert done(backend.check_capacity("k")) == (True, 0.0)
    name = reserve(backend, 10, bucket_limits=TEN)
    assert done(backend.check_capacity("k")) == (False, 360.0)
    done(backend.release_streaming_reservation("k", name, 0, 0))
    assert done(backend.check_capacity("k")) == (False, 60.0)
    told(backend, status=429, limit_requests=0)
    assert done(backend.check_capacity("k")) == (False, math.inf)
    done(backend.force_circuit_break(5))
    assert done(backend.check_capacity("unknown")) == (False, 5.0)


# State.


def test_a_state_comes_back_as_it_was_written_with_what_the_words_say(
    backend: MemoryBackend,
) -> None:
    written = {
        "model_id": "m",
        "remaining_requests": 40,
        "remaining_tokens": 4000,
        "request_limit": 60,
        "token_limit": 6000,
        "reset_at": "2030-01-01T00:00:00+00:00",
        "is_verified": True,
        "note": ["mine"],
    }
    done(backend.set_state("k", written))
    state = done(backend.get_state("k"))
    assert state is not None
    assert {name: state[name] for name in written} == written
    assert done(backend.get_all_states()) == {"k": state}
    state["note"] = "changed"
    written["note"] = "changed"
    again = done(backend.get_state("k"))
    assert again is not None
    assert again["note"] == ["mine"]


def test_a_state_of_something_else_than_limits_is_just_kept(backend: MemoryBackend) -> None:
    done(backend.set_state("model:m", {"size": 3}))
    assert done(backend.get_state("model:m")) == {"size": 3}
    assert backend.words("model:m") is None
    assert done(backend.get_state("never")) is None


def test_what_remains_by_a_written_state_is_what_can_be_reserved(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    reserve(backend, 2, bucket_limits=TEN)
    for wanted, expected in ((5, 5), (3, 3), (4, 4), (7, 7), (8, 8), (99, 8), (0, 0), (6, 6)):
        done(backend.set_state("k", {"remaining_requests": wanted}))
        assert left(backend) == (expected, 1000)
    for _ in range(6):
        reserve(backend)
    assert refused(backend)
    done(backend.set_state("k", {"remaining_requests": -3, "remaining_tokens": 12.7}))
    assert left(backend) == (2 - 2, 12)
    clock.advance(400)
    assert left(backend) == (10, 1000)


def test_what_others_used_leaves_after_a_minute(backend: MemoryBackend, clock: ManualClock) -> None:
    reserve(backend, 0, bucket_limits=TEN)
    done(backend.set_state("k", {"remaining_requests": 0}))
    clock.advance(59)
    assert left(backend) == (0, 1000)
    clock.advance(1.1)
    assert left(backend) == (10, 1000)


def test_what_remains_may_be_known_before_the_limit_is(backend: MemoryBackend) -> None:
    done(backend.set_state("k", {"remaining_requests": 5}))
    assert left(backend) == (5, None)
    reserve(backend, bucket_limits=TEN)
    assert left(backend) == (4, 1000)


def test_who_waits_for_a_key_gets_nothing_that_others_have_used(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    words = backend.make_words("k", [Limit(10, "requests"), Limit(1000, "tokens")])
    done(backend.set_state("k", {"remaining_requests": 4}))

    async def main() -> None:
        waiting = asyncio.ensure_future(words.acquire(6, 0))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        # Less and more while somebody waits: both hold, and he gets none of it.
        done(backend.set_state("k", {"remaining_requests": 1}))
        assert left(backend) == (1, 1000)
        done(backend.set_state("k", {"remaining_requests": 3}))
        assert left(backend) == (3, 1000)
        assert not waiting.done()
        clock.advance(65)
        (await waiting).settle()

    asyncio.run(main())


def test_reset_at_is_when_one_request_fits_again(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    done(backend.release_streaming_reservation("k", reserve(backend, 10, bucket_limits=TEN), 0, 0))
    state = done(backend.get_state("k"))
    assert state is not None
    assert datetime.fromisoformat(state["reset_at"]) == datetime.fromtimestamp(
        START + 60, timezone.utc
    )
    assert datetime.fromisoformat(state["last_updated"]).timestamp() == START
    assert (state["bucket_id"], state["model_id"], state["is_verified"]) == ("k", "k", False)
    told(backend, status=429, limit_requests=0)
    state = done(backend.get_state("k"))
    assert state is not None
    assert (state["reset_at"], state["model_id"], state["is_verified"]) == (None, "m", True)


def test_times_that_a_state_said_are_gone_when_something_is_reserved(
    backend: MemoryBackend,
) -> None:
    done(backend.set_state("k", {"remaining_requests": 5, "reset_at": "x", "note": 1}))
    reserve(backend)
    state = done(backend.get_state("k"))
    assert state is not None
    assert state["reset_at"] != "x"
    assert state["note"] == 1


def test_clearing_forgets_states_and_cleaning_up_forgets_all(backend: MemoryBackend) -> None:
    name = reserve(backend, 4, bucket_limits=TEN)
    done(backend.set_state("other", {"a": 1}))
    done(backend.clear())
    assert done(backend.get_all_states()) == {}
    assert done(backend.get_state("k")) is None
    reserve(backend)
    assert left(backend) == (5, 1000)  # still counted
    done(backend.cache_bucket_info({"b": 1}))
    done(backend.record_failure("x"))
    done(backend.force_circuit_break(10))
    asyncio.run(backend.cleanup())
    assert not done(backend.release_reservation("k", name))
    stats = done(backend.get_all_stats())
    assert stats.pop("request_tracking") == {"requests": 0, "tokens": 0}
    assert not any(stats.values())
    reserve(backend)
    assert left(backend) == (None, None)


# Observations.


def test_what_is_left_by_a_response_lowers_what_is_left_and_never_raises_it(
    backend: MemoryBackend,
) -> None:
    reserve(backend, 1, 100, bucket_limits=TEN)
    assert told(backend, remaining_requests=9, remaining_tokens=950) == 1
    # It may have been counted before ours.
    assert left(backend) == (8, 850)
    assert told(backend, remaining_requests=9, remaining_tokens=1000) == 1
    assert left(backend) == (8, 850)


def test_only_what_was_reserved_after_the_request_is_missing_from_what_its_response_says(
    backend: MemoryBackend,
) -> None:
    reserve(backend, 1, 0, bucket_limits=TEN, request_id="older")
    mine = reserve(backend, 1, 0)
    reserve(backend, 2, 0)
    assert told(backend, request_id=mine, remaining_requests=6) == 1
    assert left(backend) == (4, 1000)
    # Also where it was released before its response is told.
    done(backend.release_streaming_reservation("k", mine, 0, 0))
    assert told(backend, request_id=mine, remaining_requests=5) == 1
    assert left(backend) == (3, 1000)
    assert told(backend, request_id="older", remaining_requests=4) == 1
    assert left(backend) == (2, 1000)


def test_a_hundred_reserved_and_one_response_admit_no_hundred_more(backend: MemoryBackend) -> None:
    first = reserve(backend, bucket_limits={"rpm_limit": 100})
    for _ in range(99):
        reserve(backend)
    told(backend, request_id=first, limit_requests=100, remaining_requests=99)
    assert refused(backend)


def test_what_headers_leave_out_stays_as_it_was(backend: MemoryBackend) -> None:
    reserve(backend, 1, 100, bucket_limits=TEN)
    assert told(backend, limit_requests=8) == 1
    assert left(backend) == (7, 900)
    assert told(backend) == 0
    assert told(backend, limit_requests="many") == 0
    assert left(backend) == (7, 900)


def test_a_limit_of_zero_is_unknown_on_a_success_and_none_on_a_refusal(
    backend: MemoryBackend,
) -> None:
    reserve(backend, bucket_limits=TEN)
    for status in (200, None):
        assert told(backend, status=status, limit_requests=0) == 0
    assert left(backend) == (9, 1000)
    assert told(backend, status=429, limit_requests=0) == 1
    assert left(backend) == (0, 1000)
    told(backend, limit_requests=10)
    assert left(backend) == (9, 1000)


def test_limits_and_what_is_left_are_scaled_by_the_safety_margin(backend: MemoryBackend) -> None:
    name = reserve(backend, bucket_limits={"rpm_limit": 100}, safety_margin=0.9)
    told(backend, request_id=name, limit_requests=200, remaining_requests=100)
    assert left(backend) == (90, None)
    told(backend, request_id=name, remaining_requests=50)
    assert left(backend) == (45, None)


def test_a_refusal_is_kept_to_for_as_long_as_it_says(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    reserve(backend, bucket_limits=TEN)
    assert told(backend, status=200, retry_after=30) == 1
    assert not refused(backend)
    assert told(backend, status=429, retry_after=30) == 1
    assert told(backend, status=429, retry_after=5) == 1
    assert refused(backend)
    assert done(backend.check_capacity("k")) == (False, 30.0)
    clock.advance(30)
    assert not refused(backend)


def test_a_response_shows_that_its_request_was_counted(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    name = reserve(backend, 1, 100, bucket_limits=TEN)
    assert told(backend, request_id=name) == 0
    clock.advance(50)
    assert done(backend.release_reservation("k", name))
    assert left(backend) == (9, 900)
    clock.advance(10)
    assert left(backend) == (10, 1000)


def test_a_response_is_of_the_bucket_then_of_the_requests_reservation_then_of_the_model(
    backend: MemoryBackend,
) -> None:
    reserve(backend, bucket_limits=TEN, request_id="r")
    for bucket, request, key in (("b", "r", "b"), (None, "r", "k"), (None, "s", "m")):
        headers = {"X-RateLimit-Limit-Requests": "7"}
        assert done(backend.update_rate_limits("m", headers, bucket, request, 200)) == 1
        state = done(backend.get_state(key))
        assert state is not None
        assert state["request_limit"] == 7
    limits = done(backend.get_rate_limits("m"))
    assert limits.pop("timestamp") > 0
    assert limits == {"rpm_limit": 7}
    assert done(backend.get_rate_limits("never")) == {}


# Failures, caches, itself.


def test_failures_break_the_circuit_until_they_are_long_ago(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    for _ in range(19):
        done(backend.record_failure("timeout", "secret"))
        clock.advance(1)
    assert not done(backend.is_circuit_broken())
    done(backend.record_failure("timeout"))
    assert done(backend.is_circuit_broken())
    assert done(backend.get_failure_count()) == 20
    assert done(backend.get_failure_count(5)) == 5
    assert done(backend.check_capacity("k")) == (False, 11.0)
    clock.advance(11)
    assert not done(backend.is_circuit_broken())
    done(backend.clear_failures())
    assert done(backend.get_failure_count(3600)) == 0


def test_a_forced_break_refuses_for_its_time_whatever_has_failed(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    done(backend.force_circuit_break(100))
    done(backend.clear_failures())
    assert done(backend.is_circuit_broken())
    assert refused(backend)
    clock.advance(100)
    assert not done(backend.is_circuit_broken())
    assert not refused(backend)


def test_caches_keep_copies_for_as_long_as_they_are_told(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    info = {"a": 1}
    done(backend.cache_bucket_info(info, 10))
    done(backend.cache_model_info("m", info, 20))
    done(backend.cache_model_info("n", info, 0))
    info["a"] = 2
    assert done(backend.get_cached_bucket_info()) == {"a": 1}
    assert done(backend.get_cached_model_info("n")) is None
    clock.advance(10)
    assert done(backend.get_cached_bucket_info()) is None
    assert done(backend.get_cached_model_info("m")) == {"a": 1}
    clock.advance(10)
    assert done(backend.get_cached_model_info("m")) is None


def test_health_and_statistics_count_what_is_held(backend: MemoryBackend) -> None:
    reserve(backend, bucket_limits=TEN)
    told(backend, limit_requests=10)
    done(backend.record_failure("x"))
    done(backend.record_request("m", tokens_used=5))
    done(backend.cache_model_info("m", {}))
    assert done(backend.get_all_stats()) == {
        "states_count": 1,
        "rate_limits_count": 1,
        "reservations_count": 1,
        "model_cache_count": 1,
        "bucket_cache_exists": False,
        "total_failures": 1,
        "recent_failures_30s": 1,
        "circuit_broken": False,
        "request_tracking": {"requests": 1, "tokens": 5},
    }
    health = done(backend.health_check())
    assert (health.healthy, health.backend_type, health.namespace) == (
        True,
        "memory",
        "rate_limiter_memory",
    )
    assert health.metadata == {
        "states_count": 1,
        "rate_limits_count": 1,
        "reservations_count": 1,
        "failures_count": 1,
        "circuit_broken": False,
    }


# Time-to-live and bounds.


def test_an_idle_key_is_forgotten_and_one_in_use_is_not(clock: ManualClock) -> None:
    backend = MemoryBackend(key_ttl=100, clock=clock)
    reserve(backend, 0, bucket_limits=TEN)
    done(backend.check_and_reserve_capacity("used", 1, 0))
    clock.advance(99)
    assert left(backend) == (10, 1000)
    clock.advance(1)
    assert done(backend.get_state("k")) is not None  # its reservation is out
    done(backend.release_reservation("k", "never"))
    clock.advance(500)
    assert done(backend.get_state("k")) is None
    assert done(backend.get_all_states()) == {}


def test_no_time_to_live_means_for_ever(clock: ManualClock) -> None:
    backend = MemoryBackend(key_ttl=0, clock=clock)
    reserve(backend, 0, bucket_limits=TEN)
    done(backend.set_state("other", {"a": 1}))
    clock.advance(1e7)
    assert set(done(backend.get_all_states())) == {"k", "other"}


def test_nothing_grows_without_a_cleanup_that_was_started(clock: ManualClock) -> None:
    backend = MemoryBackend(key_ttl=100, released_reservations_ttl=100, clock=clock)
    for i in range(3000):
        took, name = done(backend.check_and_reserve_capacity(f"key {i}", 1, 0, TEN))
        assert took
        assert name is not None
        if i % 2:
            done(backend.release_reservation(f"key {i}", name))
        clock.advance(1)
    assert len(backend._words) < 600
    assert len(backend._held) < 200
    assert len(backend._held._released) < 200


def test_the_cleanup_lets_go_of_all_that_is_due_until_it_is_stopped(clock: ManualClock) -> None:
    backend = MemoryBackend(
        key_ttl=100, released_reservations_cleanup_interval=0.001, clock=clock
    )  # fmt: skip
    for i in range(50):
        done(backend.set_state(f"key {i}", {"remaining_requests": 1, "request_limit": 2}))
        done(backend.cache_model_info(f"model {i}", {}, 1))

    async def main() -> None:
        await backend.start()
        await backend.start()
        clock.advance(1000)
        for _ in range(1000):
            if not len(backend._words) + len(backend._states) + len(backend._models):
                break
            await asyncio.sleep(0.001)
        assert len(backend._words) + len(backend._states) + len(backend._models) == 0
        await backend.stop()
        await backend.stop()

    asyncio.run(main())


# What schedulers share.


def test_resources_keep_their_numbers(backend: MemoryBackend) -> None:
    assert backend.resources == ("requests", "tokens")
    backend.number("input_tokens", "requests")
    backend.make_words("k", [Limit(3, "images"), Limit(2, "concurrency")])
    assert backend.resources == ("requests", "tokens", "input_tokens", "images", "concurrency")
    words = backend.words("k")
    assert words is not None
    assert _core.resources(words) == backend.resources
    with pytest.raises(ConfigurationError, match="at most 32"):
        backend.number(*(f"r{i}" for i in range(30)))


def test_words_are_made_once_with_what_was_not_limited_at_the_end(backend: MemoryBackend) -> None:
    assert backend.words("k") is None
    day = Limit(100, "requests", 86_400.0, "fixed")
    words = backend.make_words("k", [day, Limit(2, "concurrency")])
    assert backend.make_words("k", []) is words is backend.words("k")
    assert [str(each) for each in _core.limits(words)] == [
        "2 concurrency",
        "100 requests/day fixed",
        "9007199254740992 tokens/min",
    ]


def test_what_a_scheduler_and_the_backend_admit_is_one_count(backend: MemoryBackend) -> None:
    words = backend.make_words("k", [])
    backend.set_limits("k", 10, None)
    assert isinstance(words.try_reserve(4, 100), Reservation)
    reserve(backend, 5, 100)
    assert left(backend) == (1, None)
    backend.set_limits("k", None, 300)
    assert left(backend) == (1, 100)
    backend.set_limits("never", 1, 1)
    assert backend.words("never") is None


def test_a_limit_that_was_given_is_never_changed_by_one_that_is_learnt(
    backend: MemoryBackend,
) -> None:
    backend.make_words("k", [Limit(10, "requests")])
    backend.set_limits("k", 50, 60)
    told(backend, limit_requests=70, remaining_requests=35)
    reserve(backend, 0, bucket_limits={"rpm_limit": 80})
    state = done(backend.get_state("k"))
    assert state is not None
    assert (state["request_limit"], state["token_limit"]) == (10, 60)
    assert state["remaining_requests"] == 5  # as large a share


def test_a_reservation_gives_back_what_a_concurrency_limit_and_a_bucket_count(
    backend: MemoryBackend,
) -> None:
    backend.make_words("k", [Limit(1, "concurrency"), Limit(60, "requests", 60.0, "bucket")])
    for _ in range(3):
        name = reserve(backend, 50)
        assert refused(backend, 1)
        assert done(backend.release_reservation("k", name))
    assert left(backend) == (60, None)


def test_idle_keys_are_forgotten_oldest_first_and_those_in_use_stay(
    backend: MemoryBackend, clock: ManualClock
) -> None:
    for key in "abcde":
        backend.make_words(key, [])
    took, _ = done(backend.check_and_reserve_capacity("a", 0, 0))
    assert took
    used = backend.words("b")
    assert used is not None
    used.try_reserve(1)
    backend.words("c")
    assert backend.forget_idle(5) == []
    assert backend.forget_idle(3) == ["d", "e"]
    assert backend.forget_idle(0) == ["c"]
    assert backend.forget_idle(0) == []
    clock.advance(400)
    assert sorted(backend.forget_idle(0)) == ["a", "b"]


def test_words_that_somebody_still_holds_are_not_made_twice(backend: MemoryBackend) -> None:
    held = backend.make_words("k", [])
    backend.set_limits("k", 10, None)
    assert backend.forget_idle(0) == ["k"]
    assert held.try_reserve(10)
    assert backend.make_words("k", []) is held
    assert refused(backend)
    assert backend.forget_idle(0) == []


# Threads, loops, forks.


def test_threads_and_loops_together_admit_exactly_the_limit() -> None:
    backend = MemoryBackend()
    limits = {"rpm_limit": 1000, "tpm_limit": 10_000}
    took: list[str] = []

    async def work() -> None:
        for i in range(400):
            good, name = await backend.check_and_reserve_capacity("k", 1, 10, limits)
            if good:
                assert name is not None
                if i % 3 == 0:
                    assert await backend.release_reservation("k", name)
                else:
                    took.append(name)

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(2)))

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 1000
    assert left(backend) == (0, 0)


def test_a_fork_finds_the_lock_free_though_a_thread_was_using_it(fork: Any) -> None:
    backend = MemoryBackend()
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            reserve(backend)

    user = threading.Thread(target=use)
    user.start()
    try:
        for _ in range(20):
            assert fork(lambda: not backend._lock.acquire(timeout=5)).status() == 0
    finally:
        stop.set()
        user.join()
