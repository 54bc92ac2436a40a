"""fairness for adaptive-rate-limiter, the one whose account mode headway's scheduler has.

Others know no accounts: theirs is NO_PART.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec

from harness.apart import apart
from peers import NO_PART
from peers.adaptive import MISSING, NAME, is_installed

PATIENCE = 20.0
"""Seconds that one request of the light account may wait."""

_P = ParamSpec("_P")


def measure_peers(
    function: Callable[_P, float], scale: float, *args: _P.args, **kwargs: _P.kwargs
) -> dict[str, float | str]:
    """What the row's own `function` says of it, times `scale`."""
    if not is_installed():
        return {**NO_PART, NAME: MISSING}
    try:
        return {**NO_PART, NAME: apart(function, *args, **kwargs) * scale}
    except (TimeoutError, asyncio.TimeoutError):
        return {
            **NO_PART,
            NAME: f"cannot: a request of the light account waited {PATIENCE:.0f} s and more: its "
            "queues are by model, and the flood was in that one before it",
        }
