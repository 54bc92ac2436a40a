"""The options of a scheduler and of the state it keeps, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from headway.errors import ConfigurationError
from headway.scheduler import _rules as rules


class SchedulerMode(Enum):
    """How much a scheduler does: turns and retries; observed limits as well; accounts as well."""

    BASIC = "basic"
    INTELLIGENT = "intelligent"
    ACCOUNT = "account"

    @classmethod
    def parse(cls, mode: object) -> SchedulerMode:
        """A mode as it is, or by its name in any case of letters; else ConfigurationError."""
        if isinstance(mode, SchedulerMode):
            return mode
        if isinstance(mode, str):
            for each in cls:
                if each.value == mode.lower():
                    return each
        modes = ", ".join(repr(each.value) for each in cls)
        raise ConfigurationError(f"Unknown scheduler mode: {mode}. Available modes: {modes}")


class CachePolicy(Enum):
    """When a state that was set reaches the backend: at once, later, or past the cache."""

    WRITE_THROUGH = "write_through"
    WRITE_BACK = "write_back"
    WRITE_AROUND = "write_around"


class SchedulingStrategy(Enum):
    """Orders between requests, by name; `headway.strategies` has those between queues."""

    FIFO = "fifo"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    PRIORITY = "priority"
    FAIR_SHARE = "fair_share"


@dataclass
class RateLimiterConfig:
    """The options of a scheduler. Times are seconds.

    mode: a SchedulerMode, or its name in any case of letters.
    max_concurrent_executions: calls at once, 1 or more.
    max_queue_size: requests that wait in one bucket, 1 or more.
    overflow_policy: what a further one meets: "reject", "drop_oldest", or "wait" with the others.
    scheduler_interval: no meaning here, nothing is polled.
    request_timeout: how long one attempt may take; a request's own timeout wins where smaller.
    enable_priority_scheduling: False makes all priorities equal.
    max_retries: attempts after the first, 0 or more.
    batch_size: no meaning here, as many start as fit.
    stale_entry_ttl, max_tracking_entries: no meaning here, models are not spaced by a table.
    enable_rate_limiting: False applies no limits.
    rate_limit_buffer_ratio: the share of each rate limit that is used, above 0 up to 1.
    failure_window, max_failures: so many failures within so long stop new requests for a while.
    backoff_base, max_backoff: the factor, above 1, and the bound of the wait before a retry.
    enable_graceful_degradation: False lets `start` raise where the provider fails.
    health_check_interval: how often a provider's limits are asked for anew.
    max_consecutive_failures: so many of those failed in a row, and it is called unhealthy.
    conservative_multiplier: no meaning here; above 0 up to 1.
    metrics_enabled: whether anything is counted.
    prometheus_host, prometheus_port: where the server of metrics listens, if it is started.
    metrics_export_interval: no meaning here, metrics are read when they are asked for.
    enable_performance_tracking, enable_state_persistence: no meaning here.
    test_mode, test_rate_multiplier: with the former, the latter multiplies every rate limit.
    priority_ageing: how long a request waits to gain one step of priority.
    start_prometheus_server: whether to open that port.

    Raises ConfigurationError, a ValueError, that names the option and what was given. Mutable;
    `validate` checks it again.
    """

    mode: SchedulerMode = SchedulerMode.INTELLIGENT
    max_concurrent_executions: int = 100
    max_queue_size: int = 1000
    overflow_policy: str = "reject"
    scheduler_interval: float = 0.01
    request_timeout: float = 30.0
    enable_priority_scheduling: bool = True
    max_retries: int = 3
    batch_size: int = 50
    stale_entry_ttl: float | None = None
    max_tracking_entries: int | None = None
    enable_rate_limiting: bool = True
    rate_limit_buffer_ratio: float = 0.9
    failure_window: float = 30.0
    max_failures: int = 20
    backoff_base: float = 2.0
    max_backoff: float = 60.0
    enable_graceful_degradation: bool = True
    health_check_interval: float = 30.0
    max_consecutive_failures: int = 3
    conservative_multiplier: float = 0.6
    metrics_enabled: bool = True
    prometheus_host: str = "127.0.0.1"
    prometheus_port: int = 9090
    metrics_export_interval: float = 60.0
    enable_performance_tracking: bool = True
    enable_state_persistence: bool = True
    test_mode: bool = False
    test_rate_multiplier: float = 1.0
    priority_ageing: float = 30.0
    start_prometheus_server: bool = False

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every option, and makes `mode` a SchedulerMode. Raises ConfigurationError."""
        self.mode = SchedulerMode.parse(self.mode)
        rules.check(self, _CONFIG_RULES)

    def unused(self) -> list[str]:
        """The options that were set to something else than their default and mean nothing here."""
        vain = _set_in_vain(self, _WITHOUT_MEANING)
        if not self.test_mode:
            vain += _set_in_vain(self, frozenset({"test_rate_multiplier"}))
        if not self.start_prometheus_server:
            served = _set_in_vain(self, frozenset({"prometheus_host", "prometheus_port"}))
            if served:
                vain.append(f"{', '.join(served)} (without start_prometheus_server)")
        if not self.enable_priority_scheduling or self.mode is SchedulerMode.BASIC:
            aged = _set_in_vain(self, frozenset({"priority_ageing"}))
            vain += [f"{name} (without priorities)" for name in aged]
        return vain


@dataclass
class StateConfig:
    """The options of a StateManager. Times are seconds.

    namespace: of the states' keys, and a scheduler's name in metrics.
    cache_policy: a CachePolicy, or its value. Every write goes to the backend at once, whatever it
    says, which is told where it says otherwise; WRITE_BACK in production must be acknowledged all
    the same, so that configurations mean what they meant.
    is_production, acknowledge_write_back_risk: for that.
    reservation_ttl: a scheduler's stream that nobody reads for so long is settled.

    All others have no meaning here. The words are in this process or asked of the backend, so
    nothing is cached that could be stale (cache_ttl, max_cache_size, batch_size, batch_timeout,
    flush_*, lock_free_reads, enable_versioning, max_versions, warn_write_back_production) and
    nothing has to be cleaned up or bounded beside it (cleanup_*, enable_background_cleanup,
    state_ttl, reservation_cleanup_interval, account_state_*, max_concurrent_operations). They are
    checked all the same.

    Raises ConfigurationError, a ValueError, that names the option and what was given.
    """

    cache_ttl: float = 1.0
    max_cache_size: int | None = 1000
    cache_policy: CachePolicy = CachePolicy.WRITE_THROUGH
    warn_write_back_production: bool = True
    is_production: bool = False
    acknowledge_write_back_risk: bool = False
    batch_size: int = 50
    batch_timeout: float = 0.1
    flush_max_retries: int = 5
    flush_backoff_base: float = 1.0
    flush_backoff_max: float = 60.0
    cleanup_interval: float = 30.0
    enable_background_cleanup: bool = True
    cleanup_task_cancel_timeout: float = 2.0
    cleanup_task_wait_timeout: float = 1.0
    state_ttl: float = 3600
    reservation_cleanup_interval: float = 3600.0
    reservation_ttl: float = 300.0
    account_state_ttl: float = 86_400.0
    account_state_max_size: int = 10_000
    enable_versioning: bool = True
    max_versions: int = 10
    lock_free_reads: bool = True
    max_concurrent_operations: int = 100
    namespace: str = "default"

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every option, and makes `cache_policy` a CachePolicy."""
        try:
            self.cache_policy = CachePolicy(self.cache_policy)
        except ValueError:
            values = ", ".join(repr(each.value) for each in CachePolicy)
            raise ConfigurationError(
                f"cache_policy must be one of {values}, got {self.cache_policy!r}"
            ) from None
        rules.check(self, _STATE_RULES)

    def unused(self) -> list[str]:
        """The options that were set to something else than their default and mean nothing here."""
        return _set_in_vain(self, _STATE_WITHOUT_MEANING)


def _set_in_vain(options: Any, without_meaning: frozenset[str]) -> list[str]:
    return [
        each.name
        for each in fields(options)
        if each.name in without_meaning and getattr(options, each.name) != each.default
    ]


_WITHOUT_MEANING = frozenset(
    {
        "batch_size",
        "conservative_multiplier",
        "enable_performance_tracking",
        "enable_state_persistence",
        "max_tracking_entries",
        "metrics_export_interval",
        "scheduler_interval",
        "stale_entry_ttl",
    }
)

_STATE_WITHOUT_MEANING = frozenset(
    {
        "account_state_max_size",
        "account_state_ttl",
        "batch_size",
        "batch_timeout",
        "cache_policy",
        "cache_ttl",
        "cleanup_interval",
        "cleanup_task_cancel_timeout",
        "cleanup_task_wait_timeout",
        "enable_background_cleanup",
        "enable_versioning",
        "flush_backoff_base",
        "flush_backoff_max",
        "flush_max_retries",
        "lock_free_reads",
        "max_cache_size",
        "max_concurrent_operations",
        "max_versions",
        "reservation_cleanup_interval",
        "state_ttl",
        "warn_write_back_production",
    }
)

_CONFIG_RULES: dict[str, rules.Rule] = {
    "max_concurrent_executions": rules.at_least_one,
    "max_queue_size": rules.at_least_one,
    "overflow_policy": rules.overflow_policy,
    "scheduler_interval": rules.positive,
    "request_timeout": rules.positive,
    "enable_priority_scheduling": rules.true_or_false,
    "max_retries": rules.count,
    "batch_size": rules.at_least_one,
    "stale_entry_ttl": rules.positive_when_set,
    "max_tracking_entries": rules.at_least_one_when_set,
    "enable_rate_limiting": rules.true_or_false,
    "rate_limit_buffer_ratio": rules.share,
    "failure_window": rules.positive,
    "max_failures": rules.at_least_one,
    "backoff_base": rules.above_one,
    "max_backoff": rules.positive,
    "enable_graceful_degradation": rules.true_or_false,
    "health_check_interval": rules.positive,
    "max_consecutive_failures": rules.at_least_one,
    "conservative_multiplier": rules.share,
    "metrics_enabled": rules.true_or_false,
    "prometheus_host": rules.text,
    "prometheus_port": rules.port,
    "metrics_export_interval": rules.positive,
    "enable_performance_tracking": rules.true_or_false,
    "enable_state_persistence": rules.true_or_false,
    "test_mode": rules.true_or_false,
    "test_rate_multiplier": rules.positive,
    "priority_ageing": rules.positive,
    "start_prometheus_server": rules.true_or_false,
}

_STATE_RULES: dict[str, rules.Rule] = {
    "cache_ttl": rules.positive,
    "max_cache_size": rules.at_least_one_or_none,
    "warn_write_back_production": rules.true_or_false,
    "is_production": rules.true_or_false,
    "acknowledge_write_back_risk": rules.true_or_false,
    "batch_size": rules.at_least_one,
    "batch_timeout": rules.not_negative,
    "flush_max_retries": rules.count,
    "flush_backoff_base": rules.not_negative,
    "flush_backoff_max": rules.not_negative,
    "cleanup_interval": rules.positive,
    "enable_background_cleanup": rules.true_or_false,
    "cleanup_task_cancel_timeout": rules.not_negative,
    "cleanup_task_wait_timeout": rules.not_negative,
    "state_ttl": rules.at_least_a_minute,
    "reservation_cleanup_interval": rules.positive,
    "reservation_ttl": rules.positive,
    "account_state_ttl": rules.positive,
    "account_state_max_size": rules.at_least_one,
    "enable_versioning": rules.true_or_false,
    "max_versions": rules.at_least_one,
    "lock_free_reads": rules.true_or_false,
    "max_concurrent_operations": rules.at_least_one,
    "namespace": rules.text,
}
