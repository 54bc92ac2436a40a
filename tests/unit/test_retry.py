"""How many retries there may be, and how long a server asks to wait before one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.retry import LONGEST_TOLD, RetryBudget, told_wait

NOW = 1_700_000_000.0


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
        ({"retry-after": "-5"}, None),
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


def test_a_budget_has_ten_retries_and_one_for_every_five_requests() -> None:
    budget = RetryBudget()
    assert [budget.take(0) for _ in range(11)] == [True] * 10 + [False]
    assert not budget.take(4)
    assert [budget.take(5), budget.take(9), budget.take(10)] == [True, False, True]
