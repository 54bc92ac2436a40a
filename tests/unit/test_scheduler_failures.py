"""failures: which of them are worth another attempt."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from headway.errors import (
    CapacityExceededError,
    DeadlineExceededError,
    RequestTimeoutError,
    SchedulerStoppedError,
)
from headway.providers import ProviderTable, provider_tables
from headway.scheduler.answers import Answer
from headway.scheduler.failures import (
    classed,
    is_of_transport,
    is_refused,
    is_retried,
    wait_told_by,
)


def seen(status: int, body: object = None, provider: str = "generic") -> Answer:
    """A failure as a table that comes with headway sees it."""
    return classed(Answer(status, body=body), provider_tables()[provider])


def of(module: str, name: str, *bases: type) -> type[Exception]:
    """A class as a client that is not installed would define it."""
    return type(name, bases or (Exception,), {"__module__": module})


OF_CLIENTS = [
    of("httpx", "TransportError"),
    of("httpx._exceptions", "ReadError", of("httpx", "TransportError")),
    of("aiohttp.client_exceptions", "ClientConnectionError"),
    of("requests.exceptions", "ConnectionError"),
    of("urllib3.exceptions", "ProtocolError", of("urllib3.exceptions", "HTTPError")),
    of("openai", "APIConnectionError"),
    of("openai", "APITimeoutError", of("openai", "APIConnectionError")),
    of("anthropic._exceptions", "APIConnectionError"),
]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        ConnectionRefusedError(),
        BrokenPipeError(),
        TimeoutError(),
        asyncio.TimeoutError(),
        socket.gaierror(),
        ssl.SSLError(),
        OSError(113, "no route"),
        RequestTimeoutError("late"),
        *[kind() for kind in OF_CLIENTS],
    ],
)
def test_what_did_not_get_through_is_of_the_transport(error: BaseException) -> None:
    assert is_of_transport(error)
    assert is_retried(Answer(), error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        KeyError(),
        AssertionError(),
        FileNotFoundError(),
        PermissionError(),
        IsADirectoryError(),
        CapacityExceededError("never"),
        DeadlineExceededError("late"),
        SchedulerStoppedError("stopped"),
        of("httpx", "InvalidURL")(),
        of("mine", "TransportError")(),
        of("nothttpx", "TransportError")(),
    ],
)
def test_what_was_wrong_is_not(error: BaseException) -> None:
    assert not is_of_transport(error)
    assert not is_retried(Answer(), error)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_status_that_passes_is_tried_again(status: int) -> None:
    assert is_retried(Answer(status), None)
    assert is_retried(Answer(status), ValueError())


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 501, 505, 511])
def test_one_that_stays_is_not_even_for_an_error_of_the_transport(status: int) -> None:
    assert not is_retried(Answer(status), None)
    assert not is_retried(Answer(status), ConnectionError())
    assert is_retried(Answer(status), KeyError(), (LookupError,)), "it was asked for by name"


def test_success_is_not_tried_again() -> None:
    assert not is_retried(Answer(), None)
    assert not is_retried(Answer(200), None)


@pytest.mark.parametrize("told", ["true", "TRUE", " true "])
def test_the_server_outranks_its_status(told: str) -> None:
    assert is_retried(Answer(400, {"x-should-retry": told}), None)
    assert not is_retried(Answer(503, {"x-should-retry": "false"}), ConnectionError())
    assert is_retried(Answer(503, {"x-should-retry": "perhaps"}), None)


@pytest.mark.parametrize("code", ["insufficient_quota", "credit_balance_exhausted"])
@pytest.mark.parametrize("name", ["code", "type"])
def test_no_waiting_helps_where_the_money_is_gone(code: str, name: str) -> None:
    for body in ({"error": {name: code}}, {name: code}):
        answer = seen(429, body)
        assert answer.kind == "spent"
        assert not is_retried(answer, None)
        assert not is_refused(answer)
    assert is_retried(seen(500, {"error": {name: code}}), None)


@pytest.mark.parametrize("body", [None, "text", [], {}, {"error": None}, {"error": "text"}, 7])
def test_a_body_of_another_shape_says_nothing(body: object) -> None:
    answer = seen(429, body)
    assert answer.kind is None
    assert is_retried(answer, None)
    assert is_refused(answer)


def test_a_body_that_holds_what_cannot_be_compared_says_nothing() -> None:
    assert seen(429, {"error": {"code": ["insufficient_quota"], "type": {}}}).kind is None


KINDS = ["refused", "capacity", "spent", "not_on_plan", "bad_request"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 403, 429, 503])
def test_what_a_table_says_outranks_the_status(kind: str, status: int) -> None:
    table = ProviderTable(
        {"name": "mine", "limits": [], "errors": [{"class": kind, "status": status}]}
    )
    answer = classed(Answer(status), table)
    assert is_refused(answer) == (kind == "refused")
    assert is_retried(answer, None) == (kind in ("refused", "capacity"))
    asked_for = is_retried(answer, KeyError(), (LookupError,))
    assert asked_for == (kind in ("refused", "capacity") or status != 429)


def test_the_server_outranks_the_table() -> None:
    told = {"x-should-retry": "true"}
    answer = classed(
        Answer(429, told, body={"error": {"code": "insufficient_quota"}}),
        provider_tables()["openai"],
    )
    assert answer.kind == "spent"
    assert is_retried(answer, None)


@pytest.mark.parametrize(
    ("form", "until"),
    [("epoch", 1_700_000_030), ("epoch_ms", 1_700_000_030_000), ("date", "2023-11-14T22:13:50Z")],
)
def test_an_instant_in_a_body_is_of_the_clock_that_the_answer_is_dated_by(
    form: str, until: object
) -> None:
    table = ProviderTable(
        {"name": "a", "limits": [], "waits": [{"at": "error.until", "form": form}]}
    )
    dated = {"date": "Tue, 14 Nov 2023 22:13:20 GMT"}  # years ago, by ours
    answer = Answer(429, headers=dated, body={"error": {"until": until}})
    assert wait_told_by(classed(answer, table)) == 30
