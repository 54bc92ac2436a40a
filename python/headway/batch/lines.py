"""Reads requests: one JSON object a line, as OpenAI's batch input has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

_FIELDS = ("custom_id", "method", "url", "body")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Line:
    """A request as it stands in the file; `number` counts from 1."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no request, and why."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


def read_lines(raw_lines: Iterable[bytes]) -> Iterator[Line | Broken]:
    """What each line says; empty lines say nothing. A `custom_id` may occur once only.

    Lazy: as many lines are held as are asked for, and the custom_ids of all.
    """
    seen: dict[str, int] = {}
    for number, raw in enumerate(raw_lines, start=1):
        text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not text.strip():
            continue
        try:
            line = _parse(number, text)
        except (ValueError, RecursionError) as error:
            yield Broken(number, str(error))
            continue
        first = seen.setdefault(line.custom_id, number)
        if first == number:
            yield line
        else:
            shown = _shown(line.custom_id)
            yield Broken(number, f"custom_id {shown} is that of line {first}; not sent")


def count_lines(path: str) -> int:
    """How many lines the file has that are not empty."""
    with open(path, "rb") as file:
        return sum(1 for raw in file if raw.strip())


def _parse(number: int, text: bytes) -> Line:
    try:
        value = json.loads(text.decode(), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {error.start + 1} is {text[error.start]:#04x}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(value)}: must be an object with {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if name not in value:
            raise ValueError(f"{name} is missing")
    custom_id, method, url, body = (value[name] for name in _FIELDS)
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"custom_id {_shown(custom_id)}: must be a string that is not empty")
    if method != "POST":
        raise ValueError(f"method {_shown(method)}: must be 'POST'")
    # A whole URL could carry the API key to a host that the user has not named.
    if not isinstance(url, str) or not url.startswith("/") or not url.isprintable():
        raise ValueError(f"url {_shown(url)}: must be a path as in '/v1/chat/completions'")
    if not isinstance(body, dict):
        raise ValueError(f"body {_shown(body)}: must be an object")
    return Line(number, custom_id, url, body)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
