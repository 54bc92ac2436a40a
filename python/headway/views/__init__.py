"""Views: what is kept in a backend, in the shapes that applications know. They keep no state."""

from __future__ import annotations

from headway.views.manager import StateManager
from headway.views.state import RateLimitState, StateType

__all__ = ["RateLimitState", "StateManager", "StateType"]


def __dir__() -> list[str]:
    return sorted(__all__)
