"""What the result of a call, or its exception, says: status, headers, body, usage.

The call is the user's own, so what it gives may be anything: a client's response, an SDK's object
or exception, a dict. Looking never raises, whatever a property of such an object does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headway import _tokens
from headway._bodies import parsed

_LONGEST_BODY = 2**16
# Among the extensions of a response of our transports: the provider's table; who is told what was
# used; and that it is not to be tried again.
TABLE = "headway.table"
USED = "headway.used"
FINAL = "headway.final"


@dataclass(frozen=True, slots=True)
class Answer:
    """What could be found. headers: by lower-case name. usage: tokens by resource.

    body: a mapping, of an error only. table: by which its headers are to be read, where a transport
    has said so. final: not to be tried again, by the same. kind, wait: of an error, what the table
    makes of it: its class, and how long its body asks to wait. call: the call, and what is known of
    it, for whoever reads the answer later; None for the second where nobody knows any more.
    doubtful: it is final unless the user's provider says that a limit was reached. begin_by: when
    the request must have begun, in seconds as of Scheduler._now, where it has a deadline. oddities:
    how much of it cannot be read, but for its headers.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    usage: Mapping[str, int] = field(default_factory=dict)
    table: Any = None
    final: bool = False
    kind: str | None = None
    wait: float | None = None
    call: tuple[Any, Any] | None = None
    doubtful: bool = False
    begin_by: float | None = None
    oddities: int = 0


def read_answer(source: object) -> Answer:
    """What `source`, a result or an exception, says."""
    response = look(source, "response")
    status = _status(source, response)
    failed = isinstance(source, BaseException) or (status is not None and status >= 400)
    headers = _headers(source, response)
    body, unread = _body(source, response) if failed else (None, False)
    amounts = _usage_of(source)
    usage = _tokens.read_usage(amounts) if amounts is not None else {}
    # Where all is said, nobody looks for what cannot be read.
    odd = 0 if amounts is None or len(usage) > 2 else _tokens.odd_usage(amounts)
    if unread and headers.get("content-type", "").partition(";")[0].strip().endswith("json"):
        odd += 1
    return Answer(
        status=status,
        headers=headers,
        body=body,
        usage=usage,
        oddities=odd,
        table=_of(look(source, "extensions"), TABLE),
        final=_of(look(source, "extensions"), FINAL) is True,
    )


class _Fields(Mapping[str, Any]):
    """An object's attributes by name, where it is no mapping: an SDK's."""

    def __init__(self, source: object) -> None:
        self._source = source

    def __getitem__(self, name: str) -> Any:
        return _of(self._source, name)

    def get(self, name: str, default: Any = None) -> Any:
        return _of(self._source, name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_usage(source: object) -> dict[str, int]:
    """Tokens that a result says were used, as object or dict."""
    usage = _usage_of(source)
    return {} if usage is None else _tokens.read_usage(usage)


def _usage_of(source: object) -> _Fields | None:
    """What a result, an object or a dict, says of the tokens that were used."""
    for name in ("usage", "usage_metadata", "usageMetadata"):
        usage = _of(source, name)
        if usage is not None:
            return _Fields(usage)
    return None


def _of(source: object, name: str) -> Any:
    """By key where it has keys, else as an attribute."""
    if not isinstance(source, Mapping):
        return look(source, name)
    try:
        return source.get(name)
    except Exception:  # as below
        return None


def look(source: object, name: str) -> Any:
    """The attribute, or None where there is none or reading it fails."""
    try:
        return getattr(source, name, None)
    except Exception:  # a property of somebody else's object; what it cannot say is not there
        return None


def _headers(source: object, response: object) -> dict[str, str]:
    private = look(source, "__pydantic_private__")
    inner = _of(private, "_response") if isinstance(private, Mapping) else None
    by_key = _of(source, "_response_headers") if isinstance(source, Mapping) else None
    candidates = (
        look(inner, "headers"),
        look(response, "headers"),
        by_key,
        None if isinstance(source, Mapping) else look(source, "headers"),
        look(source, "_headers"),
        look(source, "cached_rate_limit_headers"),
    )
    for headers in candidates:
        found = _as_headers(headers)
        if found:
            return found
    return {}


def _as_headers(headers: Any) -> dict[str, str]:
    if headers is None or isinstance(headers, (str, bytes)):
        return {}
    try:
        items = headers.items() if hasattr(headers, "items") else headers
        return {str(name).lower(): str(value) for name, value in items}
    except Exception:  # as above
        return {}


def _body(source: object, response: object) -> tuple[Mapping[str, Any] | None, bool]:
    """The JSON object of an error, as far as it has been read: nothing is waited for here.

    Beside it, where there is none, whether there is a text that is no JSON.
    """
    unread = False
    for owner in (source, response):
        # The latter two are where httpx and requests, and aiohttp, keep what they have read.
        for name in ("body", "_content", "_body"):
            body = look(owner, name)
            if isinstance(body, (bytes, str)) and 0 < len(body) <= _LONGEST_BODY:
                text, body = body, parsed(body)
                unread |= body is None and text.strip() not in (b"null", "null")
            if type(body) is list and body:  # Gemini's, at the end of a stream
                body = body[0]
            if isinstance(body, Mapping):
                return body, False
    return None, unread


def _status(source: object, response: object) -> int | None:
    for candidate in (
        look(source, "status_code"),
        look(response, "status_code"),
        look(source, "status"),
        look(response, "status"),
    ):
        if isinstance(candidate, int) and 100 <= candidate <= 999:
            return int(candidate)
    return None
