"""What users say is tried again, and after how long where nobody has told."""

from __future__ import annotations

import pytest

from headway.scheduler import RateLimiterConfig, Scheduler
from headway.scheduler.answers import Answer
from headway.scheduler.failures import is_retried


class Passing(Exception):
    """What a user says may pass."""


def test_what_the_user_says_may_pass_is_tried_again_whatever_its_status() -> None:
    for status in (None, 409, 599):
        assert is_retried(Answer(status), Passing(), (Passing,))
        assert not is_retried(Answer(status), Exception(), (Passing,))


def test_the_pause_is_any_share_of_a_bound_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(None, RateLimiterConfig(max_backoff=30.0, metrics_enabled=False))
    drawn = {scheduler._verdicts.pause(4) for _ in range(100)}
    assert len(drawn) > 50
    assert all(0 <= each <= 4 for each in drawn)
    monkeypatch.setattr("random.random", lambda: 1.0)
    bounds = [scheduler._verdicts.pause(attempt) for attempt in range(1, 10)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert scheduler._verdicts.pause(10_000) == 30


@pytest.mark.parametrize("base", [1e9, 10**9, 1.0000001])
def test_the_bound_holds_however_fast_it_is_to_grow(
    base: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RateLimiterConfig(backoff_base=base, max_backoff=30.0, metrics_enabled=False)
    scheduler = Scheduler(None, config)
    monkeypatch.setattr("random.random", lambda: 1.0)
    assert 0.5 <= scheduler._verdicts.pause(10_000) <= 30
