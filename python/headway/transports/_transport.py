"""Transports of httpx and httpx2 that send each request when its provider's limits let it."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from headway import GENERIC, Limiter, RequestMetadata, Reservation, Scheduler
from headway._bodies import decoder, is_unread, package_of, settle_with_body
from headway._core import CalledOff, WithReservation
from headway._log import fields
from headway.errors import CapacityExceededError, ConfigurationError, RateLimiterError
from headway.providers.table import ProviderTable, table_for, table_named
from headway.scheduler.answers import FINAL, TABLE, USED
from headway.scheduler.chores import running_loop
from headway.scheduler.failures import REFUSED, RETRIED
from headway.scheduler.streams import at_least
from headway.scheduler.verdicts import USED_UP
from headway.scheduler.watching import WatchedCall, check_watching
from headway.transports._errors import let_through
from headway.transports._httpx import send_untold, send_untold_sync
from headway.transports._limiter import OPEN_BODIES, hold_up
from headway.transports._network import NetworkDelays
from headway.transports._requests import (
    CLAMPS,
    HOLD,
    LARGEST,
    READ_ONLY,
    Asked,
    Outputs,
    asked_of_host,
    clamp,
    cost_of,
    read_request,
)
from headway.transports._ways import make_way, proxy_for

_logger = logging.getLogger("headway.scheduler")

_IDEMPOTENT = READ_ONLY | {"PUT"}

# Of OpenAI's and Anthropic's SDKs, which are generated alike: 0 at first, one more for each retry.
_TRIES = "x-stainless-retry-count"
_MOST_DIGITS = 4


@dataclass(frozen=True, slots=True)
class _Wishes:
    client_id: str | None = None
    priority: int = 0
    deadline: float | None = None


_NONE = _Wishes()
_wishes: ContextVar[_Wishes] = ContextVar("headway_wishes", default=_NONE)


@contextmanager
def asking(
    *, client_id: str | None = None, priority: int = 0, deadline: float | None = None
) -> Iterator[None]:
    """For requests that are made inside of the `with`: their account, priority and deadline.

    As in RequestMetadata. It holds for this task or thread, and for tasks that are begun in it.
    """
    before = _wishes.set(_Wishes(client_id, priority, deadline))
    try:
        yield
    finally:
        _wishes.reset(before)


@dataclass
class _Metadata(RequestMetadata):
    """Of a request that a transport sends. table: of its provider, which may share buckets.

    _tried: how often the client has sent it before, by itself.
    """

    table: ProviderTable | None = None
    _tried: int = 0


class _Governor:
    """What the two transports have in common: from a request to what is asked for it."""

    def __init__(
        self,
        scheduler: Scheduler | Limiter,
        wrapped: Any = None,
        provider: ProviderTable | str | None = None,
        *,
        observe_only: bool = False,
    ) -> None:
        if not isinstance(scheduler, (Scheduler, Limiter)):
            raise ConfigurationError(
                f"scheduler of type {type(scheduler).__name__}: must be a Scheduler or a Limiter"
            )
        if wrapped is not None and not callable(getattr(wrapped, self._verb, None)):
            raise ConfigurationError(
                f"wrapped of type {type(wrapped).__name__}: must be a transport with {self._verb}()"
            )
        if observe_only:
            check_watching(scheduler)
        self._observes = observe_only
        self._scheduler = scheduler if isinstance(scheduler, Scheduler) else None
        self._limiter = scheduler if isinstance(scheduler, Limiter) else None
        self._wrapped = wrapped
        self._ways: dict[str | None, Any] = {}  # by proxy, where nothing is wrapped
        self._provider = None if provider is None else table_named(provider)
        self._delays = NetworkDelays()
        self._outputs = Outputs()
        self._tables: dict[str, ProviderTable] = {}
        self._lock = threading.Lock()
        self._started_in = 0  # the process in which it has seen to that the scheduler runs
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
            return asked_of_host(request.url.host)
        return asked

    def _metadata(
        self, scheduler: Scheduler, asked: Asked, table: ProviderTable, tried: int = 0
    ) -> _Metadata:
        wishes = _wishes.get()
        cost = cost_of(asked, table, self._outputs)
        metadata = _Metadata(
            request_id=uuid.uuid4().hex,
            model_id=asked.model,
            resource_type=asked.kind,
            cost=cost,
            priority=wishes.priority,
            client_id=wishes.client_id,
            deadline=wishes.deadline,
            timeout=math.inf,  # the client has its own, which do not run while it waits
            table=table,
            _tried=tried,
        )
        bucket = scheduler._find.known(metadata)
        if bucket is not None:
            clamp(cost, bucket.limits())
        return metadata

    def _amounts(self, limiter: Limiter, asked: Asked, table: ProviderTable) -> tuple[int, ...]:
        cost = {**cost_of(asked, table, self._outputs), "concurrency": 1}
        clamp(cost, limiter.limits)
        return tuple(cost.get(name, 0) for name in limiter.resources)

    def _prepare(self, response: Any, request: Any, asked: Asked, table: ProviderTable) -> None:
        """A response that the scheduler is to judge: what it needs to know of it."""
        response.extensions[TABLE] = table
        response.extensions[USED] = lambda used: self._outputs.note(
            asked.model, used.get("output_tokens")
        )
        # What may have been done must not be done again, but by those who know that it may; and a
        # body that was passed on as it came cannot be sent again.
        harmless = asked.kind != GENERIC or request.method.upper() in _IDEMPOTENT
        harmless = harmless or response.status_code == REFUSED
        if response.status_code >= 400 and not (harmless and hasattr(request, "_content")):
            response.extensions[FINAL] = True

    def _settle_with(
        self,
        response: Any,
        reservation: Reservation,
        asked: Asked,
        reserved: Mapping[str, int],
        kept: frozenset[str],
    ) -> None:
        """A limiter's reservation ends with the body."""
        refused = response.status_code == REFUSED
        reservation.answered(refused=refused)
        if refused and self._limiter is not None:
            hold_up(self._limiter, response.headers)

        def settle(used: dict[str, int]) -> None:
            self._outputs.note(asked.model, used.get("output_tokens"))
            reservation.settle_used(at_least(used, reserved, kept))

        if is_unread(response):
            OPEN_BODIES.watch(settle_with_body(response, settle, reserved))
        else:
            settle({})

    def _default_way(self, request: Any, kind: str) -> Any:
        """With as many connections as requests need; of the request's package, one for a proxy."""
        proxy = proxy_for(request.url.scheme, request.url.host)
        way = self._ways.get(proxy)
        if way is None:
            package = sys.modules[package_of(request) or "httpx"]
            way = self._ways[proxy] = make_way(package, kind, proxy)
        return way

    def _leave_ways(self) -> list[Any]:
        """All that is to be closed."""
        ways = [*self._ways.values()]
        self._ways.clear()
        return ways if self._wrapped is None else [*ways, self._wrapped]

    def _starts(self, scheduler: Scheduler) -> bool:
        """Whether it has to be started: with the first request, and again in a forked child."""
        if self._started_in != os.getpid() and scheduler.is_running():
            self._has_started()
        return self._started_in != os.getpid()

    def _has_started(self) -> None:
        begins = self._started_in != os.getpid()  # several may have waited for it
        self._started_in = os.getpid()
        if begins and self._observes:
            _logger.warning(
                "observes only: requests go out at once, and nothing is refused or tried again "
                "here",
                extra=fields("observes_only"),
            )

    def _watch(self, scheduler: Scheduler, asked: Asked, table: ProviderTable) -> WatchedCall:
        return WatchedCall(scheduler, self._metadata(scheduler, asked, table))


def _is_read(request: Any) -> bool:
    """Whether its body is looked at. It is kept in memory then, and may be sent again."""
    if request.method.upper() in READ_ONLY:
        return False
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        size = int(request.headers.get("content-length", "0"))
    except ValueError:
        size = 0
    readable = kind.endswith("json") or kind in ("", "multipart/form-data")
    chunked = "transfer-encoding" in request.headers and not kind.endswith("json")
    return readable and not chunked and size <= LARGEST


class _Unsaid(Exception):
    """What sending has raised: the client's own affair, which the scheduler does not retry."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.error = error


def _failure_of(response: Any, raw: bytes) -> Any:
    """The same failure, with its body still to come; what it says can be looked at already."""
    package: Any = sys.modules[package_of(response) or "httpx"]
    undo = decoder(response.headers.get("content-encoding", ""))
    fresh = package.Response(
        response.status_code,
        headers=response.headers,
        stream=package.ByteStream(raw),
        extensions=response.extensions,
    )
    try:
        fresh._body = raw if undo is None else undo(raw)
    except Exception:  # whoever reads it will be told
        fresh._body = b""
    return fresh


def _tries_before(request: Any, scheduler: Scheduler) -> int:
    """How often the client has sent this before, as an SDK says after a broken connection.

    Its retries are of the same budget as the scheduler's. Where that is used up, nothing is sent,
    and it is told that there is no connection, as it was before.
    """
    said = request.headers.get(_TRIES, "")
    tried = int(said) if said.isascii() and said.isdigit() and len(said) <= _MOST_DIGITS else 0
    if tried and not scheduler._verdicts.may_try_again():
        package: Any = sys.modules[package_of(request) or "httpx"]
        raise package.ConnectError(USED_UP, request=request)
    return tried


def _said_last(response: Any) -> Any:
    """What the scheduler has tried again and given up, the client need not try again itself."""
    if response.status_code in RETRIED and not response.extensions.get(FINAL):
        response.headers.setdefault("x-should-retry", "false")
    return response


if TYPE_CHECKING:
    import httpx
    import httpx2

    class _AsyncBase(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]
        pass

    class _Base(httpx.BaseTransport, httpx2.BaseTransport):  # type: ignore[misc]
        pass

else:
    _AsyncBase = _Base = object


@final
class AsyncTransport(_Governor, _AsyncBase):
    """Sends each request of an `AsyncClient` when the limits of its provider let it.

    For httpx and httpx2, and so for the SDKs that are built on them. Which model it asks, and how
    much, is read from the request; when it was sent, when it was answered, and what the answer says
    of limits and of its use are told to the scheduler, which tries again what may succeed. The body
    is passed on as it comes; its end ends the reservation, and with it its place among
    `max_concurrent_executions`.

    scheduler: a Scheduler, which is started with the first request if nobody has, or a Limiter,
    which neither learns nor tries again, but is held up for as long as a refusal's headers ask; a
    body that nobody reads for 300 s gives its place back. wrapped: what sends; None for a transport
    of the client's package, with as many connections as requests need, through the environment's
    proxy if it names one. provider: by whose table headers are read, a name or a ProviderTable;
    None goes by the host.

    Requests that ask no model (GET, or without a `model`) are not counted where the host is a
    known provider's; to any other host, all are, as one bucket of the host's name. Raises what
    `submit_request` raises. May be used from several event loops if `wrapped` may.
    """

    _verb = "handle_async_request"

    def handle_request(self, _: Any) -> Any:
        """Refused: a client that is not async needs a Transport."""
        raise TypeError("AsyncTransport is for an async client: this one needs a Transport")

    async def handle_async_request(self, request: Any) -> Any:
        """What a client calls."""
        try:
            return await self._handle(request)
        except RateLimiterError as error:
            let_through(error, request)
            raise

    async def _handle(self, request: Any) -> Any:
        send = self._way(request).handle_async_request
        asked = self._asked(request, await request.aread() if _is_read(request) else b"")
        if asked is None:
            return await send(request)
        table = self._table(request)
        if self._limiter is not None:
            amounts = self._amounts(self._limiter, asked, table)
            while True:
                reservation = await self._limiter.acquire(*amounts)
                try:
                    response = await send_untold(
                        send, request, reservation, self._delays, may_be_called_off=True
                    )
                    break
                except CalledOff:
                    pass  # it waits once more
            reserved = dict(zip(self._limiter.resources, amounts, strict=True))
            self._settle_with(response, reservation, asked, reserved, table.kept)
            return response
        scheduler = self._scheduler
        assert scheduler is not None
        if self._starts(scheduler):
            await scheduler.start()
            self._has_started()
        if self._observes:
            return await self._send_watched(send, request, asked, scheduler, table)
        tried = _tries_before(request, scheduler)

        async def attempt(reservation: Reservation) -> Any:
            reservation._let_others_wait(HOLD)
            try:
                response = await send_untold(
                    send, request, reservation, self._delays, may_be_called_off=True
                )
                self._prepare(response, request, asked, table)
                if response.status_code < 400:
                    return response
                # What it says decides whether it is tried again.
                try:
                    raw = b"".join([part async for part in response.stream])
                finally:
                    await response.aclose()
            except CalledOff:
                raise
            except Exception as error:
                raise _Unsaid(error) from error
            return _failure_of(response, raw)

        function = WithReservation(attempt)
        try:
            for tries in range(CLAMPS):
                metadata = self._metadata(scheduler, asked, table, tried)
                try:
                    return _said_last(await scheduler.submit_request(metadata, function))
                except CapacityExceededError:
                    # A limit was learnt while it waited.
                    if tries + 1 == CLAMPS:
                        raise
        except _Unsaid as unsaid:
            raise unsaid.error from unsaid.error.__cause__
        raise AssertionError("unreachable")

    async def _send_watched(
        self, send: Any, request: Any, asked: Asked, scheduler: Scheduler, table: ProviderTable
    ) -> Any:
        watched = self._watch(scheduler, asked, table)
        try:
            response = await send_untold(
                send, request, watched.reservation, self._delays, waits_its_turn=False
            )
            self._prepare(response, request, asked, table)
            if response.status_code == REFUSED:  # its body says why
                try:
                    raw = b"".join([part async for part in response.stream])
                finally:
                    await response.aclose()
                response = _failure_of(response, raw)
        except BaseException as error:
            watched.failed(error)
            raise
        return watched.answered(response)

    def _way(self, request: Any) -> Any:
        return self._wrapped or self._default_way(request, "AsyncHTTPTransport")

    async def aclose(self) -> None:
        """Closes what it wraps; the scheduler goes on."""
        for way in self._leave_ways():
            await way.aclose()

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
class Transport(_Governor, _Base):
    """The same for a `Client`, in threads: see AsyncTransport.

    Not for an event loop's own thread, which waiting would block: RuntimeError. Thread-safe if
    `wrapped` is, as httpx's are.
    """

    _verb = "handle_request"

    async def handle_async_request(self, _: Any) -> Any:
        """Refused: an async client needs an AsyncTransport."""
        raise TypeError(
            "Transport is for a client that is not async: this one needs AsyncTransport"
        )

    def handle_request(self, request: Any) -> Any:
        """What a client calls."""
        try:
            return self._handle(request)
        except RateLimiterError as error:
            let_through(error, request)
            raise

    def _handle(self, request: Any) -> Any:
        send = self._way(request).handle_request
        asked = self._asked(request, request.read() if _is_read(request) else b"")
        if asked is None:
            return send(request)
        if not self._observes and running_loop() is not None:
            raise RuntimeError(
                "a client that is not async would block its event loop while it waits: use the "
                "async one (AsyncClient, AsyncOpenAI), or call it in a thread (asyncio.to_thread)"
            )
        table = self._table(request)
        if self._limiter is not None:
            amounts = self._amounts(self._limiter, asked, table)
            reservation = self._limiter.acquire_sync(*amounts)
            response = send_untold_sync(send, request, reservation, self._delays)
            reserved = dict(zip(self._limiter.resources, amounts, strict=True))
            self._settle_with(response, reservation, asked, reserved, table.kept)
            return response
        scheduler = self._scheduler
        assert scheduler is not None
        if self._started_in != os.getpid():
            with self._lock:
                if self._starts(scheduler):
                    scheduler.start_sync()
                    self._has_started()
        if self._observes:
            return self._send_watched(send, request, asked, scheduler, table)
        tried = _tries_before(request, scheduler)

        def attempt(reservation: Reservation) -> Any:
            reservation._let_others_wait(HOLD)
            try:
                response = send_untold_sync(send, request, reservation, self._delays)
                self._prepare(response, request, asked, table)
                if response.status_code < 400:
                    return response
                try:
                    raw = b"".join(response.stream)
                finally:
                    response.close()
            except Exception as error:
                raise _Unsaid(error) from error
            return _failure_of(response, raw)

        function = WithReservation(attempt)
        try:
            for tries in range(CLAMPS):
                metadata = self._metadata(scheduler, asked, table, tried)
                try:
                    return _said_last(scheduler.submit_sync(metadata, function))
                except CapacityExceededError:
                    if tries + 1 == CLAMPS:
                        raise
        except _Unsaid as unsaid:
            raise unsaid.error from unsaid.error.__cause__
        raise AssertionError("unreachable")

    def _send_watched(
        self, send: Any, request: Any, asked: Asked, scheduler: Scheduler, table: ProviderTable
    ) -> Any:
        watched = self._watch(scheduler, asked, table)
        try:
            response = send_untold_sync(send, request, watched.reservation, self._delays)
            self._prepare(response, request, asked, table)
            if response.status_code == REFUSED:
                try:
                    raw = b"".join(response.stream)
                finally:
                    response.close()
                response = _failure_of(response, raw)
        except BaseException as error:
            watched.failed(error)
            raise
        return watched.answered(response)

    def _way(self, request: Any) -> Any:
        if self._wrapped is not None:
            return self._wrapped
        with self._lock:
            return self._default_way(request, "HTTPTransport")

    def close(self) -> None:
        """Closes what it wraps; the scheduler goes on."""
        for way in self._leave_ways():
            way.close()

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.close()
