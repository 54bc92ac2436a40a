"""Which failures are worth another attempt, how many there may be, and after how long."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import datetime, timezone
from time import time
from typing import final

LONGEST_TOLD = 120.0
"""Seconds that a server may ask to wait at most; a longer time is cut to this."""

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0


def is_retried(status: int, body: object) -> bool:
    """Whether another attempt may do better: 408, 409, 429 and 5xx.

    Not a 429 that says the account has no money left: no waiting helps.
    """
    if status == 429:
        error = body.get("error") if isinstance(body, dict) else None
        told = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
        return "insufficient_quota" not in told
    return status in (408, 409) or 500 <= status <= 599


def told_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the answer asks to wait, from 0 to `LONGEST_TOLD`; None where it does not ask.

    `retry-after-ms`, else `retry-after` as seconds or as a date, which is compared with `now`
    (seconds since the epoch; None is the present).
    """
    wait = _number(headers.get("retry-after-ms", ""))
    if wait is not None:
        wait /= 1000
    else:
        text = headers.get("retry-after", "")
        wait = _number(text)
        if wait is None:
            date = _date(text)
            if date is None:
                return None
            wait = date - (time() if now is None else now)
    return min(max(wait, 0.0), LONGEST_TOLD)


def backoff(retry: int, told: float | None, random_share: float | None = None) -> float:
    """Seconds before the retry-th retry, counted from 1: never less than the server has told.

    Else full jitter: anything from 0 to a bound that doubles with each retry, so that those who
    failed together do not come back together. random_share: the share of the bound, from 0 to 1.
    """
    share = random.random() if random_share is None else random_share
    own = share * min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2.0 ** (min(retry, 30) - 1))
    return own if told is None else max(own, told)


@final
class RetryBudget:
    """The retries of a whole run: 10, and one more for every five requests begun.

    Without it, a server in trouble would be asked several times as often as one that is well.
    """

    def __init__(self, spare: int = 10, share: float = 0.2) -> None:
        self._spare = spare
        self._share = share
        self._begun = 0
        self._taken = 0

    def note_request(self) -> None:
        """Another request (not an attempt) begins."""
        self._begun += 1

    def at_least(self, requests: int) -> None:
        """So many requests have begun, for whoever counts them elsewhere."""
        self._begun = max(self._begun, requests)

    def take(self) -> bool:
        """Takes one retry if there is one left."""
        if self._taken + 1 > self._spare + self._share * self._begun:
            return False
        self._taken += 1
        return True


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # "nan" and "inf" are numbers to Python, but no times.
    return value if abs(value) < 1e12 else None


def _date(text: str) -> float | None:
    from email.utils import parsedate_to_datetime  # slow to import, and rarely needed

    try:
        date: datetime = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return date.timestamp()
