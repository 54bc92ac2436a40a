"""The life of a scheduler: started, stopped, started again; by any task, and by any thread."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway._log import fields
from headway.errors import ConfigurationError, ProviderError
from headway.scheduler.answers import look
from headway.scheduler.choice import Choice
from headway.scheduler.chores import Chores, LoopEnded, running_loop
from headway.scheduler.config import SchedulerMode
from headway.scheduler.drain import Drain
from headway.scheduler.turns import Turn

if TYPE_CHECKING:
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")


@final
class Life:
    """Starts and stops one scheduler. One at a time does so; the others wait for it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.chores = Chores()
        self._scheduler = scheduler
        self.choice = Choice(scheduler)
        self._drain = Drain(scheduler)
        self._turn = Turn()
        self._server: _core.MetricsServer | None = None

    async def start(self) -> None:
        """See Scheduler.start."""
        async with self._turn:
            if self._scheduler._runs:
                return
            self.chores.on_this_loop()
            try:
                await self._begin()
            except BaseException:
                self.chores.stop()
                raise

    def start_sync(self) -> None:
        """See Scheduler.start_sync."""
        if running_loop() is not None:
            raise RuntimeError("start_sync() on an event loop would block it: await start()")
        with self._turn:
            if self._scheduler._runs:
                return
            self.chores.on_own_loop()
            try:
                self.chores.send(self._begin).wait()
            except BaseException:
                self.chores.stop()
                raise

    async def stop(self, drain_timeout: float) -> None:
        """See Scheduler.stop."""
        with self._hurry(drain_timeout):
            await self._stop(drain_timeout)

    async def _stop(self, drain_timeout: float) -> None:
        async with self._turn:
            if not self._scheduler._runs:
                return
            self._scheduler._run(False)
            try:
                await self._drain.wait(drain_timeout)
            except GeneratorExit:  # nobody steps this any more: it can await nothing
                self.chores.stop()
                raise
            except BaseException:
                await self._end()
                raise
            await self._end()

    def stop_sync(self, drain_timeout: float) -> None:
        """See Scheduler.stop_sync."""
        if running_loop() is not None:
            raise RuntimeError("stop_sync() on an event loop would block it: await stop()")
        with self._hurry(drain_timeout), self._turn:
            if not self._scheduler._runs:
                return
            self._scheduler._run(False)
            try:
                self._drain.block(drain_timeout)
            finally:
                self._block_for_end()

    def look_again(self) -> None:
        """Something that a stop may wait for has ended. From any thread."""
        self._drain.look_again()

    def adopt_chores(self, own: bool = False) -> None:
        """Where their loop does not run, they go on here: on the running one, or one of theirs."""
        self.chores.adopt(self._begin_chores, own=own)

    def leave_loop(self) -> None:
        """The running loop ends. The chores go on at once where somebody elsewhere waits for them.

        Else whoever comes next sees to it: he finds the loop gone, or is seen here. For a chore
        that ends; one left behind, or stopped, says nothing of where the others are.
        """
        if not self.chores.has_this_task():
            return
        self.chores.leave()
        here = running_loop()
        scheduler = self._scheduler
        waits = scheduler._blocking or any(call.loop is not here for call in scheduler._live())
        # An open stream may be what somebody waits for who comes later.
        if waits or scheduler._streams.any_open():
            self.chores.adopt(self._begin_chores, own=True)

    def _begin_chores(self) -> None:
        """What goes on beside the requests, on the chores' loop."""
        scheduler = self._scheduler
        if scheduler._remote is not None:
            self.chores.start(scheduler._remote.run)
        if scheduler.provider is not None and scheduler.mode is not SchedulerMode.BASIC:
            self.chores.start(scheduler._questions.keep_refreshing)
        if scheduler.scheduling_strategy is not None:
            self.chores.start(self.choice.run)
        if scheduler._streams.watched:
            self.chores.start(scheduler._streams.run)

    def _hurry(self, drain_timeout: Any) -> AbstractContextManager[None]:
        if not isinstance(drain_timeout, (int, float)) or not drain_timeout >= 0:
            raise ConfigurationError(f"drain_timeout {drain_timeout!r}: must be 0 or more seconds")
        return self._drain.hurry(drain_timeout)

    async def _begin(self) -> None:
        scheduler = self._scheduler
        await self._start_backend()
        try:
            await scheduler._on_start()
            if scheduler.provider is not None and scheduler.mode is not SchedulerMode.BASIC:
                good = await scheduler._questions.refresh(force=False)
                if not good and not scheduler.config.enable_graceful_degradation:
                    raise ProviderError(
                        f"discover_limits of provider {scheduler._questions.provider_name()!r} "
                        "failed at start, and enable_graceful_degradation is off"
                    )
            self._serve_metrics()
        except BaseException:
            await self._stop_backend()
            raise
        if scheduler._remote is not None:
            scheduler._remote.open()
        self._begin_chores()
        scheduler._run(True)

    def _serve_metrics(self) -> None:
        config = self._scheduler.config
        if not config.start_prometheus_server or self._server is not None:
            return
        self._server = _core.MetricsServer(config.prometheus_host, config.prometheus_port)
        host, port = config.prometheus_host, self._server.port
        _logger.info(
            "metrics at http://%s:%d/metrics",
            host,
            port,
            extra=fields("metrics_served", host=host, port=port),
        )

    async def _end(self) -> None:
        """Where the provider and the backend live. Whoever is cancelled in it sees it through.

        Cancelled for a second time, he does not.
        """
        cancelled: asyncio.CancelledError | None = None
        try:
            while True:
                errand = self.chores.send(self._end_here)
                while not errand.over.done():
                    try:
                        await errand.until_over()
                    except asyncio.CancelledError as error:
                        if cancelled is not None:
                            raise
                        cancelled = error
                try:
                    errand.over.result()
                    break
                except LoopEnded:  # elsewhere, then
                    continue
        finally:
            self.chores.stop()
        if cancelled is not None:
            raise cancelled

    def _block_for_end(self) -> None:
        """As `_end`, for a thread."""
        try:
            while True:
                try:
                    self.chores.send(self._end_here).wait()
                    break
                except LoopEnded:
                    continue
        finally:
            self.chores.stop()

    async def _end_here(self) -> None:
        scheduler = self._scheduler
        if scheduler._remote is not None:
            await scheduler._remote.close()
        await self._stop_backend()
        self.close_server()
        await scheduler._on_stop()

    def _stores(self) -> list[Any]:
        """What is started: the manager, which starts its own backend; the backend, if another's."""
        manager, backend = self._scheduler.state_manager, self._scheduler.backend
        if manager is None:
            return [backend]
        return [manager] if look(manager, "backend") is backend else [manager, backend]

    async def _start_backend(self) -> None:
        started: list[Any] = []
        try:
            for store in self._stores():
                await store.start()
                started.append(store)
        except BaseException:
            await self._stop_backend(started)
            raise

    async def _stop_backend(self, stores: list[Any] | None = None) -> None:
        for store in reversed(self._stores() if stores is None else stores):
            try:
                await store.stop()
            except Exception as error:  # it has stopped; what it says of it is for the log
                self._scheduler._user_code.note("stop of backend", error)

    def close_server(self) -> None:
        """Its metrics are served no more."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
