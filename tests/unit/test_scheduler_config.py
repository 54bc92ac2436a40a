"""The options of schedulers and of state: names, order, defaults, and what each may be."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import fields
from typing import Any

import pytest

from headway import ConfigurationError
from headway.scheduler import (
    CachePolicy,
    RateLimiterConfig,
    SchedulerMode,
    SchedulingStrategy,
    StateConfig,
)
from headway.scheduler.config import _CONFIG_RULES, _STATE_RULES

DEFAULTS: dict[str, Any] = {
    "mode": SchedulerMode.INTELLIGENT,
    "max_concurrent_executions": 100,
    "max_queue_size": 1000,
    "overflow_policy": "reject",
    "scheduler_interval": 0.01,
    "request_timeout": 30.0,
    "enable_priority_scheduling": True,
    "max_retries": 3,
    "batch_size": 50,
    "stale_entry_ttl": None,
    "max_tracking_entries": None,
    "enable_rate_limiting": True,
    "rate_limit_buffer_ratio": 0.9,
    "failure_window": 30.0,
    "max_failures": 20,
    "backoff_base": 2.0,
    "max_backoff": 60.0,
    "enable_graceful_degradation": True,
    "health_check_interval": 30.0,
    "max_consecutive_failures": 3,
    "conservative_multiplier": 0.6,
    "metrics_enabled": True,
    "prometheus_host": "127.0.0.1",
    "prometheus_port": 9090,
    "metrics_export_interval": 60.0,
    "enable_performance_tracking": True,
    "enable_state_persistence": True,
    "test_mode": False,
    "test_rate_multiplier": 1.0,
    "priority_ageing": 30.0,
    "start_prometheus_server": False,
}


def test_the_options_stand_in_the_promised_order_with_the_promised_defaults() -> None:
    config = RateLimiterConfig()
    assert [each.name for each in fields(config)] == list(DEFAULTS)
    assert vars(config) == DEFAULTS
    assert len(fields(StateConfig)) == 25


def test_every_option_is_checked() -> None:
    assert {*_CONFIG_RULES, "mode"} == {each.name for each in fields(RateLimiterConfig)}
    assert {*_STATE_RULES, "cache_policy"} == {each.name for each in fields(StateConfig)}


@pytest.mark.parametrize("mode", ["basic", "BASIC", SchedulerMode.BASIC])
def test_a_mode_may_be_given_by_its_name(mode: Any) -> None:
    assert RateLimiterConfig(mode=mode).mode is SchedulerMode.BASIC


@pytest.mark.parametrize("mode", ["quick", "", None, 1, CachePolicy.WRITE_BACK])
def test_another_mode_is_named(mode: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        RateLimiterConfig(mode=mode)
    modes = "'basic', 'intelligent', 'account'"
    assert str(error.value) == f"Unknown scheduler mode: {mode}. Available modes: {modes}"


@pytest.mark.parametrize(
    ("option", "bad", "text"),
    [
        ("rate_limit_buffer_ratio", 0, "rate_limit_buffer_ratio must be between 0 and 1.0"),
        ("rate_limit_buffer_ratio", 1.01, "rate_limit_buffer_ratio must be between 0 and 1.0"),
        ("rate_limit_buffer_ratio", math.nan, "rate_limit_buffer_ratio must be between 0 and 1.0"),
        ("conservative_multiplier", -1, "conservative_multiplier must be between 0 and 1.0"),
        ("conservative_multiplier", True, "conservative_multiplier must be between 0 and 1.0"),
        ("max_concurrent_executions", 0, "max_concurrent_executions must be at least 1"),
        ("max_queue_size", 0, "max_queue_size must be at least 1"),
        ("max_queue_size", True, "max_queue_size must be a whole number"),
        ("max_queue_size", 10.0, "max_queue_size must be a whole number"),
        ("max_queue_size", None, "max_queue_size must be a whole number"),
        ("overflow_policy", "drop", "overflow_policy must be 'reject' or 'drop_oldest'"),
        ("overflow_policy", ["reject"], "overflow_policy must be 'reject' or 'drop_oldest'"),
        ("max_retries", -1, "max_retries must be non-negative"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("max_failures", 0, "max_failures must be at least 1"),
        ("max_consecutive_failures", 0, "max_consecutive_failures must be at least 1"),
        ("stale_entry_ttl", 0, "stale_entry_ttl must be positive when set"),
        ("max_tracking_entries", 0, "max_tracking_entries must be at least 1 when set"),
        ("request_timeout", 0, "request_timeout must be positive"),
        ("request_timeout", math.nan, "request_timeout must be positive"),
        ("request_timeout", math.inf, "request_timeout must be positive"),
        ("request_timeout", True, "request_timeout must be positive"),
        ("request_timeout", "30", "request_timeout must be positive"),
        ("scheduler_interval", -0.1, "scheduler_interval must be positive"),
        ("max_backoff", 0, "max_backoff must be positive"),
        ("failure_window", 0, "failure_window must be positive"),
        ("health_check_interval", 0, "health_check_interval must be positive"),
        ("metrics_export_interval", 0, "metrics_export_interval must be positive"),
        ("test_rate_multiplier", 0, "test_rate_multiplier must be positive"),
        ("priority_ageing", 0, "priority_ageing must be positive"),
        ("backoff_base", 1.0, "backoff_base must be greater than 1.0"),
        ("backoff_base", math.nan, "backoff_base must be greater than 1.0"),
        ("prometheus_port", 0, "prometheus_port must be between 1 and 65535"),
        ("prometheus_port", 65_536, "prometheus_port must be between 1 and 65535"),
        ("prometheus_host", "", "prometheus_host must be a text"),
        ("test_mode", 1, "test_mode must be True or False"),
    ],
)
def test_a_bad_option_is_named_with_its_rule_and_what_was_given(
    option: str, bad: Any, text: str
) -> None:
    with pytest.raises(ValueError) as error:
        RateLimiterConfig(**{option: bad})
    assert isinstance(error.value, ConfigurationError)
    assert str(error.value).startswith(text)
    assert str(error.value).endswith(f"got {bad!r}")


@pytest.mark.parametrize(
    ("option", "bad", "text"),
    [
        ("cache_ttl", 0, "cache_ttl must be positive"),
        ("max_cache_size", 0, "max_cache_size must be at least 1"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("state_ttl", 59, "state_ttl must be at least 60 seconds"),
        ("state_ttl", math.nan, "state_ttl must be at least 60 seconds"),
        ("flush_backoff_max", -1, "flush_backoff_max must be non-negative"),
        ("flush_max_retries", 1.5, "flush_max_retries must be a whole number"),
        ("cache_policy", "write_often", "cache_policy must be one of 'write_through'"),
    ],
)
def test_a_bad_option_of_state_is_named_too(option: str, bad: Any, text: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        StateConfig(**{option: bad})
    assert str(error.value).startswith(text)
    assert str(error.value).endswith(f"got {bad!r}")


def test_what_is_at_the_edge_is_taken() -> None:
    RateLimiterConfig(
        overflow_policy="wait", rate_limit_buffer_ratio=1, max_retries=0, prometheus_port=65_535
    )
    RateLimiterConfig(overflow_policy="drop_oldest", stale_entry_ttl=1, max_tracking_entries=1)
    state = StateConfig(max_cache_size=None, cache_policy="write_back", flush_backoff_base=0)  # type: ignore[arg-type]
    assert state.cache_policy is CachePolicy.WRITE_BACK


def test_an_option_that_was_changed_later_is_checked_by_validate() -> None:
    config = RateLimiterConfig()
    config.max_queue_size = 0
    with pytest.raises(ConfigurationError, match="max_queue_size must be at least 1, got 0"):
        config.validate()
    config.max_queue_size = 5
    config.mode = "account"  # type: ignore[assignment]
    config.validate()
    assert config.mode is SchedulerMode.ACCOUNT


def test_only_what_means_nothing_and_was_changed_is_unused() -> None:
    assert RateLimiterConfig().unused() == []
    assert RateLimiterConfig(scheduler_interval=0.01, max_retries=9, test_mode=True).unused() == []
    config = RateLimiterConfig(conservative_multiplier=0.5, scheduler_interval=1.0, batch_size=7)
    assert config.unused() == ["scheduler_interval", "batch_size", "conservative_multiplier"]
    assert StateConfig().unused() == []
    assert StateConfig(reservation_ttl=1, state_ttl=60).unused() == ["state_ttl"]


def test_options_are_equal_by_value_and_survive_a_copy_and_a_pickle() -> None:
    config = RateLimiterConfig(max_queue_size=7)
    assert config == copy.deepcopy(config) == pickle.loads(pickle.dumps(config))
    assert config != RateLimiterConfig()


def test_the_names_of_strategies_are_values() -> None:
    assert SchedulingStrategy("fair_share") is SchedulingStrategy.FAIR_SHARE
    assert [each.value for each in CachePolicy] == ["write_through", "write_back", "write_around"]
