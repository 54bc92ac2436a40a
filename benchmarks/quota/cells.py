"""The cases of the rows known-quota, unknown-shape and discovered-quota."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

SHAPES = ("bucket", "window", "fixed")
LATENCIES = ("0.05", "2", "lognormal:4")
BOUNDS = ("requests", "tokens")
CALLS = ("transport", "opaque")
SDK_LATENCIES = ("0.05", "2")
SDK_CALLS = {
    "openai": ("sdk", "sdk stream"),
    "anthropic": ("anthropic", "anthropic stream"),
}
"""By whose SDK."""


@dataclass(frozen=True)
class Cell:
    """One server, one client, one limit that binds.

    bound: which of its two limits binds. call: whether a transport marks when a request is sent and
    answered ("transport"), the limiter only sees the call begin and end ("opaque"), or an SDK makes
    it through an AsyncTransport, OpenAI's ("sdk", "sdk stream") or Anthropic's. period and windows:
    how long the limit's window is, and how many of them the client is kept busy for. limiter:
    "headway" or a peer's name. told: what the limiter is given, the limits ("limits"), the same
    without their shape ("amounts") or "nothing".
    """

    shape: str
    latency: str
    bound: str
    call: str
    period: int
    windows: int
    limiter: str = "headway"
    told: str = "limits"

    @property
    def name(self) -> str:
        latency = self.latency.replace("lognormal:", "log-normal ")
        return f"{self.shape}, {latency} s, {self.bound}, {self.call}, {self.period} s windows"

    @property
    def requests(self) -> int:
        """The limit of requests a window; where tokens bind it is out of reach."""
        return 10 * self.period * (1 if self.bound == "requests" else 6)

    @property
    def tokens(self) -> int:
        """The limit of tokens a window; where requests bind it is out of reach."""
        return 10_000 * self.period

    @property
    def amount(self) -> int:
        """The limit that binds."""
        return self.requests if self.bound == "requests" else self.tokens

    @property
    def seconds(self) -> int:
        """How long the client is kept busy."""
        return self.period * self.windows

    @property
    def mean_size(self) -> float:
        """Tokens of a request, on average."""
        return sum(self._sizes) / 2

    @property
    def sdk(self) -> str | None:
        """Whose SDK makes the calls; the server speaks as that provider does."""
        return next((name for name, calls in SDK_CALLS.items() if self.call in calls), None)

    @property
    def streams(self) -> bool:
        """Whether answers come as events."""
        return self.call.endswith("stream")

    @property
    def _amounts(self) -> list[str]:
        # Anthropic counts what goes in and what comes out apart; here, what goes in binds.
        tokens = "input_tokens" if self.sdk == "anthropic" else "tokens"
        amounts = ((self.requests, "requests"), (self.tokens, tokens))
        return [f"{amount} {resource}/{self.period}s" for amount, resource in amounts]

    @property
    def _sizes(self) -> tuple[int, int]:
        # As many calls as where requests bind: an SDK takes milliseconds for each.
        if self.sdk and self.bound == "tokens":
            return (300, 1_700)
        return (100, 700) if self.period < 60 else (200, 1_500)

    def limits(self, anchor: float) -> list[str]:
        """Both limits in text form, as the server has them."""
        shape = self.shape if self.shape != "fixed" else f"fixed anchor {anchor:.3f}"
        return [f"{text} {shape}" for text in self._amounts]

    def given(self, anchor: float) -> list[str] | None:
        """What the client is given of them."""
        if self.told == "nothing":
            return None
        return self._amounts if self.told == "amounts" else self.limits(anchor)

    def sizes(self, seed: int = 1) -> Iterator[int]:
        """The tokens of each request, without end.

        Of a window of tokens, the end that no next request fits into is lost to whoever keeps the
        order; sizes are small enough beside the limit that this is 0.4 % (6 s), 0.1 % (60 s), and
        0.8 % of an SDK's.
        """
        least, most = self._sizes
        draw = random.Random(seed)
        while True:
            yield draw.randint(least, most)


def all_cells(period: int, windows: int) -> list[Cell]:
    """Every shape, latency, bound and kind of call."""
    return [
        Cell(shape, latency, bound, call, period, windows)
        for latency, bound, call, shape in product(LATENCIES, BOUNDS, CALLS, SHAPES)
    ]


def sdk_cells(told: str, windows: int) -> list[Cell]:
    """Every shape, latency, bound and kind of call that the SDKs make, in windows of 6 s.

    Anthropic says that its limits are of a minute; whoever is told nothing goes by that, and there
    are three windows of one.
    """
    return [
        Cell(shape, latency, bound, call, *_lengths(sdk, told, windows), told=told)
        for sdk, calls in SDK_CALLS.items()
        for latency, bound, call, shape in product(
            SDK_LATENCIES, BOUNDS, calls, _shapes_of(sdk, told)
        )
    ]


def quick_sdk_cells(told: str) -> list[Cell]:
    """A few short ones, to try things."""
    kinds = (
        ("0.05", "requests", "sdk"),
        ("2", "tokens", "sdk stream"),
        ("0.05", "tokens", "anthropic"),
    )
    return [cell for cell in sdk_cells(told, 5) if (cell.latency, cell.bound, cell.call) in kinds]


def _lengths(sdk: str, told: str, windows: int) -> tuple[int, int]:
    return (6, windows) if sdk == "openai" or told != "nothing" else (60, 3)


def _shapes_of(sdk: str, told: str) -> tuple[str, ...]:
    # Anthropic documents that it counts by token buckets; whoever is told nothing goes by that.
    return SHAPES if sdk == "openai" or told == "limits" else ("bucket",)


def quick_cells() -> list[Cell]:
    """A few short ones, to try things."""
    return [
        Cell(shape, latency, bound, call, 6, 4)
        for shape in SHAPES
        for latency, bound, call in (("0.05", "requests", "opaque"), ("2", "tokens", "transport"))
    ]
