"""Reads requests: one JSON object a line, as OpenAI's batch input has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from headway.batch.keys import Keys, shown

_FIELDS = ("custom_id", "method", "url", "body")
_NO_KEYS = Keys()


@dataclass(frozen=True, slots=True)
class Line:
    """A request as it stands in the file; `number` counts from 1.

    account, priority: as its keys say. wrong: why it fails without being sent, None for most.
    offset: where it begins in the file, in bytes.
    """

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]
    account: str | None = None
    priority: int = 0
    wrong: tuple[str, str] | None = None
    offset: int = 0

    @property
    def model(self) -> str:
        """The model that it names; empty where it names none."""
        model = self.body.get("model")
        return model if isinstance(model, str) else ""


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no request, and why."""

    number: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.reason}"


def read_lines(raw_lines: Iterable[bytes], keys: Keys = _NO_KEYS) -> Iterator[Line | Broken]:
    """What each line says; empty lines say nothing. A `custom_id` may occur once only.

    Lazy: as many lines are held as are asked for, and the custom_ids of all.
    """
    seen: dict[str, int] = {}
    offset = 0
    for number, raw in enumerate(raw_lines, start=1):
        begin = offset
        offset += len(raw)
        if not _without_mark(number, raw).strip():
            continue
        line = _read(number, begin, raw, keys)
        if isinstance(line, Broken):
            yield line
            continue
        first = seen.setdefault(line.custom_id, number)
        if first == number:
            yield line
        else:
            custom_id = shown(line.custom_id)
            yield Broken(number, f"custom_id {custom_id} is that of line {first}; not sent")


def read_again(file: BinaryIO, keys: Keys, number: int, offset: int) -> Line | Broken:
    """A line that was read before, by where it begins."""
    file.seek(offset)
    return _read(number, offset, file.readline(), keys)


def count_lines(path: str) -> int:
    """How many lines the file has that are not empty."""
    with open(path, "rb") as file:
        return sum(1 for raw in file if raw.strip())


def _without_mark(number: int, raw: bytes) -> bytes:
    return raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _read(number: int, offset: int, raw: bytes, keys: Keys) -> Line | Broken:
    try:
        return _parse(number, offset, _without_mark(number, raw), keys)
    except (ValueError, RecursionError) as error:
        return Broken(number, str(error))


def _parse(number: int, offset: int, text: bytes, keys: Keys) -> Line:
    try:
        value = json.loads(text.decode(), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {error.start + 1} is {text[error.start]:#04x}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)}: must be an object with {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if name not in value:
            raise ValueError(f"{name} is missing")
    custom_id, method, url, body = (value[name] for name in _FIELDS)
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"custom_id {shown(custom_id)}: must be a string that is not empty")
    if method != "POST":
        raise ValueError(f"method {shown(method)}: must be 'POST'")
    # A whole URL could carry the API key to a host that the user has not named.
    if not isinstance(url, str) or not url.startswith("/") or not url.isprintable():
        raise ValueError(f"url {shown(url)}: must be a path as in '/v1/chat/completions'")
    if not isinstance(body, dict):
        raise ValueError(f"body {shown(body)}: must be an object")
    account, priority, wrong = None, 0, None
    code = "invalid_account"
    try:
        account = keys.account_of(value)
        code = "invalid_priority"
        priority = keys.priority_of(value)
    except ValueError as error:
        wrong = (code, f"line {number}: {error}")
    return Line(number, custom_id, url, body, account, priority, wrong, offset)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
