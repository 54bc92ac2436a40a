"""Errors: what they are, what they carry, and that they carry it anywhere."""

from __future__ import annotations

import copy
import pickle

import pytest

import headway
from headway import errors

EVERY = [
    errors.RateLimiterError("no"),
    errors.CapacityExceededError("needs 9, the limit is 5", "b", 2.5),
    errors.BucketNotFoundError("tier:1", "openai", "gpt-4o"),
    errors.ReservationCapacityError("full"),
    errors.BackendConnectionError("gone"),
    errors.BackendOperationError("refused"),
    errors.ConfigurationError("x must be positive"),
    errors.QueueOverflowError("Queue q is full", "q"),
    errors.TooManyFailedRequestsError("21", 21, 30.0, 20),
    errors.ProviderError("unknown"),
    errors.DeadlineExceededError("late"),
    errors.RequestTimeoutError("Request timed out after 30.0s"),
    errors.SchedulerStoppedError("stopped"),
]


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_every_error_is_a_rate_limiter_error_and_survives_a_pickle_and_a_copy(
    error: errors.RateLimiterError,
) -> None:
    assert isinstance(error, headway.RateLimiterError)
    assert getattr(headway, type(error).__name__) is type(error)
    error.note = "kept"  # type: ignore[attr-defined]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (str(again), again.args) == (str(error), error.args)
        assert vars(again) == vars(error)


def test_the_list_above_misses_no_error() -> None:
    defined = {each for each in vars(errors).values() if isinstance(each, type)}
    assert {type(error) for error in EVERY} == defined


def test_errors_are_also_what_python_calls_such_a_thing() -> None:
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)
    assert issubclass(errors.DeadlineExceededError, TimeoutError)


def test_attributes_and_default_texts_are_as_documented() -> None:
    missing = errors.BucketNotFoundError("b")
    assert (missing.bucket_id, str(missing)) == ("b", "Rate limit bucket not found: b")
    assert (missing.provider, missing.model_id) == (None, None)
    missing = errors.BucketNotFoundError("b", "p", "m")
    assert (missing.provider, missing.model_id) == ("p", "m")
    assert str(missing) == "Rate limit bucket not found: b (provider 'p', model 'm')"
    assert errors.QueueOverflowError("full").queue_key is None
    failed = errors.TooManyFailedRequestsError()
    assert str(failed) == "Too many failed requests"
    assert (failed.failure_count, failed.window_seconds, failed.threshold) == (None, None, None)
    capacity = errors.CapacityExceededError("m", bucket_id="b", retry_after=1.0)
    assert (capacity.bucket_id, capacity.retry_after) == ("b", 1.0)
