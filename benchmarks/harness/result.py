"""One measured figure beside its floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """One object of build/bench.json.

    row: the goal's name. cell: which of its cases. headway and floor: in `unit`; floor is None
    where it cannot be measured in that unit. goal: in words; met: whether it is (None: this figure
    is here to be read, and has no goal). method: how both were measured. more: figures that explain
    this one. peers: what each other limiter did, or why it cannot.
    """

    row: str
    cell: str
    unit: str
    headway: float
    floor: float | None
    goal: str
    met: bool | None
    method: str
    more: Mapping[str, object] = field(default_factory=dict)
    peers: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many floors high it is."""
        return self.headway / self.floor if self.floor else None

    def as_json(self, with_peers: bool) -> dict[str, object]:
        """The object that is written."""
        out: dict[str, object] = {
            "row": self.row,
            "cell": self.cell,
            "unit": self.unit,
            "headway": _short(self.headway),
            "floor": None if self.floor is None else _short(self.floor),
            "ratio": None if self.ratio is None else _short(self.ratio),
            "goal": self.goal,
            "met": self.met,
            "method": " ".join(self.method.split()),
            "more": dict(self.more),
        }
        if with_peers:
            out["peers"] = {
                name: _short(value) if isinstance(value, float) else value
                for name, value in self.peers.items()
            }
        return out


def _short(value: float) -> float:
    """Six digits, which is more than any of these figures deserves."""
    return float(f"{value:.6g}")
