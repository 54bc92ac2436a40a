"""How providers write a wait into a header: of one and the same, each has a form of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

MILLISECOND = 1_000_000
SECOND = 1_000_000_000

Form = Callable[[int, int], str]
"""From nanoseconds to wait, and the nanoseconds since the epoch at which that begins."""


def go_duration(nanoseconds: int, _present: int = 0) -> str:
    """A duration as Go writes it, rounded up to whole milliseconds: `12ms`, `6m0s`, `1h0m2.5s`."""
    milliseconds = -(-nanoseconds // MILLISECOND)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def seconds(nanoseconds: int, _present: int = 0) -> str:
    """Whole seconds, rounded up."""
    return str(-(-nanoseconds // SECOND))


def milliseconds(nanoseconds: int, _present: int = 0) -> str:
    """Whole milliseconds, rounded up."""
    return str(-(-nanoseconds // MILLISECOND))


def epoch_seconds(nanoseconds: int, present: int) -> str:
    """When the wait is over, in whole seconds since the epoch, rounded up."""
    return seconds(present + nanoseconds)


def epoch_milliseconds(nanoseconds: int, present: int) -> str:
    """When the wait is over, in whole milliseconds since the epoch, rounded up."""
    return milliseconds(present + nanoseconds)


def rfc3339(nanoseconds: int, present: int) -> str:
    """When the wait is over, in UTC, cut off to whole seconds: so it may be past already."""
    whole = (present + nanoseconds) // SECOND
    instant = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=whole)
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"
