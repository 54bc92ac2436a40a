"""Numbers, instants and waits as headers, bodies and dictionaries about limits write them."""

from __future__ import annotations

from headway import _core

# What comes from outside is not looked at beyond what a value may be long.
_LONGEST = 64
_MOST = 2**53


def number(value: object) -> float | None:
    """A number that is neither negative nor beyond all reason; None for anything else."""
    text = _text(value)
    return None if text is None else _core.parse_number(text)


def milliseconds(value: object) -> float | None:
    """The same as seconds."""
    found = number(value)
    return None if found is None else found / 1000


def whole(value: object) -> int | None:
    """A number without its fraction: of half a request nothing can be sent."""
    found = number(value)
    return None if found is None else int(found)


def duration(value: object) -> float | None:
    """Seconds: a number, or amounts with units, as in "6m0s" and "500ms"."""
    text = _text(value)
    return None if text is None else _core.parse_duration(text)


def instant(value: object, now: float) -> float | None:
    """Seconds since the epoch, from 1970 to 2100; None for anything else.

    A number is a wait from `now`, or seconds or milliseconds since the epoch, by its size. Else a
    duration from `now`, a time of RFC 3339 (UTC where it does not say) or an HTTP date.
    """
    text = _text(value)
    return None if text is None else _core.parse_instant(text, now)


def date(value: object) -> float | None:
    """Seconds since the epoch of a time of RFC 3339 or an HTTP date, from 1970 to 2100."""
    text = _text(value)
    return None if text is None else _core.parse_date(text)


def wait(value: object, now: float) -> float | None:
    """Seconds to wait as `Retry-After` says them: a duration, or a date compared with `now`."""
    text = _text(value)
    if text is None:
        return None
    found = _core.parse_duration(text)
    if found is not None:
        return found
    until = _core.parse_date(text)
    return None if until is None else max(0.0, until - now)


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        # Digits of an int beyond reason are not even written; nan and inf are not in reach either.
        return repr(value) if abs(value) <= _MOST else None
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: _LONGEST + 1]).decode("latin-1")
    if not isinstance(value, str) or len(value) > _LONGEST:
        return None
    return value
