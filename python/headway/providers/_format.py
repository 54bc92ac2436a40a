"""What a provider's file may hold, looked at before anything is done with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from headway.errors import ConfigurationError

KINDS = ("refused", "capacity", "spent", "not_on_plan", "bad_request")
"""What an error can be: see headway.providers.table."""

RESERVED = ("largest", "sum", "input", "output", "expected")
ASSUMED = "assumed"

Path = tuple[tuple[str, bool], ...]
"""Names from the top of a body downwards, each with whether all items of its list are meant."""

_FORMS = ("any", "duration", "ms", "epoch", "epoch_ms", "date")
_GROUPS = ("limit", "remaining", "used", "reset")
_OF_HEADERS = (
    *("resource", "limit", "remaining", "reset", "reset_form", "period_in", "when", "unless"),
    *("rounding", "period", "shape", "anchor"),
)


@dataclass(frozen=True, slots=True)
class ErrorRule:
    """Which errors are of a kind. All that is not empty must hold."""

    kind: str
    statuses: frozenset[int]
    header: str
    at: Path | None
    texts: frozenset[str]
    like: tuple[str, ...]

    def holds_for(self, text: str) -> bool:
        """Whether a text is one of those; any is, where none are named."""
        text = text.strip().lower()
        if not self.texts and not self.like:
            return True
        return text in self.texts or any(fnmatchcase(text, each) for each in self.like)


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """A limit that an error's body states: where, and which one it is."""

    at: Path
    name: Path
    like: tuple[str, ...]
    pattern: re.Pattern[str] | None
    values: Mapping[str, Path]
    fixed: Mapping[str, str]
    zone: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Where an error's body says how long to wait."""

    at: Path
    form: str
    pattern: re.Pattern[str] | None


@dataclass(frozen=True, slots=True)
class Credit:
    """Which GET tells what money a key has left."""

    path: str
    left: Path


@dataclass(frozen=True, slots=True)
class Format:
    """A table's data, checked. stated: for the core, limits of headers first, then of bodies."""

    name: str
    hosts: tuple[str, ...]
    version: int
    as_of: str
    policies: bool
    stated: list[dict[str, Any]]
    body_limits: tuple[BodyLimit, ...]
    waits: tuple[Wait, ...]
    errors: tuple[ErrorRule, ...]
    buckets: tuple[tuple[str, str], ...]
    reserve: Mapping[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    proportional: bool = False
    credit: Credit | None = None


def header_of(place: int, value: str) -> str:
    """By what name the core finds what a body states: no header's, which have no blanks."""
    return f"body {place} {value}"


def read_format(data: Mapping[str, Any], origin: str) -> Format:
    """The data of one file. ConfigurationError names what is wrong in it."""
    top = _Entry(
        data,
        origin,
        *("name", "version", "as_of", "sources", "hosts", "notes", "policies", "limits"),
        *("body_limits", "waits", "errors", "buckets", "reserve", "refund", "debt", "credit"),
    )
    name = top.text("name", needed=True)
    sources = top.value("sources", {})
    if not isinstance(sources, dict):
        raise top.wrong("sources", "must be an object of them by their name")
    for key, source in sources.items():
        each = _Entry(source, f"{origin}: sources {key!r}", "from", "date")
        each.text("from", needed=True)
        each.text("date", needed=True)
    known = frozenset((ASSUMED, *sources))
    hosts = top.value("hosts", [])
    if not isinstance(hosts, list) or not all(isinstance(each, str) for each in hosts):
        raise top.wrong("hosts", "must be a list of str")
    version = top.value("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise top.wrong("version", "must be a whole number from 1 on")
    policies = top.value("policies", False)
    if not isinstance(policies, bool):
        raise top.wrong("policies", "must be true or false")
    if "limits" not in data:
        raise ConfigurationError(f"{origin}: limits None: must be a list of objects")
    stated = []
    for entry in top.entries("limits", (*_OF_HEADERS, "slice", "source"), known):
        stated += _of_headers(entry)
    body_limits: list[BodyLimit] = []
    for entry in top.entries(
        "body_limits",
        (
            *("resource", "at", "name", "like", "pattern", "limit", "remaining", "used", "reset"),
            *("reset_form", "period", "shape", "zone", "rounding", "source"),
        ),
        known,
    ):
        given, limit = _of_body(entry, len(body_limits))
        stated.append(given)
        body_limits.append(limit)
    return Format(
        name=name,
        hosts=tuple(hosts),
        version=version,
        as_of=top.text("as_of"),
        policies=policies,
        stated=stated,
        body_limits=tuple(body_limits),
        waits=tuple(
            Wait(each.path("at"), each.one_of("form", _FORMS, "duration"), each.pattern(("wait",)))
            for each in top.entries("waits", ("at", "form", "pattern", "source"), known)
        ),
        errors=tuple(
            _error(each)
            for each in top.entries(
                "errors", ("class", "status", "header", "at", "is", "like", "source"), known
            )
        ),
        buckets=_buckets(top, known),
        reserve={
            each.text("resource", needed=True): each.one_of("as", RESERVED)
            for each in top.entries("reserve", ("resource", "as", "source"), known)
        },
        kept=frozenset(
            each.text("resource", needed=True)
            for each in top.entries("refund", ("resource", "of", "source"), known)
            if each.one_of("of", ("unused", "nothing")) == "nothing"
        ),
        proportional=_debt(top, known),
        credit=_credit(top, known),
    )


def _of_headers(entry: _Entry) -> list[dict[str, Any]]:
    given = {name: entry.data[name] for name in _OF_HEADERS if name in entry.data}
    seconds = entry.value("slice", None)
    if seconds is None:
        return [given]
    if not isinstance(given.get("limit"), str) or "unless" in given or "when" in given:
        raise entry.wrong("slice", "needs a limit, and neither when nor unless")
    # What remains is of the limit where that is stated beside it, else of a part of its period.
    part = {name: value for name, value in given.items() if name not in ("limit", "period_in")}
    return [
        {**given, "when": given["limit"]},
        {**part, "unless": given["limit"], "period": seconds},
    ]


def _of_body(entry: _Entry, place: int) -> tuple[dict[str, Any], BodyLimit]:
    given = {
        name: entry.data[name]
        for name in ("resource", "reset_form", "period", "shape", "rounding")
        if name in entry.data
    }
    pattern = entry.pattern(_GROUPS)
    values, fixed = {}, {}
    for name in _GROUPS:
        where = entry.value(name, None)
        if isinstance(where, (int, float)) and not isinstance(where, bool) and where >= 0:
            fixed[name] = repr(where)
        elif where is not None:
            values[name] = entry.path(name)
        elif pattern is None or name not in pattern.groupindex:
            continue
        given["remaining" if name == "used" else name] = header_of(
            place, "remaining" if name == "used" else name
        )
    if "limit" not in given:
        raise entry.wrong("limit", "must be the path of a number, or a group of pattern")
    zone = entry.text("zone")
    limit = BodyLimit(
        at=entry.path("at"),
        name=entry.path("name"),
        like=entry.texts("like"),
        pattern=pattern,
        values=values,
        fixed=fixed,
        zone=zone,
    )
    return given, limit


def _error(entry: _Entry) -> ErrorRule:
    statuses = entry.value("status", [])
    statuses = statuses if isinstance(statuses, list) else [statuses]
    if not all(isinstance(each, int) and 400 <= each <= 999 for each in statuses):
        raise entry.wrong("status", "must be a status of 400 to 999, or a list of such")
    rule = ErrorRule(
        kind=entry.one_of("class", KINDS),
        statuses=frozenset(statuses),
        header=entry.text("header").lower(),
        at=entry.path("at") if "at" in entry.data else None,
        texts=frozenset(each.lower() for each in entry.texts("is")),
        like=tuple(each.lower() for each in entry.texts("like")),
    )
    if not rule.statuses and not rule.header and rule.at is None:
        raise entry.wrong("status", "there must be one, or a header, or at")
    if (rule.texts or rule.like) and not rule.header and rule.at is None:
        raise entry.wrong("at", "must say of what text, where there is `is` or `like`")
    return rule


def _buckets(top: _Entry, known: frozenset[str]) -> tuple[tuple[str, str], ...]:
    entries = top.entries("buckets", ("models", "bucket", "source"), known)
    buckets = tuple(
        (each.text("models", needed=True), each.text("bucket", needed=True)) for each in entries
    )
    for entry, (_, bucket) in zip(entries, buckets, strict=True):
        # A bucket's name may be asked for as a model's: it must stay where it is.
        found = next((to for models, to in buckets if fnmatchcase(bucket, models)), bucket)
        if found != bucket:
            raise entry.wrong("bucket", f"must not be a model of another bucket, {found!r}")
    return buckets


def _debt(top: _Entry, known: frozenset[str]) -> bool:
    if "debt" not in top.data:
        return False
    entry = _Entry(top.data["debt"], f"{top.where}: debt", "is", "source")
    entry.check_source(known)
    return entry.one_of("is", ("absolute", "proportional")) == "proportional"


def _credit(top: _Entry, known: frozenset[str]) -> Credit | None:
    if "credit" not in top.data:
        return None
    entry = _Entry(top.data["credit"], f"{top.where}: credit", "path", "left", "source")
    entry.check_source(known)
    path = entry.text("path", needed=True)
    if not path.startswith("/"):
        raise entry.wrong("path", "must begin with /")
    left = entry.path("left")
    if not left:
        raise entry.wrong("left", "must be names with dots between")
    return Credit(path, left)


class _Entry:
    """One object of a file; what is not known in it is an error."""

    def __init__(self, data: object, where: str, *known: str) -> None:
        if not isinstance(data, Mapping):
            raise ConfigurationError(f"{where} {data!r}: must be an object")
        self.data = data
        self.where = where
        for name in data:
            if name not in known:
                raise ConfigurationError(f"{where}: there is no {name!r} in one")

    def wrong(self, name: str, rule: str) -> ConfigurationError:
        return ConfigurationError(f"{self.where}: {name} {self.data.get(name)!r}: {rule}")

    def value(self, name: str, otherwise: Any) -> Any:
        found = self.data.get(name)
        return otherwise if found is None else found

    def text(self, name: str, needed: bool = False) -> str:
        found = self.value(name, None if needed else "")
        if not isinstance(found, str) or (needed and not found):
            raise self.wrong(name, "must be a str")
        return found

    def texts(self, name: str) -> tuple[str, ...]:
        found = self.value(name, [])
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.wrong(name, "must be a str or a list of str")
        return tuple(found)

    def one_of(self, name: str, choices: tuple[str, ...], otherwise: str | None = None) -> str:
        found = self.value(name, otherwise)
        if found not in choices:
            raise self.wrong(name, f"must be {', '.join(choices[:-1])} or {choices[-1]}")
        assert isinstance(found, str)
        return found

    def path(self, name: str) -> Path:
        text = self.text(name)
        if not text:
            return ()
        steps = [(step.removesuffix("[]"), step.endswith("[]")) for step in text.split(".")]
        if not all(step for step, _ in steps):
            raise self.wrong(name, "must be names with dots between, and [] behind lists")
        return tuple(steps)

    def pattern(self, groups: tuple[str, ...]) -> re.Pattern[str] | None:
        text = self.text("pattern")
        if not text:
            return None
        try:
            found = re.compile(text)
        except re.error as error:
            raise self.wrong("pattern", f"must be a regular expression: {error}") from None
        if not found.groupindex or not set(found.groupindex) <= set(groups):
            raise self.wrong("pattern", f"must have groups named {', '.join(groups)}, no others")
        return found

    def entries(self, name: str, names: tuple[str, ...], sources: frozenset[str]) -> list[_Entry]:
        found = self.value(name, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.wrong(name, "must be a list of objects")
        entries = []
        for place, each in enumerate(found):
            entry = _Entry(each, f"{self.where}: {name}[{place}]", *names)
            entry.check_source(sources)
            entries.append(entry)
        return entries

    def check_source(self, known: frozenset[str]) -> None:
        source = self.text("source")
        if source and source not in known:
            raise self.wrong("source", f"must be one of the sources, or {ASSUMED}")
