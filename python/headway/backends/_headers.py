"""Numbers, instants and waits as the headers of rate limits write them."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_MOST = 2**53
_YEAR_2100 = 4_102_444_800.0
# A number beyond the first is milliseconds since the epoch, beyond the second seconds since then,
# and below a wait: 30 years long, or three seconds after 1970, it is neither.
_MILLISECONDS = 1e11
_SECONDS = 1e9
# No header of ours is longer, and what comes from outside is not searched at length.
_LONGEST = 64

_NUMBER = re.compile(r"\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_PART = r"(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h|d)"
_DURATION = re.compile(rf"\+?({_PART})+", re.ASCII)
_AMOUNT_AND_UNIT = re.compile(r"([\d.]+)([a-zµμ]+)", re.ASCII)
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
}
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d+))?(Z|[+-]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_WEEKDAY = re.compile(r"(mon|tue|wed|thu|fri|sat|sun)[a-z]*[, ]", re.IGNORECASE)


def number(value: object) -> float | None:
    """A number that is neither negative nor beyond all reason; None for anything else."""
    text = _text(value)
    if text is None or _NUMBER.fullmatch(text) is None:
        return None
    found = float(text)
    return found if found <= _MOST else None


def whole(value: object) -> int | None:
    """The same without its fraction: of half a request nothing can be sent."""
    found = number(value)
    return None if found is None else int(found)


def duration(value: object) -> float | None:
    """Seconds: a number, or amounts with units, as in "6m0s" and "500ms"."""
    found = number(value)
    if found is not None:
        return found
    text = _text(value)
    if text is None or _DURATION.fullmatch(text) is None:
        return None
    seconds = sum(float(n) * _UNITS[unit] for n, unit in _AMOUNT_AND_UNIT.findall(text))
    return seconds if seconds <= _MOST else None


def instant(value: object, now: float) -> float | None:
    """Seconds since the epoch, from 1970 to 2100; None for anything else.

    A number is a wait from `now`, or seconds or milliseconds since the epoch, by its size. Else a
    duration from `now`, an ISO 8601 time (UTC where it does not say) or an HTTP date.
    """
    found = number(value)
    if found is not None:
        if found > _MILLISECONDS:
            found /= 1000
        elif found <= _SECONDS:
            found += now
    else:
        wait = duration(value)
        found = _date(_text(value)) if wait is None else now + wait
    return found if found is not None and 0 <= found <= _YEAR_2100 else None


def wait(value: object, now: float) -> float | None:
    """Seconds to wait as `Retry-After` says them: a duration, or a date compared with `now`."""
    found = duration(value)
    if found is not None:
        return found
    date = _date(_text(value))
    return None if date is None else max(0.0, date - now)


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
    return value.strip()


def _date(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = _iso(text) or _http(text)
        if moment is None:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return moment.timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _iso(text: str) -> datetime | None:
    # Brought into the one form that every version of Python reads.
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    day, time, fraction, zone = match.groups()
    if len(time) == 5:
        time += ":00"
    zone = "+00:00" if zone is None or zone in "zZ" else zone
    if len(zone) == 5:
        zone = f"{zone[:3]}:{zone[3:]}"
    return datetime.fromisoformat(f"{day}T{time}.{(fraction or '0')[:6]:0<6}{zone}")


def _http(text: str) -> datetime | None:
    if _WEEKDAY.match(text) is None:
        return None
    # Imported when it is needed, which is rarely: it takes as long as all of headway.
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text)
