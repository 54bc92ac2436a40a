"""Which failures are tried again, how often, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.retry import LONGEST_TOLD, RetryBudget, backoff, is_retried, told_wait

NOW = 1_700_000_000.0


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
    assert is_retried(status, {"error": {"code": None, "type": "server_error"}})
    assert is_retried(status, "no JSON")


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 403, 404, 413, 422, 600])
def test_everything_else_is_final(status: int) -> None:
    assert not is_retried(status, {})


@pytest.mark.parametrize("field", ["code", "type"])
def test_an_account_without_money_is_not_asked_again(field: str) -> None:
    assert not is_retried(429, {"error": {field: "insufficient_quota"}})
    assert is_retried(429, {"error": {field: "rate_limit_exceeded"}})
    assert is_retried(429, {"error": "insufficient_quota"})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "86400"}, LONGEST_TOLD),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read_and_bounded(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert told_wait(headers, NOW) == seconds


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_header_that_a_server_sends_is_an_error(seconds: str, milliseconds: str) -> None:
    told = told_wait({"retry-after": seconds, "retry-after-ms": milliseconds}, NOW)
    assert told is None or 0.0 <= told <= LONGEST_TOLD


def test_backoff_is_any_share_of_a_bound_that_doubles_up_to_half_a_minute() -> None:
    bounds = [backoff(retry, None, random_share=1.0) for retry in range(1, 10)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff(3, None, random_share=0.25) == 0.5
    assert backoff(10_000, None, random_share=1.0) == 30
    drawn = {backoff(4, None) for _ in range(100)}
    assert len(drawn) > 50
    assert all(0 <= each <= 4 for each in drawn)


def test_backoff_is_never_less_than_the_server_has_asked_for() -> None:
    assert backoff(1, 60.0, random_share=1.0) == 60.0
    assert backoff(4, 1.0, random_share=1.0) == 4.0
    assert backoff(1, 0.0, random_share=0.0) == 0.0


def test_a_budget_has_ten_retries_and_one_for_every_five_requests() -> None:
    budget = RetryBudget()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(4):
        budget.note_request()
    assert not budget.take()
    budget.note_request()
    assert [budget.take(), budget.take()] == [True, False]
