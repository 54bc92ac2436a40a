"""The least time in which a limit lets work through, by the way in which it counts."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from headway import Limit


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has sent, first attempts only.

    amounts: by resource, what the requests took together. began: when the first one could go out,
    in seconds since the epoch. latency: the mean time in seconds that a request was in flight.
    """

    amounts: dict[str, int]
    began: float
    latency: float


def least_seconds(limit: Limit, work: Work) -> float:
    """From the first request until the last one can go out, if nothing else was in the way.

    - `bucket`: (work - burst) / rate, since the burst is there at once;
    - `window`, and an unknown shape, which is kept as one: floor((work - 1) / N) periods;
    - `fixed`: the same, but the first window had already begun: its part that was over is less;
    - `concurrency`: (work / N - 1) times the mean latency.

    That requests are whole is not considered: what no next request fits into is lost in truth.
    """
    amount = work.amounts.get(limit.resource, 0)
    if amount == 0 or limit.amount == 0:
        return 0.0
    if limit.shape == "concurrency":
        return max(0.0, amount / limit.amount - 1) * work.latency
    if limit.shape == "bucket":
        burst = limit.amount if limit.burst is None else limit.burst
        return max(0.0, (amount - burst) * limit.per / limit.amount)
    windows = floor((amount - 1) / limit.amount)
    if limit.shape != "fixed" or windows == 0:
        return windows * limit.per
    return windows * limit.per - (work.began - (limit.anchor or 0.0)) % limit.per
