"""Breaker: opens after many failures, lets one probe through, closes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from headway.errors import TooManyFailedRequestsError
from headway.scheduler.breaker import Breaker


def call(over: bool = False) -> SimpleNamespace:
    return SimpleNamespace(over=over)


def opened(most: int = 3, window: float = 10.0) -> Breaker:
    """Opened at 0."""
    breaker = Breaker(most, window)
    assert [breaker.failed(call(), 0.0, 1) for _ in range(most)] == [False] * (most - 1) + [True]
    return breaker


def test_it_lets_all_through_while_it_is_closed() -> None:
    breaker = Breaker(2, 10.0)
    breaker.check(0.0)
    breaker.launch(call(), 0.0)
    assert not breaker.is_open
    assert not breaker.succeeded(call())


def test_so_many_failures_within_the_window_open_it() -> None:
    breaker = opened()
    assert breaker.is_open
    with pytest.raises(TooManyFailedRequestsError) as caught:
        breaker.check(9.99)
    error = caught.value
    assert str(error) == "Too many failed requests: 3 failures in 10 seconds"
    assert (error.failure_count, error.window_seconds, error.threshold) == (3, 10.0, 3)


def test_failures_that_are_further_apart_do_not() -> None:
    breaker = Breaker(3, 10.0)
    assert [breaker.failed(call(), at, 1) for at in (0.0, 5.0, 10.1, 16.0, 21.0)] == [False] * 5
    assert breaker.failed(call(), 21.0, 1)


def test_the_window_includes_its_edge() -> None:
    breaker = Breaker(2, 10.0)
    breaker.failed(call(), 0.0, 1)
    assert breaker.failed(call(), 10.0, 1)


def test_further_failures_do_not_open_it_again_or_for_longer() -> None:
    breaker = opened()
    assert not breaker.failed(call(), 9.0, 1)
    breaker.check(10.0)


def test_after_the_window_one_probe_goes_out_and_no_more() -> None:
    breaker = opened()
    breaker.check(10.0)
    probe = call()
    breaker.launch(probe, 10.0)
    for attempt in (breaker.check, lambda now: breaker.launch(call(), now)):
        with pytest.raises(TooManyFailedRequestsError):
            attempt(1000.0)
    assert breaker.succeeded(probe)
    assert not breaker.is_open
    breaker.launch(call(), 10.0)


def test_a_probe_that_fails_keeps_it_open_for_another_window() -> None:
    breaker = opened()
    probe = call()
    breaker.launch(probe, 12.0)
    assert not breaker.failed(probe, 13.0, 1)
    with pytest.raises(TooManyFailedRequestsError):
        breaker.check(22.9)
    breaker.check(23.0)


def test_a_probe_that_has_vanished_makes_room_for_the_next() -> None:
    breaker = opened()
    probe = call()
    breaker.launch(probe, 10.0)
    probe.over = True
    breaker.launch(call(), 11.0)


def test_what_went_out_before_it_opened_says_nothing_of_now() -> None:
    breaker = opened()
    late = call()
    assert not breaker.succeeded(late)
    assert breaker.is_open
    probe = call()
    breaker.launch(probe, 10.0)
    assert not breaker.failed(late, 11.0, 1)
    assert not breaker.succeeded(late)
    with pytest.raises(TooManyFailedRequestsError):
        breaker.check(1000.0)  # the probe is still out
    assert breaker.succeeded(probe)


def test_closed_it_counts_from_nothing() -> None:
    breaker = opened()
    probe = call()
    breaker.launch(probe, 10.0)
    assert breaker.succeeded(probe)
    assert [breaker.failed(call(), 10.0, 1) for _ in range(3)] == [False, False, True]


def test_one_failure_may_be_enough() -> None:
    breaker = Breaker(1, 1.0)
    assert breaker.failed(call(), 0.0, 1)
    with pytest.raises(TooManyFailedRequestsError, match="1 failures in 1 seconds"):
        breaker.check(0.0)


def test_few_failures_among_many_attempts_leave_it_shut() -> None:
    breaker = Breaker(5, 10.0)
    attempts = 0
    for _ in range(100):
        attempts += 20  # of which one fails
        assert not breaker.failed(call(), 1.0, attempts)
    # Then every other one.
    assert True in [breaker.failed(call(), 2.0, attempts + 2 * number) for number in range(1, 7)]


def test_two_threads_do_not_both_probe() -> None:
    breaker = opened()
    launched = threading.Event()

    class Interrupting:
        """A probe that has vanished; as a thread looks at it, another wants to probe, too."""

        looks = 0

        @property
        def over(self) -> bool:
            self.looks += 1
            if self.looks == 1:
                other.start()
                launched.wait(0.5)  # which comes if nothing keeps it
            return True

    def launch() -> None:
        try:
            breaker.launch(call(), 11.0)
        except TooManyFailedRequestsError:
            return
        launched.set()

    breaker.launch(Interrupting(), 10.0)
    other = threading.Thread(target=launch)
    breaker.launch(call(), 11.0)
    other.join(20)
    assert not launched.is_set()


class Instant(float):
    """Of a failure; as a thread looks at it, another has something to do."""

    meanwhile: Callable[[], object] | None = None

    def __ge__(self, other: object) -> bool:
        then, self.meanwhile = self.meanwhile, None
        if then is not None:
            then()
        return float(self) >= float(other)  # type: ignore[arg-type]

    def __lt__(self, other: object) -> bool:
        return not self >= other


def test_a_failure_of_another_thread_while_failures_are_counted_is_no_error() -> None:
    breaker = opened()
    failed = threading.Event()

    def fail() -> None:
        breaker.failed(call(), 1.0, 2)
        failed.set()

    def meanwhile() -> None:
        other.start()
        failed.wait(0.5)  # which comes if nothing keeps it

    at = Instant(0.5)
    at.meanwhile = meanwhile
    other = threading.Thread(target=fail)
    breaker.failed(call(), at, 1)
    with pytest.raises(TooManyFailedRequestsError):
        breaker.check(1.0)
    other.join(20)
    assert failed.is_set()
