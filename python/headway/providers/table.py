"""Providers as data: how an API counts and how its answers say so, one JSON file for each.

A file is an object with these members, of which only `name` and `limits` must be there. What is not
documented of an API is left out, and found out from its answers. Wherever a fact stands, `source`
beside it names one of `sources`, or is `"assumed"`.

`name`, `version`, `as_of` (when it was last compared with its sources), `notes` (a list of texts).

`sources`: by a name, each with `from` and `date`.

`hosts`: of base URLs that it is for; one that begins with `*` is for all that end so.

`limits`: those that headers state, each with its `resource` (`requests`, `tokens`, `input_tokens`,
`output_tokens`) and the names of the headers `limit`, `remaining`, `reset` and `period_in` (which
states its period in seconds). What is documented of it: `reset_form` (`duration`, `ms`, `epoch`,
`epoch_ms`, `date`, or `any`, which goes by the size), `period` in seconds, `shape`, `anchor`,
`rounding` (by which what remains may be off), and `slice`: where the limit itself is not stated,
what remains is of so many seconds only. `when`, `unless`: headers with or without which it holds.

`policies`: true where the IETF's RateLimit fields are read.

`body_limits`: those that an error's body states. `at` is the path of the objects that do, as in
`error.details[].violations[]`; `limit`, `remaining`, `used` and `reset` are paths from there, or
numbers. `name` is the path of a text from there, and `like` patterns with `*`, one of which it must
match, or `pattern` a regular expression whose groups `limit`, `remaining`, `used` and `reset` are
values. `resource`, `period`, `shape`, `reset_form` and `rounding` are as above; `zone` is the time
zone at whose midnight a day's window begins.

`waits`: where an error's body says how long to wait. `at` is a path, `form` as `reset_form`
(`duration`), and `pattern` may have a group `wait`.

`errors`: of what `class` an error is, the first that holds. `status` is one or a list; `at` a path,
or `header` a name, whose text must be one of `is` or match one of `like`, in any case of letters.
`refused`: a limit is reached; its bucket is held up and it is tried again. `capacity`: the provider
has none; it is tried again, and no limit is at fault. `spent` (no money is left), `not_on_plan` and
`bad_request` are not tried again. What no entry is about goes by its status.

`buckets`: models that share limits, by `models`, a pattern with `*`, and the name of the `bucket`.

`reserve`: how a request's `resource` is estimated, `as` `largest` (of what goes in, and what may
come out at most; as OpenAI counts tokens), `sum` of both, `input`, `output` at most, or `expected`
output. `refund`: what of a `resource` is given back when the use is known, `of` `unused` or
`nothing`. `debt`: `is` `absolute` or `proportional`, as what is owed when a limit changes.

`credit`: which GET tells what money a key has left: its `path` behind the base URL, and `left`, the
path of the number in its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from pathlib import Path
from time import time
from typing import Any, final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from headway._core import Readings, StatedLimits
from headway.errors import ConfigurationError
from headway.providers._bodies import root_of, stated_by, texts_at, values_at, wait_in
from headway.providers._format import ErrorRule, read_format

_DAY = 86_400


@final
class ProviderTable:
    """What is known of how one API counts, and of how its answers say so.

    data: as a file holds it. ConfigurationError names what is wrong in it. Immutable.
    """

    def __init__(self, data: Mapping[str, Any], origin: str = "provider table") -> None:
        self._format = read_format(data, origin)
        self.name = self._format.name
        self.hosts = self._format.hosts
        self.kept = self._format.kept
        """The resources of which nothing is given back that was reserved and not used."""
        self.proportional = self._format.proportional
        """Whether what is owed is scaled when a limit changes."""
        credit = self._format.credit
        self.credit_path = None if credit is None else credit.path
        """Behind the base URL: a GET there tells what money the key has left. None: none does."""
        self._by_anchors: dict[tuple[int | None, ...], StatedLimits] = {}
        try:
            self._stated(time())
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigurationError(f"{origin}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> ProviderTable:
        """From a file of the user's own."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"provider table {str(path)!r}: {error}") from None
        if not isinstance(data, dict):
            raise ConfigurationError(f"provider table {str(path)!r}: must be a JSON object")
        return cls(data, f"provider table {str(path)!r}")

    def read(
        self, headers: Mapping[str, str], now: float | None = None, body: object = None
    ) -> Readings:
        """What an answer says of limits.

        headers: by lower-case name. now: seconds since the epoch. body: an error's, as JSON was
        read; whatever it holds, nothing is raised for it.
        """
        now = time() if now is None else now
        found = dict(headers)
        if self._format.body_limits and body is not None:
            root = root_of(body)
            for place, limit in enumerate(self._format.body_limits):
                found.update(stated_by(root, limit, place))
        return self._stated(now).read(found, now)

    def classify(
        self, status: int | None, headers: Mapping[str, str], body: object = None
    ) -> str | None:
        """Of what class an error is; None where the table does not say."""
        root = root_of(body)
        for rule in self._format.errors:
            if (not rule.statuses or status in rule.statuses) and _holds(rule, headers, root):
                return rule.kind
        return None

    def wait(self, body: object, now: float | None = None) -> float | None:
        """Seconds that an error's body asks to wait; None where it does not ask.

        now: when it was written, by the server's clock, in seconds since the epoch.
        """
        return self._waits(body, now)[0]

    def _waits(self, body: object, now: float | None = None) -> tuple[float | None, int]:
        """The same, and how many that it tells cannot be read."""
        root = root_of(body)
        now = time() if now is None else now
        waits = [wait_in(root, each, now) for each in self._format.waits]
        told = max((each for each, _ in waits if each is not None), default=None)
        return told, sum(odd for _, odd in waits)

    def credit_left(self, body: object) -> float | None:
        """The money that a key has left, in the provider's currency, by what credit_path answers.

        body: as JSON was read. None: it does not say, or there is no bound.
        """
        credit = self._format.credit
        found = [] if credit is None else values_at(body, credit.left)
        left = found[0] if found else None
        if isinstance(left, bool) or not isinstance(left, (int, float)):
            return None
        # An integer of JSON may be longer than any float.
        return float(left) if abs(left) <= 2**53 else None

    def bucket_for(self, model: str) -> str:
        """The bucket that counts a model: its own, where the table names no other."""
        for pattern, bucket in self._format.buckets:
            if fnmatchcase(model, pattern):
                return bucket
        return model

    def reserves(self, resource: str) -> str | None:
        """How a request's cost in a resource is estimated; None where the table does not say."""
        return self._format.reserve.get(resource)

    def is_for(self, host: str | None) -> bool:
        """Whether it is for base URLs with this host."""
        if host is None:
            return False
        return any(
            host.endswith(each[1:]) if each.startswith("*") else host == each for each in self.hosts
        )

    def _stated(self, now: float) -> StatedLimits:
        """Days that begin at a zone's midnight begin at another one where its clocks change."""
        limits = self._format.body_limits
        anchors = tuple(_midnight(limit.zone, now) if limit.zone else None for limit in limits)
        known = self._by_anchors.get(anchors)
        if known is None:
            stated = list(self._format.stated)
            first = len(stated) - len(limits)
            for place, (limit, anchor) in enumerate(zip(limits, anchors, strict=True), first):
                if anchor is not None:
                    stated[place] = {**stated[place], "shape": "fixed", "anchor": anchor}
                elif limit.zone:
                    # Unknown when it begins: no day holds more than the limit.
                    stated[place] = {**stated[place], "shape": "window"}
            known = StatedLimits(stated, self._format.policies)
            self._by_anchors[anchors] = known
        return known

    def __repr__(self) -> str:
        return f"<headway.providers.ProviderTable {self.name}>"


def _holds(rule: ErrorRule, headers: Mapping[str, str], root: object) -> bool:
    if rule.header:
        text = headers.get(rule.header)
        if text is None or not rule.holds_for(text):
            return False
    if rule.at is None:
        return True
    if not rule.texts and not rule.like:
        return bool(values_at(root, rule.at))
    return any(rule.holds_for(text) for text in texts_at(root, rule.at))


def _midnight(zone: str, now: float) -> int | None:
    """When the zone's days begin at present, in seconds since midnight of UTC; None: not known."""
    try:
        at = datetime.fromtimestamp(now, ZoneInfo(zone))
    except (KeyError, ValueError, OSError, OverflowError):  # there may be no data on zones here
        return None
    offset = at.utcoffset() or timedelta()
    return round(-offset.total_seconds()) % _DAY


@cache
def provider_tables() -> Mapping[str, ProviderTable]:
    """Those that come with headway, by name."""
    found = {}
    for file in (resources.files("headway.providers") / "data").iterdir():
        if file.name.endswith(".json"):
            table = ProviderTable(json.loads(file.read_text(encoding="utf-8")), file.name)
            found[table.name] = table
    return found


def table_named(provider: ProviderTable | str) -> ProviderTable:
    """A table, or the one of that name that comes with headway; else ConfigurationError."""
    if isinstance(provider, ProviderTable):
        return provider
    if not isinstance(provider, str):
        raise ConfigurationError(
            f"provider of type {type(provider).__name__}: must be a name or a ProviderTable"
        )
    found = provider_tables().get(provider)
    if found is None:
        known = ", ".join(sorted(provider_tables()))
        raise ConfigurationError(
            f"provider {provider!r}: must be one of {known}, or a ProviderTable"
        )
    return found


def table_for(base_url: object) -> ProviderTable:
    """The table of the API at this base URL, a str or httpx's URL; `generic` for any other."""
    try:
        host = urlsplit(base_url if isinstance(base_url, str) else str(base_url)).hostname
    except ValueError:
        host = None
    for table in provider_tables().values():
        if table.is_for(host):
            return table
    return provider_tables()["generic"]
