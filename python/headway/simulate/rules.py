"""What a simulated provider enforces: a `Rule` is one limit with one exact meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

RESOURCES = ("requests", "tokens", "input_tokens", "output_tokens", "concurrency")
SHAPES = ("bucket", "window", "fixed", "concurrency")
FIELDS = ("resource", "amount", "per_seconds", "shape", "burst", "anchor", "hidden")


class LimitLike(Protocol):
    """The attributes of a `headway.Limit` that a rule is made from."""

    @property
    def amount(self) -> int: ...
    @property
    def resource(self) -> str: ...
    @property
    def per(self) -> float: ...
    @property
    def shape(self) -> str | None: ...
    @property
    def burst(self) -> int | None: ...
    @property
    def anchor(self) -> float | None: ...


@dataclass(frozen=True)
class Rule:
    """One limit: `amount` of `resource` in `per_seconds`, counted in the way of `shape`.

    - `bucket`: refilled continuously; holds `burst` (by default `amount`) when full, as it is
      at the start.
    - `window`: never more than `amount` in any window [t, t + per_seconds), wherever it starts.
    - `fixed`: `amount` in each window; one window starts at `anchor` (seconds since the epoch,
      by default a UTC midnight), the others before and after it without a gap.
    - `concurrency`: `amount` at once, the only shape of the resource of that name, and the only
      one that `per_seconds` means nothing to.

    A `hidden` rule is enforced, and no answer tells anything of it but when to try again.

    Example: `Rule("requests", 500, 60.0, "window")`.
    """

    resource: str
    amount: int
    per_seconds: float = 60.0
    shape: str = "bucket"
    burst: int | None = None
    anchor: float | None = None
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.resource not in RESOURCES:
            raise self._error("resource", f"must be one of {', '.join(RESOURCES)}")
        if self.shape not in SHAPES:
            raise self._error("shape", f"must be one of {', '.join(SHAPES)}")
        if (self.resource == "concurrency") != (self.shape == "concurrency"):
            raise self._error("shape", f"cannot count the resource {self.resource!r}")
        if not _is_whole(self.amount) or self.amount < 0:
            raise self._error("amount", "must be a whole number, at least 0")
        if not _is_finite(self.per_seconds) or self.period_ns < 1:
            raise self._error("per_seconds", "must be a finite number of at least one nanosecond")
        if self.burst is not None:
            if self.shape != "bucket":
                raise self._error("burst", f"means nothing to the shape {self.shape!r}")
            if not _is_whole(self.burst) or self.burst < 1:
                raise self._error("burst", "must be a whole number, at least 1")
        if self.anchor is not None:
            if self.shape != "fixed":
                raise self._error("anchor", f"means nothing to the shape {self.shape!r}")
            if not _is_finite(self.anchor):
                raise self._error("anchor", "must be finite seconds since the epoch")
        if not isinstance(self.hidden, bool):
            raise self._error("hidden", "must be true or false")

    @classmethod
    def from_limit(cls, limit: LimitLike, hidden: bool = False) -> Rule:
        """The rule that a `headway.Limit` states; a shape that it leaves open is `bucket`."""
        if limit.resource == "concurrency":
            return cls("concurrency", limit.amount, shape="concurrency", hidden=hidden)
        shape = limit.shape or "bucket"
        return cls(
            limit.resource,
            limit.amount,
            limit.per,
            shape,
            # A Limit may spell out a default, also of a field that its shape does not have.
            limit.burst if shape == "bucket" and limit.burst != limit.amount else None,
            limit.anchor if shape == "fixed" else None,
            hidden,
        )

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Rule:
        """The rule that a JSON object with the names of this class's fields states."""
        unknown = sorted(set(fields) - set(FIELDS))
        if unknown:
            raise ValueError(f"a rule has no field {unknown[0]!r}; it has {', '.join(FIELDS)}")
        missing = [name for name in ("resource", "amount") if name not in fields]
        if missing:
            raise ValueError(f"a rule needs the field {missing[0]!r}; got {dict(fields)!r}")
        given = dict(fields)
        if given["resource"] == "concurrency":
            given.setdefault("shape", "concurrency")
        return cls(**given)  # type: ignore[arg-type]  # __post_init__ checks every field

    @property
    def period_ns(self) -> int:
        """The period in whole nanoseconds."""
        return round(self.per_seconds * 1e9)

    @property
    def capacity(self) -> int:
        """The largest cost that can ever fit."""
        if self.shape == "bucket" and self.burst is not None and self.amount > 0:
            return self.burst
        return self.amount

    def counts_like(self, other: Rule) -> bool:
        """Whether both count the same thing in the same way, be it up to different amounts."""
        return self._kind == other._kind

    def __str__(self) -> str:
        hidden = " hidden" if self.hidden else ""
        if self.shape == "concurrency":
            return f"{self.amount} concurrency{hidden}"
        text = f"{self.amount} {self.resource}/{plain_number(self.per_seconds)}s {self.shape}"
        if self.burst is not None:
            text += f" burst {self.burst}"
        if self.anchor is not None:
            text += f" anchor {plain_number(self.anchor)}"
        return text + hidden

    @property
    def _kind(self) -> tuple[object, ...]:
        return self.resource, self.shape, self.period_ns, self.anchor, self.hidden

    def _error(self, field: str, why: str) -> ValueError:
        return ValueError(f"Rule.{field} = {getattr(self, field)!r}: {why}")


def plain_number(value: float) -> str:
    """All digits of a number, without a point where it is whole."""
    return str(int(value)) if value == int(value) else repr(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
