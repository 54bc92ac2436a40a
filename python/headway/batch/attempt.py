"""One attempt at a request: sends it, reads the answer, says what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import NoReturn, final

import httpx

from headway import Reservation
from headway.batch.endpoint import Endpoint
from headway.batch.lines import Line
from headway.batch.patience import patience
from headway.batch.results import Outcome
from headway.retry import is_retried, told_wait
from headway.transports import NetworkDelays, send


@final
class Attempts:
    """Sends lines to an endpoint, over connections that are closed when it is left.

    timeout: seconds from an attempt's admission until its answer must have been read. ImportError
    where the environment names a proxy that needs a package which is not installed.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self._endpoint = endpoint
        self._transport = endpoint.transport()
        self._timeout = timeout
        self._delays = NetworkDelays()

    async def make(
        self, line: Line, reservation: Reservation, on_sent: Callable[[], None]
    ) -> Outcome:
        """Makes one attempt, for which `reservation` was taken, and ends the reservation.

        on_sent: called when the request has gone out, if it does.
        """
        sent_at = 0.0

        def sent() -> None:
            nonlocal sent_at
            sent_at = monotonic()
            on_sent()

        try:
            request = self._endpoint.request(line)
            async with patience(self._timeout):
                response = await send(
                    self._transport.handle_async_request, request, reservation, self._delays, sent
                )
                latency = monotonic() - sent_at
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
        except asyncio.TimeoutError:
            return _failure("timeout", f"no answer within {self._timeout:g} s", retried=True)
        except httpx.InvalidURL as error:
            return _failure("invalid_url", f"url {line.url!r}: {error}", retried=False)
        except httpx.RequestError as error:
            # What httpx itself will not send, it will not send next time either.
            hopeless = isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol))
            message = f"{type(error).__name__}: {error}".rstrip(": ")
            return _failure("connection_error", message, retried=not hopeless)
        finally:
            # Providers count what was asked when it arrives, and give nothing back for an answer
            # that turned out shorter. Does nothing where the reservation has ended already.
            if not reservation.cancel():
                reservation.settle()
        body = _decode(content)
        retried = is_retried(response.status_code, body)
        return Outcome(
            status=response.status_code,
            request_id=response.headers.get("x-request-id", ""),
            body=body,
            latency=latency,
            retried=retried,
            told=told_wait(response.headers) if retried else None,
        )

    async def __aenter__(self) -> Attempts:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.aclose()


def _failure(code: str, message: str, retried: bool) -> Outcome:
    return Outcome(error=(code, message), retried=retried)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _decode(content: bytes) -> object:
    """The answer's JSON, or else its text."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return content.decode(errors="replace")
