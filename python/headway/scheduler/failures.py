"""Which failures are worth another attempt.

The provider's table says so, or the answer's status, or that the exception is of a transport: of
sockets, time-outs, and the clients that people use. Anything else is a mistake that would be made
again.
"""

from __future__ import annotations

import asyncio
import dataclasses

from headway.errors import RateLimiterError, RequestTimeoutError
from headway.providers.table import ProviderTable
from headway.retry import LONGEST_TOLD, said_at, told_wait
from headway.scheduler.answers import Answer

REFUSED = 429
RETRIED = frozenset({408, REFUSED, 500, 502, 503, 504, 529})

# By the module and the name of a class, its subclasses too: none of them need be installed.
_OF_TRANSPORTS = frozenset(
    {
        ("httpx", "TransportError"),
        ("httpx2", "TransportError"),
        ("httpcore", "NetworkError"),
        ("httpcore", "TimeoutException"),
        ("httpcore", "ProtocolError"),
        ("aiohttp", "ClientConnectionError"),
        ("aiohttp", "ClientPayloadError"),
        ("requests", "ConnectionError"),
        ("requests", "Timeout"),
        ("urllib3", "HTTPError"),
        ("openai", "APIConnectionError"),
        ("anthropic", "APIConnectionError"),
    }
)
# OSErrors of the machine's own files; a request function that reads some fails the same way again.
_OF_FILES = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def is_of_transport(error: BaseException) -> bool:
    """Whether it says that the call did not get through, rather than that it was wrong."""
    if isinstance(error, RequestTimeoutError):
        return True
    if isinstance(error, RateLimiterError):
        return False
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return True
    for kind in type(error).__mro__:
        if (kind.__module__.partition(".")[0], kind.__name__) in _OF_TRANSPORTS:
            return True
    return isinstance(error, OSError) and not isinstance(error, _OF_FILES)


def classed(answer: Answer, table: ProviderTable) -> Answer:
    """A failure as its provider's table sees it."""
    wait, odd = table._waits(answer.body, said_at(answer.headers))
    return dataclasses.replace(
        answer,
        kind=table.classify(answer.status, answer.headers, answer.body),
        wait=wait,
        oddities=answer.oddities + odd,
    )


def is_refused(answer: Answer) -> bool:
    """Whether a limit was reached."""
    return answer.kind == "refused" or (answer.kind is None and answer.status == REFUSED)


def wait_told_by(answer: Answer) -> float | None:
    """Seconds that an answer asks to wait: its headers, else its body."""
    told = told_wait(answer.headers)
    if told is None and answer.wait is not None:
        told = min(answer.wait, LONGEST_TOLD)
    return told


def is_retried(
    answer: Answer, error: BaseException | None, retry_on: tuple[type[BaseException], ...] = ()
) -> bool:
    """Whether another attempt may do better.

    `x-should-retry` outranks what the table says, and that the status. A 429 that says that the
    account has no money left, or no such model, is final. retry_on: further types of exceptions
    that are worth it.
    """
    if answer.final:
        return False
    told = answer.headers.get("x-should-retry", "").strip().lower()
    if told in ("true", "false"):
        return told == "true"
    if answer.status is not None and answer.status >= 400:
        if answer.kind in ("refused", "capacity"):
            return True
        if answer.kind is None and answer.status in RETRIED:
            return True
        if answer.kind is not None and answer.status == REFUSED:
            return False
        return error is not None and isinstance(error, retry_on)
    if error is None:
        return False
    return isinstance(error, retry_on) or is_of_transport(error)
