"""Providers as data: where an API's answers state its limits, one JSON file for each.

A file has `name`, `version`, `as_of` (when it was last compared with its sources), `sources`,
`hosts` (of base URLs that it is for), `notes`, `policies` (whether the IETF's RateLimit fields are
read) and `limits`. Each of these has `resource`, the names of the headers `limit`, `remaining` and
`reset`, and what is documented of it: `reset_form` ("duration", "ms", "epoch", "epoch_ms", "date",
or "any", which goes by the size), `period` (seconds), `shape`, and `rounding`, by which what
remains may be off. What is not documented is left out, and found out from the answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from time import time
from typing import Any, final
from urllib.parse import urlsplit

from headway._core import Readings, StatedLimits
from headway.errors import ConfigurationError

_KNOWN = ("name", "version", "as_of", "sources", "hosts", "notes", "policies", "limits")


@final
class ProviderTable:
    """One API's limits as its headers state them.

    data: as a file holds it. ConfigurationError names what is wrong in it. Immutable.
    """

    def __init__(self, data: Mapping[str, Any], origin: str = "provider table") -> None:
        unknown = [name for name in data if name not in _KNOWN]
        if unknown:
            raise ConfigurationError(f"{origin}: there is no {unknown[0]!r} in one")
        name, limits = data.get("name"), data.get("limits")
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"{origin}: name {name!r}: must be a str")
        if not isinstance(limits, list) or not all(isinstance(each, dict) for each in limits):
            raise ConfigurationError(f"{origin}: limits {limits!r}: must be a list of objects")
        hosts = data.get("hosts", [])
        if not isinstance(hosts, list) or not all(isinstance(each, str) for each in hosts):
            raise ConfigurationError(f"{origin}: hosts {hosts!r}: must be a list of str")
        self.name = name
        self.hosts: tuple[str, ...] = tuple(hosts)
        try:
            self._stated = StatedLimits(limits, bool(data.get("policies", False)))
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigurationError(f"{origin}: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> ProviderTable:
        """From a file of the user's own."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"provider table {str(path)!r}: {error}") from None
        if not isinstance(data, dict):
            raise ConfigurationError(f"provider table {str(path)!r}: must be a JSON object")
        return cls(data, f"provider table {str(path)!r}")

    def read(self, headers: Mapping[str, str], now: float | None = None) -> Readings:
        """What these headers, by lower-case name, say. now: seconds since the epoch."""
        return self._stated.read(dict(headers), time() if now is None else now)

    def __repr__(self) -> str:
        return f"<headway.providers.ProviderTable {self.name}>"


@cache
def provider_tables() -> Mapping[str, ProviderTable]:
    """Those that come with headway, by name."""
    found = {}
    for file in (resources.files("headway.providers") / "data").iterdir():
        if file.name.endswith(".json"):
            table = ProviderTable(json.loads(file.read_text(encoding="utf-8")), file.name)
            found[table.name] = table
    return found


def table_for(base_url: object) -> ProviderTable:
    """The table of the API at this base URL, a str or httpx's URL; `generic` for any other."""
    try:
        host = urlsplit(base_url if isinstance(base_url, str) else str(base_url)).hostname
    except ValueError:
        host = None
    for table in provider_tables().values():
        if host in table.hosts:
            return table
    return provider_tables()["generic"]
