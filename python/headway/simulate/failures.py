"""Requests that are made to fail although every limit has room for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DROP = 0
"""In the place of a status: the connection is closed without an answer."""

QUICK = frozenset({429, 503, 529})
"""Statuses that an overloaded provider answers with at once, before any model works."""


@dataclass(frozen=True)
class Failure:
    """A share, from 0 to 1, of the admitted requests fails with `status` (or is dropped)."""

    status: int
    share: float

    def __post_init__(self) -> None:
        if self.status != DROP and not 400 <= self.status <= 599:
            raise ValueError(f"Failure.status = {self.status!r}: must be from 400 to 599, or DROP")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"Failure.share = {self.share!r}: must be from 0 to 1")

    @classmethod
    def parse(cls, text: str) -> Failure:
        """Reads `STATUS:SHARE` or `drop:SHARE`, as in `500:0.02`."""
        kind, _, share = text.partition(":")
        try:
            return cls(DROP if kind == "drop" else int(kind), float(share))
        except ValueError as error:
            raise ValueError(
                f"failure {text!r}: not STATUS:SHARE or drop:SHARE as in 500:0.02 ({error})"
            ) from error


def failure_draws(failures: Sequence[Failure], seed: int) -> Callable[[], int | None]:
    """A source of fates: the status to fail with, or None; the same seed gives the same ones."""
    total = sum(failure.share for failure in failures)
    if total > 1.0 + 1e-9:
        raise ValueError(f"the shares of failures add up to {total:g}, more than 1")
    rng = random.Random(f"failures {seed}")

    def draw() -> int | None:
        point = rng.random()
        for failure in failures:
            if point < failure.share:
                return failure.status
            point -= failure.share
        return None

    return draw
