"""What is handed to a scheduler, looked at before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any

from headway._core import ManualClock
from headway.backends import MemoryBackend
from headway.errors import ConfigurationError
from headway.providers import provider_tables
from headway.scheduler import _rules as rules
from headway.scheduler.config import RateLimiterConfig, StateConfig
from headway.types import RequestMetadata

_OF_PROVIDERS = ("discover_limits", "get_bucket_for_model", "parse_rate_limit_response")


def check_arguments(  # noqa: PLR0917 - as they stand in the constructor
    config: object,
    provider: object,
    multiplier: object,
    metrics_enabled: object,
    state_config: object,
    clock: object,
    classifier: object,
    state_manager: object,
    strategy: object,
) -> None:
    """Raises ConfigurationError for the first that is not what it must be."""
    if not isinstance(config, RateLimiterConfig):
        raise ConfigurationError(f"config {_kind(config)}: must be a RateLimiterConfig or None")
    # Whoever has its methods will do; a name or a class has none that can be called.
    if isinstance(provider, (str, type)):
        raise ConfigurationError(
            f"provider {_kind(provider)}: must be an object like a ProviderInterface, a "
            f"ProviderTable, one of {', '.join(sorted(provider_tables()))}, or None"
        )
    for name, value, methods, like in (
        ("provider", provider, _OF_PROVIDERS, "an object like a ProviderInterface"),
        ("classifier", classifier, ("classify",), "an object with `async classify(request)`"),
        ("state_manager", state_manager, ("start", "stop"), "an object like a StateManager"),
    ):
        # One that has some of them works in part, and what it lacks is told of when it is asked.
        if value is not None and not any(_has(value, each) for each in methods):
            raise ConfigurationError(
                f"{name} {_kind(value)}: must be {like}, or None; it has no {methods[0]}()"
            )
    if isinstance(strategy, type):
        raise ConfigurationError(
            f"scheduling_strategy {strategy.__name__}: must be an object and not a class, as in "
            f"{strategy.__name__}()"
        )
    for name, value, rule in (
        ("test_rate_multiplier", multiplier, rules.positive),
        ("metrics_enabled", metrics_enabled, rules.true_or_false),
    ):
        wrong = rule(value)
        if wrong is not None:
            raise ConfigurationError(f"{name} {wrong}, got {value!r}")
    if not isinstance(state_config, (StateConfig, NoneType)):
        raise ConfigurationError(
            f"state_config {_kind(state_config)}: must be a StateConfig or None"
        )
    if not isinstance(clock, (ManualClock, NoneType)):
        raise ConfigurationError(f"clock {clock!r}: must be a ManualClock or None")


# What a scheduler asks of a backend whose words it does not have.
_ASKED = (
    "check_and_reserve_capacity",
    "release_reservation",
    "release_streaming_reservation",
    "check_capacity",
)


def check_memory(backend: MemoryBackend) -> None:
    """ConfigurationError where a verb was overridden that would not be asked.

    The words of a MemoryBackend are admitted by in the core, past its methods: what was written
    in one of them would be silently without effect.
    """
    for name in _ASKED:
        if name in vars(backend) or getattr(type(backend), name) is not getattr(
            MemoryBackend, name
        ):
            raise ConfigurationError(
                f"backend of type {type(backend).__name__}: overrides {name}, which a scheduler "
                "does not ask of a MemoryBackend; subclass BaseBackend instead"
            )


def _has(value: object, method: str) -> bool:
    """A class has methods as well, but not one that could be called like this."""
    if isinstance(value, type):
        return False
    try:
        return callable(getattr(value, method, None))
    except Exception:  # somebody else's object; what it raises when it is asked is contained then
        return True


def _kind(value: object) -> str:
    """Not its repr: what people pass by mistake may be a key."""
    return f"of type {type(value).__name__}"


def read_types(retry_on: object) -> tuple[type[BaseException], ...]:
    """The exceptions that are worth another attempt, or ConfigurationError."""
    given = list(retry_on) if isinstance(retry_on, Iterable) else [None]
    types = [each for each in given if isinstance(each, type) and issubclass(each, BaseException)]
    if len(types) != len(given):
        raise ConfigurationError(
            f"retry_on {retry_on!r}: must be a list of types of exceptions, as in [MyError]"
        )
    return tuple(types)


def check_metadata(metadata: Any) -> None:
    """Raises TypeError for what says nothing of a model."""
    for name in ("model_id", "resource_type"):
        value = getattr(metadata, name, None)
        if isinstance(value, str):
            continue
        if isinstance(metadata, RequestMetadata):
            raise TypeError(f"metadata.{name} {value!r}: must be a str")
        raise TypeError(f"metadata {type(metadata).__name__}: must be a RequestMetadata")
