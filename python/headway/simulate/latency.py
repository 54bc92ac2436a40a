"""How long the simulated model works before its answer comes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """A distribution of seconds: constant, uniform around a value, or log-normal.

    Each draw is `median x exp(sigma x N)`, N standard normal, plus a uniform draw from
    [-jitter, +jitter], and at least 0. `Latency(0.05)` is constant.
    """

    median: float
    sigma: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("median", "sigma", "jitter"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Latency.{name} = {value!r}: must be finite and at least 0")

    @classmethod
    def parse(cls, text: str, jitter: float = 0.0) -> Latency:
        """Reads `SECONDS` or `lognormal:MEDIAN[:SIGMA]`, SIGMA being 0.5 if it is left out."""
        kind, *numbers = text.split(":")
        wrong = f"latency {text!r}: neither SECONDS, as in 0.05, nor lognormal:MEDIAN[:SIGMA]"
        known = kind == "lognormal" and len(numbers) <= 2
        try:
            given = [*map(float, numbers)] if known and numbers else [float(text)]
        except ValueError:
            raise ValueError(wrong) from None
        try:
            if not numbers:
                return cls(given[0], jitter=jitter)
            median, sigma = [*given, 0.5][:2]
            return cls(median, sigma, jitter)
        except ValueError as error:
            raise ValueError(f"latency {text!r}: {error}") from error

    def draws(self, seed: int) -> Callable[[], float]:
        """A source of latencies in seconds; the same seed gives the same ones."""
        rng = random.Random(f"latency {seed}")
        median, sigma, jitter = self.median, self.sigma, self.jitter

        def draw() -> float:
            seconds = median * math.exp(rng.gauss(0.0, sigma)) if sigma else median
            return max(0.0, seconds + rng.uniform(-jitter, jitter)) if jitter else seconds

        return draw
