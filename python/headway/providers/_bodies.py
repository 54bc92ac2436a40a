"""What an error's body says, read within bounds: it comes from outside.

Looked at are 64 values of a path at most, and 2048 characters of a text. Whatever has another type
than a path goes through is as if it was not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from headway import _core, _values
from headway.providers._format import BodyLimit, Path, Wait, header_of

_MOST = 64
_LONGEST = 2048
_FARTHEST = 1e9


def root_of(body: object) -> dict[str, object]:
    """The body as an object with an `error`, as SDKs strip it off; Gemini's comes in a list."""
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, dict):
        return {}
    return body if isinstance(dict.get(body, "error"), dict) else {"error": body}


def values_at(root: object, path: Path) -> list[object]:
    """What is found there."""
    found = [root]
    for name, each in path:
        inner: list[object] = []
        for value in found:
            below = dict.get(value, name) if isinstance(value, dict) else None
            if not each:
                inner.append(below)
            elif isinstance(below, list):
                inner.extend(below[:_MOST])
        found = [value for value in inner[:_MOST] if value is not None]
    return found


def text_of(value: object) -> str | None:
    """A text, or a number as one."""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 2**53:
        return repr(value)
    return None


def texts_at(root: object, path: Path) -> Iterator[str]:
    """The texts that are found there."""
    for value in values_at(root, path):
        text = text_of(value)
        if text is not None:
            yield text


def stated_by(root: object, limit: BodyLimit, place: int) -> dict[str, str]:
    """What a body says of one limit, under the names that the core looks for.

    Where it is said more than once, the smallest limit counts. One that cannot be read is there
    only where no other is, for the core to count.
    """
    least: dict[str, str] = {}
    smallest = float("inf")
    for each in values_at(root, limit.at):
        found = _one(each, limit)
        if found is None:
            continue
        amount = _core.parse_number(found.get("limit", ""))
        if amount is not None and amount < smallest:
            smallest = amount
            least = found
        elif "limit" in found and not least:
            least = found
    return {header_of(place, name): text for name, text in least.items()}


def _one(root: object, limit: BodyLimit) -> dict[str, str] | None:
    found = dict(limit.fixed)
    if limit.like or limit.pattern is not None:
        name = next(texts_at(root, limit.name), None)
        if name is None:
            return None
        if limit.like and not any(fnmatchcase(name, each) for each in limit.like):
            return None
        if limit.pattern is not None:
            match = limit.pattern.search(name)
            if match is None:
                return None
            found.update((k, v) for k, v in match.groupdict().items() if v is not None)
    for name, path in limit.values.items():
        text = next(texts_at(root, path), None)
        if text is not None:
            found[name] = text
    used = found.pop("used", None)
    if used is not None and "remaining" not in found:
        most, taken = _values.whole(found.get("limit")), _values.whole(used)
        if most is not None and taken is not None:
            found["remaining"] = str(max(0, most - taken))
    return found


def wait_in(root: object, wait: Wait, now: float) -> tuple[float | None, int]:
    """Seconds that a body asks to wait, of several the longest; how many cannot be read."""
    longest: float | None = None
    odd = 0
    for text in texts_at(root, wait.at):
        said = text
        if wait.pattern is not None:
            match = wait.pattern.search(text)
            if match is None:
                continue
            said = match.group("wait") or ""
        seconds = _seconds(said, wait.form, now)
        if seconds is None or seconds >= _FARTHEST:
            odd += 1
        elif seconds >= 0:
            longest = max(seconds, longest or 0.0)
    return longest, odd


def _seconds(text: str, form: str, now: float) -> float | None:
    if form == "duration":
        return _core.parse_duration(text)
    if form == "any":
        found = _core.parse_instant(text, now)
    elif form == "date":
        found = _core.parse_date(text)
    else:
        found = _core.parse_number(text)
        if found is not None and form != "epoch":
            found /= 1000
        if form == "ms":
            return found
    return None if found is None else found - now
