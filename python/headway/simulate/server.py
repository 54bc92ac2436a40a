"""A simulated provider on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, final

from headway.simulate.behaviour import Behaviour
from headway.simulate.connections import Connections
from headway.simulate.http import Connection
from headway.simulate.provider import Provider
from headway.simulate.rules import Rule
from headway.simulate.timetable import Change

BACKLOG = 8192
"""Connections that may wait to be accepted; the operating system may allow fewer."""


@final
class SimulatedProvider:
    """A provider with limits that it enforces, listening while entered.

    Example:

        async with SimulatedProvider([Rule("requests", 500, 60.0, "window")]) as provider:
            ...  # requests to provider.url + "/v1/chat/completions"
            print(provider.stats()["refused"])

    by_model: the rules of models that are counted each on its own. changes: of the other rules;
    their time runs from the first start. Port 0 takes any free port. Leaving closes every
    connection, answered or not.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        behaviour: Behaviour | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        parse_limit: Callable[[str], Rule] | None = None,
        by_model: Mapping[str, Iterable[Rule]] | None = None,
        changes: Iterable[Change] = (),
    ) -> None:
        behaviour = behaviour or Behaviour()
        self._provider = Provider(rules, behaviour, parse_limit, by_model, changes)
        self._host = host
        self._port = port
        self._connections = Connections()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a path: `http://127.0.0.1:PORT`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def stats(self, decisions: bool = False) -> dict[str, Any]:
        """What `GET /_stats` answers; `headway.simulate.tally.Tally` says what it means."""
        return self._provider.stats(decisions)

    def set_rules(self, rules: Iterable[Rule]) -> dict[str, Any]:
        """Enforces `rules` from now on; the statistics of what was before, which end here."""
        return self._provider.set_rules(rules)

    async def start(self) -> None:
        """Listens; OSError if it cannot."""
        if self._server is not None:
            raise RuntimeError(f"this provider is already listening on {self.url}")
        connections = self._connections = Connections()
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._provider, connections),
            self._host,
            self._port,
            backlog=BACKLOG,
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self._provider.begin()

    async def stop(self) -> None:
        """Stops listening and closes every connection; does nothing if it is not listening."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self._connections.close()
        await server.wait_closed()

    async def __aenter__(self) -> SimulatedProvider:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
