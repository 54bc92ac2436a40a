"""BaseScheduler: what every scheduler has in common, whatever it schedules by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from headway.types import RequestMetadata

DRAIN_TIMEOUT = 30.0
"""Seconds that `stop` lets queued and running work go on."""


class BaseScheduler(ABC):
    """The life of a scheduler: start, submit, stop, any number of times.

    `async with scheduler:` starts it and stops it at the end, with a drain_timeout of 0 where the
    body has raised; `with scheduler:` does so for threads.
    """

    @abstractmethod
    async def start(self) -> None:
        """Makes it take requests. Does nothing where it does already."""

    @abstractmethod
    async def stop(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """Takes nothing new, lets queued and running work go on for that many seconds, ends it."""

    @abstractmethod
    def start_sync(self) -> None:
        """As `start`, from a thread that has no running event loop."""

    @abstractmethod
    def stop_sync(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """As `stop`, from a thread that has no running event loop."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether it takes requests."""

    @abstractmethod
    def submit_request(
        self, metadata: RequestMetadata, request_func: Callable[[], Awaitable[Any]]
    ) -> Awaitable[Any]:
        """Waits for its turn, awaits `request_func()`, and gives what that gave."""

    @abstractmethod
    def get_metrics(self) -> dict[str, Any]:
        """What has happened so far, by name."""

    async def __aenter__(self) -> Any:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(DRAIN_TIMEOUT if error is None else 0.0)

    def __enter__(self) -> Any:
        self.start_sync()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop_sync(DRAIN_TIMEOUT if error is None else 0.0)
