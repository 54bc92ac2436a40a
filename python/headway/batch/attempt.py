"""One attempt at a request: sends it, reads the answer, says what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import NoReturn, final

import httpx

from headway import Reservation
from headway.batch.endpoint import Endpoint
from headway.batch.lines import Line
from headway.batch.results import Outcome
from headway.providers import ProviderTable
from headway.transports import NetworkDelays
from headway.transports._httpx import send_untold


@final
class Attempts:
    """Sends lines to an endpoint, over connections that are closed when it is left.

    ImportError where the environment names a proxy that needs a package which is not installed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._transport = endpoint.transport()
        self._delays = NetworkDelays()

    async def make(
        self,
        line: Line,
        reservation: Reservation,
        on_sent: Callable[[], None],
        hear: Callable[[Mapping[str, str]], None] | None = None,
    ) -> Outcome:
        """Makes one attempt, for which `reservation` was taken, and marks it there.

        on_sent: called when the request has gone out, if it does. hear: gets the headers of a good
        answer, before anything else is admitted because of it. What a failure says is for whoever
        reads its outcome, whose body tells what kind it is. Time is not bounded here, and what was
        asked stays spent.
        """
        sent_at = 0.0

        def sent() -> None:
            nonlocal sent_at
            sent_at = monotonic()
            on_sent()

        try:
            request = self._endpoint.request(line)
            response = await send_untold(
                self._transport.handle_async_request, request, reservation, self._delays, sent
            )
            if 200 <= response.status_code <= 299:
                if hear is not None:
                    hear(response.headers)
                reservation.answered()
            latency = monotonic() - sent_at
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        except httpx.InvalidURL as error:
            reservation.cancel()
            return _failure("invalid_url", f"url {line.url!r}: {error}", may_pass=False)
        except httpx.RequestError as error:
            # What httpx itself will not send, it will not send next time either.
            hopeless = isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol))
            message = f"{type(error).__name__}: {error}".rstrip(": ")
            return _failure("connection_error", message, may_pass=not hopeless)
        status = response.status_code
        return Outcome(
            status=status,
            request_id=response.headers.get("x-request-id", ""),
            body=_decode(content),
            latency=latency,
            may_pass=status in (408, 409, 429) or 500 <= status <= 599,
            headers={} if 200 <= status <= 299 else dict(response.headers),
        )

    async def credit_left(self, table: ProviderTable) -> float | None:
        """The money that the key has left, as ProviderTable.credit_left; None if nobody tells."""
        if table.credit_path is None:
            return None
        request = self._endpoint.ask(table.credit_path)
        try:
            response = await self._transport.handle_async_request(request)
            try:
                content = await response.aread()
            finally:
                await response.aclose()
        except httpx.RequestError:
            return None  # the requests will hear of it
        return table.credit_left(_decode(content)) if response.status_code == 200 else None

    async def __aenter__(self) -> Attempts:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.aclose()


def _failure(code: str, message: str, may_pass: bool) -> Outcome:
    return Outcome(error=(code, message), may_pass=may_pass)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _decode(content: bytes) -> object:
    """The answer's JSON, or else its text."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return content.decode(errors="replace")
