"""One attempt: what an answer, a refusal, a silence and a fault become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from headway import Limiter
from headway.batch.attempt import Attempts
from headway.batch.endpoint import Endpoint
from headway.batch.lines import Line
from headway.batch.results import Outcome

Answer = Callable[[httpx.Request], Awaitable[httpx.Response]]
LINE = Line(1, "a", "/v1/chat/completions", {"model": "m"})


class Answered(Endpoint):
    """An endpoint that `answer` answers for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("http://h/v1")
        self._answer = answer

    def transport(self) -> httpx.AsyncBaseTransport:
        return httpx.MockTransport(self._answer)


def attempt(answer: Answer, line: Line = LINE) -> tuple[Outcome, bool, list[int]]:
    """What one attempt comes to, whether it was sent, and what it has used of the limits below."""

    async def run() -> tuple[Outcome, bool, list[int]]:
        limiter = Limiter(["1 concurrency", "100 requests/hour"])
        sent = asyncio.Event()
        async with Attempts(Answered(answer)) as attempts, limiter.acquire() as reservation:
            outcome = await attempts.make(line, reservation, sent.set)
        return outcome, sent.is_set(), [state.used for state in limiter.explain().limits]

    return asyncio.run(run())


def always(response: httpx.Response) -> Answer:
    async def answer(_: httpx.Request) -> httpx.Response:
        return response

    return answer


def raising(error: Exception) -> Answer:
    async def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


def test_an_answer_is_its_status_its_id_and_its_body() -> None:
    response = httpx.Response(200, headers={"x-request-id": "req_1"}, json={"x": 1})
    outcome, sent, taken = attempt(always(response))
    assert (outcome.status, outcome.request_id, outcome.body) == (200, "req_1", {"x": 1})
    assert outcome.latency is not None
    assert 0 <= outcome.latency < 5
    assert (outcome.may_pass, outcome.error, sent, taken) == (False, None, True, [0, 1])
    assert outcome.headers == {}


@pytest.mark.parametrize("content", [b"<html>", b"", b'{"x": NaN}', b"\xff{"])
def test_an_answer_that_is_no_json_is_its_text(content: bytes) -> None:
    outcome, _, _ = attempt(always(httpx.Response(502, content=content)))
    assert outcome.body == content.decode(errors="replace")
    assert outcome.may_pass


def test_a_refusal_says_when_to_try_again() -> None:
    response = httpx.Response(429, headers={"retry-after-ms": "1500"}, json={})
    outcome, _, taken = attempt(always(response))
    assert (outcome.status, outcome.may_pass, taken) == (429, True, [0, 1])
    assert outcome.headers["retry-after-ms"] == "1500"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_a_failure_that_may_pass_is_told_apart(status: int) -> None:
    outcome, _, _ = attempt(always(httpx.Response(status, json={})))
    assert outcome.may_pass


@pytest.mark.parametrize("status", [200, 201, 301, 400, 401, 403, 404, 413, 422, 600])
def test_everything_else_is_final(status: int) -> None:
    outcome, _, _ = attempt(always(httpx.Response(status, json={})))
    assert not outcome.may_pass
    assert outcome.succeeded == (status < 300)


def test_a_broken_connection_is_tried_again_and_named() -> None:
    outcome, _, taken = attempt(raising(httpx.ReadError("gone")))
    assert outcome.error == ("connection_error", "ReadError: gone")
    assert outcome.may_pass
    assert taken[0] == 0


def test_an_answer_that_breaks_off_is_closed_and_tried_again() -> None:
    class Half(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("gone")

        async def aclose(self) -> None:
            self.closed = True

    half = Half()
    outcome, _, taken = attempt(always(httpx.Response(200, stream=half)))
    assert outcome.error == ("connection_error", "ReadError: gone")
    assert (outcome.may_pass, half.closed, taken) == (True, True, [0, 1])


def test_what_httpx_will_not_send_is_not_tried_again() -> None:
    outcome, _, _ = attempt(raising(httpx.LocalProtocolError("no")))
    assert outcome.error is not None
    assert not outcome.may_pass


def test_a_url_that_httpx_cannot_read_is_not_tried_again() -> None:
    line = Line(1, "a", "/" + "x" * 100_000, {})
    outcome, sent, taken = attempt(always(httpx.Response(200)), line=line)
    assert outcome.error is not None
    assert outcome.error[0] == "invalid_url"
    assert (outcome.may_pass, sent, taken) == (False, False, [0, 0])


def test_an_attempt_that_is_cancelled_keeps_nothing_open() -> None:
    async def run() -> None:
        limiter = Limiter(["1 concurrency"])
        begun = asyncio.Event()

        async def never(_: httpx.Request) -> httpx.Response:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with Attempts(Answered(never)) as attempts:
            reservation = await limiter.acquire()
            task = asyncio.ensure_future(attempts.make(LINE, reservation, lambda: None))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert reservation.state == "ended"
        assert limiter.explain().limits[0].used == 0

    asyncio.run(run())
