"""Transports of httpx and httpx2 that send each request when its provider's limits let it."""

from __future__ import annotations

import math
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar, final
from urllib.request import getproxies, proxy_bypass

from headway import Limiter, RequestMetadata, Reservation, Scheduler
from headway._bodies import is_unread, package_of, settle_with_body
from headway._core import WithReservation
from headway.errors import ConfigurationError
from headway.providers.table import ProviderTable, provider_tables, table_for
from headway.scheduler.answers import TABLE
from headway.transports._httpx import send_untold, send_untold_sync
from headway.transports._network import NetworkDelays
from headway.transports._requests import Asked, Outputs, asked_of_host, read_request

_REFUSED = 429
_Wrapped = TypeVar("_Wrapped")


@dataclass(frozen=True, slots=True)
class _Wishes:
    client_id: str | None = None
    priority: int = 0
    deadline: float | None = None


_NONE = _Wishes()
_wishes: ContextVar[_Wishes] = ContextVar("headway_wishes", default=_NONE)


def asking(
    *, client_id: str | None = None, priority: int = 0, deadline: float | None = None
) -> AbstractContextManager[None]:
    """For requests that are made inside of the `with`: their account, priority and deadline.

    As in RequestMetadata. It holds for this task or thread, and for tasks that are begun in it.
    """

    @contextmanager
    def within() -> Any:
        before = _wishes.set(_Wishes(client_id, priority, deadline))
        try:
            yield
        finally:
            _wishes.reset(before)

    return within()


class _Governor(Generic[_Wrapped]):
    """What the two transports have in common: from a request to what is asked for it."""

    def __init__(
        self,
        scheduler: Scheduler | Limiter,
        wrapped: _Wrapped | None = None,
        provider: ProviderTable | str | None = None,
    ) -> None:
        if not isinstance(scheduler, (Scheduler, Limiter)):
            raise ConfigurationError(
                f"scheduler of type {type(scheduler).__name__}: must be a Scheduler or a Limiter"
            )
        if wrapped is not None and not callable(getattr(wrapped, self._verb, None)):
            raise ConfigurationError(
                f"wrapped of type {type(wrapped).__name__}: must be a transport with {self._verb}()"
            )
        if isinstance(provider, str):
            if provider not in provider_tables():
                known = ", ".join(sorted(provider_tables()))
                raise ConfigurationError(
                    f"provider {provider!r}: must be one of {known}, or a ProviderTable"
                )
            provider = provider_tables()[provider]
        if not isinstance(provider, (ProviderTable, type(None))):
            raise ConfigurationError(
                f"provider of type {type(provider).__name__}: must be a name or a ProviderTable"
            )
        self._scheduler = scheduler if isinstance(scheduler, Scheduler) else None
        self._limiter = scheduler if isinstance(scheduler, Limiter) else None
        self._wrapped = wrapped
        self._provider = provider
        self._delays = NetworkDelays()
        self._outputs = Outputs()
        self._tables: dict[str, ProviderTable] = {}
        self._lock = threading.Lock()
        self._started = False
        if self._scheduler is not None:
            self._scheduler._hears_transport = True

    _verb = ""

    def _table(self, request: Any) -> ProviderTable:
        if self._provider is not None:
            return self._provider
        host: str = request.url.host
        table = self._tables.get(host)
        if table is None:
            table = table_for(f"https://{host}")
            if len(self._tables) < 1000:
                self._tables[host] = table
        return table

    def _asked(self, request: Any, content: bytes) -> Asked | None:
        """What it asks; None where nobody counts it."""
        asked = read_request(request.method, request.url.path, content)
        if asked is None and self._table(request).name == "generic":
            return asked_of_host(request.method, request.url.host)
        return asked

    def _cost(self, asked: Asked) -> dict[str, int]:
        return {
            "requests": 1,
            "tokens": asked.counted,
            "input_tokens": asked.text,
            "output_tokens": self._outputs.expected(asked) if asked.text else 0,
        }

    def _metadata(self, asked: Asked) -> RequestMetadata:
        wishes = _wishes.get()
        return RequestMetadata(
            request_id=uuid.uuid4().hex,
            model_id=asked.model,
            resource_type=asked.kind,
            cost=self._cost(asked),
            priority=wishes.priority,
            client_id=wishes.client_id,
            deadline=wishes.deadline,
            timeout=math.inf,  # the client has its own, which do not run while it waits
        )

    def _amounts(self, asked: Asked, resources: tuple[str, ...]) -> tuple[int, ...]:
        cost = {**self._cost(asked), "concurrency": 1}
        return tuple(cost.get(name, 0) for name in resources)

    def _listen(self, response: Any, asked: Asked) -> None:
        """Of a body that settles by itself, how long the answer was is asked as well."""
        if is_unread(response):
            settle_with_body(
                response,
                lambda used: self._outputs.note(asked.model, used.get("output_tokens")),
                {},
            )

    def _settle_with(self, response: Any, reservation: Reservation, asked: Asked) -> None:
        """A limiter's reservation ends with the body."""
        assert self._limiter is not None
        reservation.answered(refused=response.status_code == _REFUSED)

        def settle(used: dict[str, int]) -> None:
            self._outputs.note(asked.model, used.get("output_tokens"))
            reservation.settle_used(used)

        if is_unread(response):
            resources = self._limiter.resources
            reserved = dict(zip(resources, self._amounts(asked, resources), strict=True))
            settle_with_body(response, settle, reserved)
        else:
            settle({})

    def _done(self, response: Any) -> Any:
        """What the scheduler has judged and given up, the client need not try again itself."""
        if self._scheduler is not None and response.status_code >= 400:
            response.headers["x-should-retry"] = "false"
        return response


@final
class AsyncTransport(_Governor[Any]):
    """Sends each request of an `AsyncClient` when the limits of its provider let it.

    For httpx and httpx2, and so for the SDKs that are built on them. Which model it asks, and how
    much, is read from the request; when it was sent, when it was answered, and what the answer says
    of limits and of its use are told to the scheduler, which tries again what may succeed. The body
    is passed on as it comes; its end ends the reservation, and with it its place among
    `max_concurrent_executions`.

    scheduler: a Scheduler, which is started with the first request if nobody has, or a Limiter,
    which neither learns nor tries again. wrapped: what sends; None for a transport of the client's
    package, with as many connections as requests need, through the environment's proxy if it names
    one. provider: by whose table headers are read, a name or a ProviderTable; None goes by the
    host.

    Requests that ask no model (GET, or without a `model`) are not counted where the host is a
    known provider's; to any other host, all are, as one bucket of the host's name. Raises what
    `submit_request` raises. May be used from several event loops if `wrapped` may.
    """

    _verb = "handle_async_request"

    async def handle_async_request(self, request: Any) -> Any:
        """What a client calls."""
        send = self._way(request).handle_async_request
        asked = self._asked(request, await request.aread())
        if asked is None:
            return await send(request)
        if self._limiter is not None:
            resources = self._limiter.resources
            reservation = await self._limiter.acquire(*self._amounts(asked, resources))
            response = await send_untold(send, request, reservation, self._delays)
            self._settle_with(response, reservation, asked)
            return response
        scheduler = self._scheduler
        assert scheduler is not None
        if not self._started:
            if not scheduler.is_running():
                await scheduler.start()
            self._started = True
        table = self._table(request)

        async def attempt(reservation: Reservation) -> Any:
            response = await send_untold(send, request, reservation, self._delays)
            response.extensions[TABLE] = table
            if response.status_code >= 400:
                await response.aread()  # what it says decides whether it is tried again
            else:
                self._listen(response, asked)
            return response

        return self._done(
            await scheduler.submit_request(self._metadata(asked), WithReservation(attempt))
        )

    def _way(self, request: Any) -> Any:
        if self._wrapped is None:
            self._wrapped = _default_transport(request, "AsyncHTTPTransport")
        return self._wrapped

    async def aclose(self) -> None:
        """Closes what it wraps; the scheduler goes on."""
        if self._wrapped is not None:
            await self._wrapped.aclose()

    async def __aenter__(self) -> AsyncTransport:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.aclose()


@final
class Transport(_Governor[Any]):
    """The same for a `Client`, in threads: see AsyncTransport.

    Not for an event loop's own thread, which waiting would block: RuntimeError. Thread-safe if
    `wrapped` is, as httpx's are.
    """

    _verb = "handle_request"

    def handle_request(self, request: Any) -> Any:
        """What a client calls."""
        send = self._way(request).handle_request
        asked = self._asked(request, request.read())
        if asked is None:
            return send(request)
        if self._limiter is not None:
            resources = self._limiter.resources
            reservation = self._limiter.acquire_sync(*self._amounts(asked, resources))
            response = send_untold_sync(send, request, reservation, self._delays)
            self._settle_with(response, reservation, asked)
            return response
        scheduler = self._scheduler
        assert scheduler is not None
        if not self._started:
            with self._lock:
                if not scheduler.is_running():
                    scheduler.start_sync()
                self._started = True
        table = self._table(request)

        def attempt(reservation: Reservation) -> Any:
            response = send_untold_sync(send, request, reservation, self._delays)
            response.extensions[TABLE] = table
            if response.status_code >= 400:
                response.read()
            else:
                self._listen(response, asked)
            return response

        return self._done(scheduler.submit_sync(self._metadata(asked), WithReservation(attempt)))

    def _way(self, request: Any) -> Any:
        if self._wrapped is None:
            with self._lock:
                if self._wrapped is None:
                    self._wrapped = _default_transport(request, "HTTPTransport")
        return self._wrapped

    def close(self) -> None:
        """Closes what it wraps; the scheduler goes on."""
        if self._wrapped is not None:
            self._wrapped.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()


def _default_transport(request: Any, kind: str) -> Any:
    """As many connections as requests need, of the request's own package."""
    package: Any = sys.modules[package_of(request) or "httpx"]
    host: str = request.url.host
    proxies: Mapping[str, str] = {} if proxy_bypass(host) else getproxies()
    proxy = proxies.get(request.url.scheme) or proxies.get("all")
    if proxy is None and package.__name__ == "httpx" and kind == "AsyncHTTPTransport":
        from headway.transports._connections import Connections

        return Connections()
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    limits = package.Limits(max_connections=None, max_keepalive_connections=None)
    make: Callable[..., Any] = getattr(package, kind)
    return make(proxy=proxy, limits=limits)
