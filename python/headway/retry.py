"""How many retries there may be, and how long a server asks to wait before one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import time
from typing import final

from headway import _values

LONGEST_TOLD = 120.0
"""Seconds that a server may ask to wait at most; a longer time is cut to this."""


# Seconds by which the same wait may be told: a date is one of whole seconds, as is what it is from.
_ROUNDED = 2.0


def told_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the answer asks to wait, from 0 to `LONGEST_TOLD`; None where it does not ask.

    `retry-after-ms`, else `retry-after` as seconds or as a date, which is compared with
    `said_at(headers, now)`.
    """
    told = _values.milliseconds(headers.get("retry-after-ms", ""))
    if told is None:
        told = _values.wait(headers.get("retry-after", ""), said_at(headers, now))
    return None if told is None else min(told, LONGEST_TOLD)


def said_at(headers: Mapping[str, str], now: float | None = None) -> float:
    """When an answer was made, in seconds since the epoch, by the clock that its dates are of.

    That is the server's, by the `date` header, as clocks differ; `now` (None is the present) where
    there is none that can be read.
    """
    said = _values.date(headers.get("date", ""))
    if said is not None:
        return said
    return time() if now is None else now


def odd_words(headers: Mapping[str, str]) -> int:
    """How many of the headers that speak of another attempt cannot be read.

    Two waits that both can, and are further apart than rounding makes them, are one, too.
    """
    odd = 0
    milliseconds, told = headers.get("retry-after-ms"), headers.get("retry-after")
    short = None if milliseconds is None else _values.milliseconds(milliseconds)
    long = None if told is None else _values.wait(told, said_at(headers))
    odd += milliseconds is not None and short is None
    odd += told is not None and long is None
    odd += short is not None and long is not None and abs(short - long) > _ROUNDED
    if "x-should-retry" in headers:
        odd += headers["x-should-retry"].strip().lower() not in ("true", "false")
    return odd


@final
class RetryBudget:
    """The retries of a whole run: 10, and one more for every five requests begun.

    Without it, a server in trouble would be asked several times as often as one that is well.
    """

    def __init__(self, spare: int = 10, share: float = 0.2) -> None:
        self._spare = spare
        self._share = share
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, begun: int) -> bool:
        """Takes one retry if there is one left, now that so many requests have begun."""
        with self._lock:
            if self._taken + 1 > self._spare + self._share * begun:
                return False
            self._taken += 1
            return True
