"""What an option may be: each rule gives what is wrong with a value, or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeGuard

from headway.errors import ConfigurationError

Rule = Callable[[object], str | None]
"""Takes a value; gives the end of the sentence that begins with the option's name."""


def check(options: object, rules: Mapping[str, Rule]) -> None:
    """Raises ConfigurationError for the first option that breaks its rule."""
    for name, rule in rules.items():
        value = getattr(options, name)
        wrong = rule(value)
        if wrong is not None:
            raise ConfigurationError(f"{name} {wrong}, got {value!r}")


# True is an int to Python, but no size. A nan passes here and fails below: each rule says what is
# good, and no comparison with a nan holds.
def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    return _is_whole(value) or isinstance(value, float)


MOST = 10**9
"""The most seconds, or times, that an option may be: what the core's instants have room for."""
MOST_WHOLE = 2**53
"""The most of what is counted: as of a limit."""


def _whole(value: object, least: int, wrong: str) -> str | None:
    if not _is_whole(value):
        return "must be a whole number"
    if value > MOST_WHOLE:
        return "must be at most 2**53"
    return wrong if value < least else None


def _number(value: object, good: Callable[[float], bool], wrong: str) -> str | None:
    if not is_number(value) or not good(value) or value == math.inf:
        return wrong
    return f"must be at most {MOST}" if value > MOST else None


def at_least_one(value: object) -> str | None:
    return _whole(value, 1, "must be at least 1")


def at_least_one_when_set(value: object) -> str | None:
    return None if value is None else _whole(value, 1, "must be at least 1 when set")


def at_least_one_or_none(value: object) -> str | None:
    return None if value is None else at_least_one(value)


def count(value: object) -> str | None:
    return _whole(value, 0, "must be non-negative")


def port(value: object) -> str | None:
    wrong = "must be between 1 and 65535"
    return _whole(value, 1, wrong) or (wrong if _is_whole(value) and value > 65_535 else None)


def positive(value: object) -> str | None:
    if not is_number(value):
        return "must be positive, a number"
    if value == math.inf:
        return "must be positive and finite"
    return _number(value, lambda number: number > 0, "must be positive")


def not_negative(value: object) -> str | None:
    return _number(value, lambda number: number >= 0, "must be non-negative")


def positive_when_set(value: object) -> str | None:
    if value is None:
        return None
    return _number(value, lambda number: number > 0, "must be positive when set")


def above_one(value: object) -> str | None:
    return _number(value, lambda number: number > 1, "must be greater than 1.0")


def share(value: object) -> str | None:
    return _number(value, lambda number: 0 < number <= 1, "must be between 0 and 1.0")


def at_least_a_minute(value: object) -> str | None:
    return _number(value, lambda number: number >= 60, "must be at least 60 seconds")


def true_or_false(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def text(value: object) -> str | None:
    return None if isinstance(value, str) and value else "must be a text that is not empty"


def overflow_policy(value: object) -> str | None:
    if isinstance(value, str) and value in ("reject", "drop_oldest", "wait"):
        return None
    return "must be 'reject' or 'drop_oldest', or 'wait'"
