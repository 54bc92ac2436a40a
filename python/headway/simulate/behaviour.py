"""How a simulated provider behaves beside its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from headway.simulate.dialects import DIALECTS
from headway.simulate.failures import Failure
from headway.simulate.latency import Latency

_NO_LATENCY = Latency(0.0)


@dataclass(frozen=True)
class Behaviour:
    """Everything but the rules. Times are in seconds.

    - `latency`: from the counting instant to the answer (of a stream: to its last event).
    - `refusal_latency`: the same for refusals and overload, drawn uniformly from this range.
    - `arrival_jitter`: a request is counted up to this long after it has arrived, drawn
      uniformly, as over a network with uneven delays.
    - `failures`: shares of the admitted requests that fail all the same.
    - `decisions`: keep every decision for `GET /_stats?decisions=1`.
    - `headers`: say the limits in headers and in the bodies of refusals.
    - `key`: the API key that every request to the API must carry.
    - `count_refused`: a refused request is counted as a request too.
    - `dialect`: whose headers, bodies, events and errors it has, one of `DIALECTS`. Which of the
      resources are counted is for the rules to say.
    """

    latency: Latency = _NO_LATENCY
    refusal_latency: tuple[float, float] = (0.005, 0.020)
    arrival_jitter: float = 0.0
    failures: tuple[Failure, ...] = ()
    seed: int = 0
    decisions: bool = False
    headers: bool = True
    key: str | None = field(default=None, repr=False)
    count_refused: bool = False
    dialect: str = "openai"

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise ValueError(f"dialect {self.dialect!r}: must be one of {', '.join(DIALECTS)}")
