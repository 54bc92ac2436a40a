"""Limits that change while a simulated provider runs, as its timetable says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headway.simulate.rules import Rule

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Change:
    """`after` seconds from the start, `rule` takes the place of one of its resource.

    Of the one that has its period and shape too, or else of the only one of its resource that is
    not hidden; where there is none, it is one more. What has been counted stays counted, in units.
    """

    after: float
    rule: Rule

    def __post_init__(self) -> None:
        if not (math.isfinite(self.after) and self.after >= 0):
            raise ValueError(
                f"Change.after = {self.after!r}: must be finite seconds after the start, at least 0"
            )


def parse_after(text: str) -> float:
    """Reads a time after the start, as in `30s`, `1.5m`, `2h`, `500ms` or `30`: seconds."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"time {text!r}: not one after the start, as in 30s, 1.5m, 2h or 500ms")
    return float(found[1]) * _UNITS[found[2] or "s"]


def replaced(rules: Sequence[Rule], rule: Rule) -> int | None:
    """Which of `rules` this one takes the place of, as `Change` says; None: of none, it is new.

    ValueError where it might be any of several.
    """
    rivals = [at for at, each in enumerate(rules) if _is_told_of(each, rule.resource)]
    alike = [at for at in rivals if rules[at].counts_like(rule)]
    for found in (alike, rivals):
        if len(found) == 1:
            return found[0]
    if not rivals:
        return None
    several = " and ".join(repr(str(rules[at])) for at in rivals)
    raise ValueError(
        f"limit {str(rule)!r}: might take the place of {several}; "
        "it must have the period and the shape of one of them"
    )


def timetable(rules: Iterable[Rule], changes: Iterable[Change]) -> list[Change]:
    """The changes in their order; ValueError where one of them might be of several rules."""
    current = list(rules)
    ordered = sorted(changes, key=lambda change: change.after)
    for change in ordered:
        at = replaced(current, change.rule)
        if at is None:
            current.append(change.rule)
        else:
            current[at] = change.rule
    return ordered


def _is_told_of(rule: Rule, resource: str) -> bool:
    return rule.resource == resource and not rule.hidden
