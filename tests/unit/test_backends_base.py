"""What every backend shares: its interface, and the headers as it reads them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headway.backends.base
from headway import ConfigurationError, _values
from headway.backends import BaseBackend, HealthCheckResult, validate_safety_margin

NOW = 1_750_000_000.0


async def _nothing(*_: object, **__: object) -> None: ...


# Every abstract method filled in by one that does nothing.
Complete = type(
    "Complete", (BaseBackend,), dict.fromkeys(BaseBackend.__abstractmethods__, _nothing)
)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(headway.backends.base, "time", lambda: NOW)
    return Complete()


def test_a_backend_has_twenty_five_methods_to_fill_in_and_all_are_coroutines() -> None:
    assert len(BaseBackend.__abstractmethods__) == 25
    for name in BaseBackend.__abstractmethods__:
        assert inspect.iscoroutinefunction(getattr(BaseBackend, name))
    with pytest.raises(TypeError, match="abstract"):
        BaseBackend()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("get_state", "key"),
        ("set_state", "key, state"),
        (
            "check_and_reserve_capacity",
            "key, requests, tokens, bucket_limits=None, safety_margin=1.0, request_id=None",
        ),
        ("release_reservation", "key, reservation_id"),
        (
            "release_streaming_reservation",
            "key, reservation_id, reserved_tokens, actual_tokens",
        ),
        ("check_capacity", "model, request_type='default'"),
        ("record_request", "model, request_type='default', tokens_used=None"),
        ("record_failure", "error_type, error_message=''"),
        ("get_failure_count", "window_seconds=30"),
        (
            "update_rate_limits",
            "model, headers, bucket_id=None, request_id=None, status_code=None",
        ),
        ("reserve_capacity", "model, request_id, tokens_estimated=0"),
        ("force_circuit_break", "duration"),
    ],
)
def test_parameters_and_defaults_are_the_promised_ones(method: str, parameters: str) -> None:
    said = inspect.signature(getattr(BaseBackend, method)).parameters.values()
    bare = [str(each.replace(annotation=inspect.Parameter.empty)) for each in said]
    assert ", ".join(bare) == f"self, {parameters}"


def test_starting_and_stopping_do_nothing_unless_a_backend_says_so(backend: Any) -> None:
    assert asyncio.run(backend.start()) is None
    assert asyncio.run(backend.stop()) is None
    assert backend.namespace == "rate_limiter"
    assert Complete("mine").namespace == "mine"


def test_health_is_a_plain_value() -> None:
    assert HealthCheckResult(True, "memory", "n") == HealthCheckResult(True, "memory", "n", None)


def test_a_safety_margin_is_a_number_from_zero_to_one() -> None:
    for good in (0, 1, 0.9):
        validate_safety_margin(good)
    for bad in ("0.9", None, True, [1]):
        with pytest.raises(ConfigurationError) as error:
            validate_safety_margin(bad)
        assert str(error.value) == f"safety_margin must be a number, got {type(bad).__name__}"
    for beyond in (-0.1, 1.1, math.nan, math.inf):
        with pytest.raises(ValueError) as refused:
            validate_safety_margin(beyond)
        assert str(refused.value) == f"safety_margin must be between 0.0 and 1.0, got {beyond}"


def test_headers_are_read_whatever_they_look_like(backend: Any) -> None:
    assert backend._parse_rate_limit_headers(
        {
            "X-RateLimit-Limit-Requests": "500",
            "x-ratelimit-remaining-requests": "499.0",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": 30_000,
            "x-ratelimit-remaining-tokens": b"29999",
            "x-ratelimit-reset-tokens": "6m0s",
            "retry-after": "1.5",
            "content-type": "application/json",
        }
    ) == {
        "timestamp": NOW,
        "rpm_limit": 500,
        "rpm_remaining": 499,
        "rpm_reset": NOW + 0.12,
        "tpm_limit": 30_000,
        "tpm_remaining": 29_999,
        "tpm_reset": NOW + 360,
        "retry_after": 1.5,
    }


def test_what_is_absent_or_nonsense_stays_absent_and_is_told_once(
    backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {
        "x-ratelimit-limit-requests": "0",
        "x-ratelimit-remaining-requests": "-1",
        "x-ratelimit-reset-requests": "nan",
        "x-ratelimit-limit-tokens": "inf",
        "x-ratelimit-remaining-tokens": "9" * 309,
        "x-ratelimit-reset-tokens": None,
        "retry-after": "soon",
    }
    with caplog.at_level(logging.WARNING, "headway"):
        for _ in range(3):
            assert backend._parse_rate_limit_headers(headers) == {"timestamp": NOW, "rpm_limit": 0}
    assert len(caplog.records) == 5
    assert "rpm_limit" not in backend._parse_rate_limit_headers(
        {"x-ratelimit-limit-requests": "1e30"}
    )


def test_a_wait_in_milliseconds_wins_over_the_coarser_one(backend: Any) -> None:
    parsed = backend._parse_rate_limit_headers({"retry-after": "2", "retry-after-ms": "1250"})
    assert parsed["retry_after"] == 1.25
    parsed = backend._parse_rate_limit_headers({"retry-after": "2", "retry-after-ms": "x"})
    assert parsed["retry_after"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", NOW),
        ("20", NOW + 20),
        (" 20.5 ", NOW + 20.5),
        (20, NOW + 20),
        ("1e2", NOW + 100),
        ("1750000060", NOW + 60),
        ("1750000060.25", NOW + 60.25),
        ("1750000060250", NOW + 60.25),
        ("6m0s", NOW + 360),
        ("1h2m3s", NOW + 3723),
        ("500ms", NOW + 0.5),
        ("1.5s", NOW + 1.5),
        ("1m0.5s", NOW + 60.5),
        ("2d", NOW + 172_800),
        ("250us", NOW + 0.00025),
        ("250µs", NOW + 0.00025),
        ("100ns", NOW + 1e-7),
        ("2025-06-15T15:07:40Z", NOW + 60),
        ("2025-06-15T15:07:40", NOW + 60),
        ("2025-06-15 15:07:40.5+00:00", NOW + 60.5),
        ("2025-06-15T17:07:40.123456789+0200", NOW + 60.123456),
        ("2025-06-15T15:07z", NOW + 20),
        ("Sun, 15 Jun 2025 15:07:40 GMT", NOW + 60),
        ("Sunday, 15-Jun-25 15:07:40 GMT", NOW + 60),
        ("Sun Jun 15 15:07:40 2025", NOW + 60),
    ],
)
def test_a_reset_is_an_instant_however_it_is_written(
    backend: Any, text: object, expected: float
) -> None:
    assert backend._parse_reset_time(text) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "garbage",
        "5 minutes",
        "-5",
        "-6m0s",
        "1m-30s",
        "6m 0s",
        "m",
        "1.2.3s",
        "nan",
        "inf",
        "-inf",
        "1_000",
        "٣",
        "1e308",
        "1e999",
        "9" * 400,
        "1s" * 10_000,
        "99999999999d",
        "4200000000",
        "4200000000000",
        "2025-13-40T00:00:00Z",
        "2025-06-15",
        "2150-01-01T00:00:00Z",
        "1960-01-01T00:00:00Z",
        "Mon, nonsense",
        "Sun, 99 Jun 2025 99:00:00 GMT",
        "Sun, 15 Jun 99999999999999999999 15:07:40 GMT",
        math.nan,
        math.inf,
        -1,
        10**400,
        True,
        None,
        [],
        {},
        b"",
    ],
)
def test_a_reset_that_says_no_instant_is_none(backend: Any, text: object) -> None:
    assert backend._parse_reset_time(text) is None


@settings(deadline=None)
@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.none()))
def test_no_reset_raises_or_lies_outside_of_1970_to_2100(value: object) -> None:
    found = _values.instant(value, NOW)
    assert found is None or 0 <= found <= 4_102_444_800


@settings(deadline=None)
@given(
    st.tuples(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)),
    st.integers(0, 999),
)
def test_a_duration_is_the_sum_of_its_parts(parts: tuple[int, ...], milliseconds: int) -> None:
    days, hours, minutes, seconds = parts
    text = f"{days}d{hours}h{minutes}m{seconds}.{milliseconds:03}s"
    length = timedelta(
        days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds
    )
    assert _values.duration(text) == pytest.approx(length.total_seconds())
    assert _values.instant(text, NOW) == pytest.approx(NOW + length.total_seconds())


@settings(deadline=None)
@given(st.datetimes(datetime(2001, 9, 10), datetime(2099, 1, 1)), st.integers(-12, 12))
def test_every_way_to_write_one_instant_gives_that_instant(moment: datetime, hours: int) -> None:
    there = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    at = there.timestamp()
    whole = there.replace(microsecond=0)
    assert _values.instant(there.isoformat(), NOW) == pytest.approx(at, abs=1e-5)
    assert _values.instant(format_datetime(whole), NOW) == whole.timestamp()
    if at > 1e9:
        assert _values.instant(f"{at:.6f}", NOW) == pytest.approx(at, abs=1e-5)
        assert _values.instant(str(int(at * 1000)), NOW) == pytest.approx(at, abs=1e-2)


def test_retry_after_may_be_a_date_and_one_that_has_passed_is_no_wait() -> None:
    assert _values.wait("Sun, 15 Jun 2025 15:07:40 GMT", NOW) == 60
    assert _values.wait("Sun, 15 Jun 2025 15:00:00 GMT", NOW) == 0
    assert _values.wait("30", NOW) == 30
    assert _values.wait("never", NOW) is None


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, 0.0),
        ({"rpm_remaining": 1, "rpm_reset": NOW + 30}, 0.0),
        ({"rpm_remaining": 0, "rpm_reset": NOW + 30}, 30.0),
        ({"rpm_remaining": 0}, 0.0),
        ({"rpm_remaining": 0, "rpm_reset": NOW - 30}, 0.0),
        ({"rpm_remaining": 0, "rpm_reset": NOW + 5, "tpm_remaining": 0, "tpm_reset": NOW + 9}, 9.0),
        ({"retry_after": 7, "timestamp": NOW - 2}, 5.0),
        ({"retry_after": 7}, 7.0),
    ],
)
def test_the_wait_is_until_all_that_is_used_up_comes_back(
    backend: Any, known: dict[str, Any], expected: float
) -> None:
    assert backend._calculate_wait_time(known) == expected
