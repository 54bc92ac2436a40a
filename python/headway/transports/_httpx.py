"""One governed request of httpx or httpx2: tells its reservation when it was sent and answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, final

from headway import Reservation
from headway._core import CalledOff
from headway.transports._line import Line, line
from headway.transports._network import NetworkDelays, round_trip

if TYPE_CHECKING:
    import httpx

_T = TypeVar("_T")

_TOO_MANY_REQUESTS = 429


async def send(
    call: Callable[[httpx.Request], Awaitable[httpx.Response]],
    request: httpx.Request,
    reservation: Reservation,
    delays: NetworkDelays,
    on_sent: Callable[[], None] | None = None,
) -> httpx.Response:
    """Sends `request` with `call`, for which `reservation` was made; gives the response's head.

    call: a transport's `handle_async_request`, or a client's `send` with `stream=True`. It must not
    send a second request of its own (a redirect, an authentication): that would need a second
    reservation. on_sent: called once, when the last byte has gone out.

    Reading the body and settling the reservation is left to the caller. Whatever `call` raises is
    raised, with the reservation ended: given back where nothing was sent, else kept as estimated,
    since the provider may have counted it.
    """
    response = await send_untold(call, request, reservation, delays, on_sent)
    reservation.answered(refused=response.status_code == _TOO_MANY_REQUESTS)
    return response


async def send_untold(  # noqa: PLR0917
    call: Callable[[Any], Awaitable[_T]],
    request: Any,
    reservation: Reservation,
    delays: NetworkDelays,
    on_sent: Callable[[], None] | None = None,
    waits_its_turn: bool = True,
    may_be_called_off: bool = False,
) -> _T:
    """As `send`; the caller tells of the answer, when he has learnt what it says of limits.

    may_be_called_off: raises CalledOff, with nothing sent and the reservation given back, where
    one that was admitted before was refused as this one waited for its turn: of a burst that is
    too large, what has not been sent need not be refused.
    """
    way = line() if waits_its_turn else None
    marks = _Marks(request, reservation, delays, on_sent, way)
    request.extensions = {**request.extensions, "trace": marks.trace}
    try:
        if way is not None:
            await way.enter(marks)
            if may_be_called_off and reservation._is_called_off():
                raise CalledOff
        response = await call(request)
    except BaseException:
        marks.failed(reservation)
        raise
    # A transport that traces nothing has sent it all the same.
    marks.sent()
    return response


def send_untold_sync(
    call: Callable[[Any], _T], request: Any, reservation: Reservation, delays: NetworkDelays
) -> _T:
    """The same from a thread, with a transport's `handle_request`."""
    marks = _Marks(request, reservation, delays)
    request.extensions = {**request.extensions, "trace": marks.trace_sync}
    try:
        response = call(request)
    except BaseException:
        marks.failed(reservation)
        raise
    marks.sent()
    return response


@final
class _Marks:
    """What the trace of one request tells about the instants that matter."""

    __slots__ = (
        "_connecting",
        "_delay",
        "_delays",
        "_host",
        "_line",
        "_next",
        "_on_sent",
        "_reservation",
        "_traced",
        "_tunnel",
        "begun",
    )

    def __init__(
        self,
        request: Any,
        reservation: Reservation,
        delays: NetworkDelays,
        on_sent: Callable[[], None] | None = None,
        line: Line | None = None,
    ) -> None:
        self._reservation: Reservation | None = reservation
        self._line = line
        self._delays = delays
        self._host: str = request.url.host
        self._on_sent = on_sent
        self._next: Callable[[str, Any], Any] | None = request.extensions.get("trace")
        # One of ours, of an attempt before this one, has nothing to tell any more.
        ours = getattr(self._next, "__self__", None)
        if isinstance(ours, _Marks):
            self._next = ours._next
        self._connecting: float | None = None
        self._delay = 0.0
        self._tunnel = False
        self._traced = False
        self.begun = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """httpx's `trace` extension: called before and after each step of a request."""
        self._step(event, info)
        if self._next is not None:
            await self._next(event, info)

    def trace_sync(self, event: str, info: dict[str, Any]) -> None:
        """The same of a synchronous client."""
        self._step(event, info)
        if self._next is not None:
            self._next(event, info)

    def _step(self, event: str, info: dict[str, Any]) -> None:
        self._delays._traced = self._traced = True
        # "http11.send_request_body.complete", or another protocol's name in the front.
        step = _STEPS.get(event.partition(".")[2])
        if step is not None:
            step(self, info)

    def sent(self, _: object = None) -> None:
        """The last byte has gone out, or none will any more: the provider may have counted it."""
        if self._tunnel or self._reservation is None:
            return
        reservation, self._reservation = self._reservation, None
        reservation.sent(network_delay=max(self._delay, self._delays.largest(self._host)))
        self._lets_pass()
        if self._on_sent is not None:
            self._on_sent()

    def failed(self, reservation: Reservation) -> None:
        """It has raised: nothing was sent, or nobody knows."""
        if self.begun:
            self.sent()
            reservation.expire()
        else:
            reservation.cancel()
            self._lets_pass()

    def is_lined(self) -> bool:
        """Until one has had its time and traced nothing."""
        return self._delays._traced

    def is_late(self) -> None:
        """Others of its transport need not wait for what it does not tell."""
        self._delays._traced = self._traced

    def _lets_pass(self) -> None:
        if self._line is not None:
            self._line.leave(self)

    def _connect_begins(self, _: object) -> None:
        if self._reservation is None:
            return  # once more, by a transport that tries again itself
        self._connecting = monotonic()
        self._lets_pass()  # from here on it is the network that takes its time

    def _connected(self, info: dict[str, Any]) -> None:
        stream = info.get("return_value")
        measured = None if stream is None else round_trip(stream.get_extra_info("socket"))
        if measured is not None:
            self._delays.note(self._host, measured)

    def _send_begins(self, info: dict[str, Any]) -> None:
        request = info.get("request")
        # What is said to a proxy, to be let through, is not the request yet.
        self._tunnel = getattr(request, "method", None) == b"CONNECT"
        if self._tunnel:
            return
        self.begun = True
        if self._connecting is not None:
            # A host that has only just accepted the connection may look at it as much later.
            self._delay = monotonic() - self._connecting


_STEPS: dict[str, Callable[[_Marks, dict[str, Any]], None]] = {
    "connect_tcp.started": _Marks._connect_begins,
    "connect_tcp.complete": _Marks._connected,
    "send_request_headers.started": _Marks._send_begins,
    "send_request_body.complete": _Marks.sent,
}
