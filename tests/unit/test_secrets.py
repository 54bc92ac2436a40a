"""Secrets: what a key, a password or a header's value must never be found in."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from headway import (
    ConfigurationError,
    DiscoveredBucket,
    MemoryBackend,
    ProviderError,
    ProviderInterface,
    RateLimitInfo,
    RequestMetadata,
)
from headway._secrets import redact
from headway.scheduler import RateLimiterConfig, create_scheduler

KEY = "sk-proj-Zq7xP2mL9vT4wR8kB3nJ6"
PASSWORD = "hunter2"
URL = f"redis://admin:{PASSWORD}@db.example.com:6379/0"


class Client:
    base_url = f"https://admin:{PASSWORD}@api.example.com"
    timeout = 30.0

    def get_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}


class Telling(ProviderInterface):
    """A provider whose every method says too much."""

    name = "telling"

    def __init__(self, text: str) -> None:
        self.error = ConnectionError(text)

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        raise self.error

    def parse_rate_limit_response(
        self,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        status_code: int | None = None,
    ) -> RateLimitInfo:
        raise self.error

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        raise self.error


class Refused(Exception):
    status_code = 429
    headers = {"Retry-After": "0"}  # noqa: RUF012


def asks(**fields: Any) -> RequestMetadata:
    return RequestMetadata(request_id="r", model_id="m", resource_type="text", **fields)


async def at_once() -> int:
    return 42


# -- redact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"cannot reach {URL}", PASSWORD),
        ("cannot reach redis://:p@ss@db", "p@ss"),
        ("cannot reach redis://:p@ss@db", "ss@"),
        ("postgresql://u:x1@one,postgresql://u:x2@two", "x2"),
        (f"Authorization: Bearer {KEY}", KEY),
        ("Basic dXNlcjpwYXNz failed", "dXNlcjpwYXNz"),
        (f"Incorrect API key provided: {KEY}.", KEY),
        ("{'x-api-key': 'short1'}", "short1"),
        ('{"password": "short1"}', "short1"),
        ("https://api.example.com/v1?api_key=short1&x=1", "short1"),
        ("TOKEN=short1", "short1"),
        ("client_secret: short1", "short1"),
        ("AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "9tSrke72"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact(text)
    assert "…" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "needs 480 tokens, the limit is 450",
        "https://api.example.com/v1/chat/completions",
        "mail user@example.com",
        "parse_rate_limit_response_of_the_provider",
        "12345678901234567890123",
        "gpt-4o",
    ],
)
def test_what_does_not_is_left(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("part", ["a-", "x ", "://", "token ", "a", "1a.", "bearer ", "@", "key:"])
def test_redacting_takes_time_in_proportion_to_the_text(part: str) -> None:
    began = time.perf_counter()
    redact(part * 50_000)
    assert time.perf_counter() - began < 2.0


# -- all that a scheduler shows ------------------------------------------------------------------


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Whatever the tree of `headway` has logged: tracebacks, and the fields for programs, too."""
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG, logger="headway"):
        yield shown
    formatter = logging.Formatter("%(message)s %(exc_text)s %(args)s")
    for record in caplog.get_records("call"):
        fields = [value for name, value in vars(record).items() if name.startswith("headway_")]
        shown.append(f"{formatter.format(record)} {fields}")
    assert shown, "something was logged"
    assert not [text for text in shown if KEY in text or PASSWORD in text]


@pytest.mark.filterwarnings("ignore:these options have no meaning:UserWarning")  # basic
@pytest.mark.parametrize("mode", ["basic", "intelligent", "account"])
@pytest.mark.parametrize("secret", [f"401 for {KEY}", f"no route to {URL}"])
def test_no_log_repr_metric_or_health_answer_holds_one(
    mode: str, secret: str, records: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        backend = MemoryBackend()
        scheduler = create_scheduler(
            Client(),
            mode=mode,
            config=RateLimiterConfig(max_backoff=0.001, health_check_interval=0.01),
            provider=Telling(secret),
            backend=backend,
        )

        class Breaker:
            async def can_execute(self, model_id: str) -> bool:
                raise ValueError(secret)

        scheduler.circuit_breaker = Breaker()
        async with scheduler:
            attempts = 0

            async def call() -> int:
                nonlocal attempts
                attempts += 1
                if attempts == 1:
                    raise Refused(secret)
                return 42

            handle = scheduler.submit(asks(), call)
            texts = [repr(handle), repr(scheduler)]
            assert await handle == 42
            texts += [repr(handle), repr(scheduler), str(scheduler.get_metrics())]
            texts += [str(handle.explain()), str(await backend.health_check())]
            texts += [str(await backend.get_all_stats()), str(await backend.get_all_states())]
            assert not [text for text in texts if KEY in text or PASSWORD in text]
            assert scheduler.get_metrics()["user_code_errors"]

    asyncio.run(run())


def test_the_error_of_a_classifier_names_it_without_what_it_has_said(records: list[str]) -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> RequestMetadata:
            raise ValueError(f"no model in {request} for {KEY}")

    async def run() -> None:
        async with create_scheduler(Client(), classifier=Classifier()) as scheduler:
            with pytest.raises(ProviderError, match="classify of classifier") as caught:
                await scheduler.submit_request({"url": URL}, at_once)  # type: ignore[arg-type]
            assert KEY not in str(caught.value)
            assert PASSWORD not in str(caught.value)

    asyncio.run(run())


def test_a_backend_given_as_a_url_is_refused_without_naming_it() -> None:
    with pytest.raises(ConfigurationError, match="must be a BaseBackend, not a str") as caught:
        create_scheduler(Client(), backend=URL)
    assert PASSWORD not in str(caught.value)


def test_a_function_of_the_wrong_kind_is_named_without_its_arguments() -> None:
    async def call(key: str) -> None:
        pass

    with create_scheduler(Client()) as scheduler, pytest.raises(TypeError) as caught:
        scheduler.submit_sync(asks(), functools.partial(call, KEY))
    assert "submit_sync is for plain functions" in str(caught.value)
    assert KEY not in str(caught.value)


def test_what_a_function_has_given_is_not_shown() -> None:
    async def run() -> str:
        async with create_scheduler(Client()) as scheduler:
            with pytest.raises(TypeError) as caught:
                await scheduler.submit_request(asks(), lambda: {"key": KEY})  # type: ignore[arg-type,return-value]
            return str(caught.value)

    assert KEY not in asyncio.run(run())


def test_what_is_no_function_is_not_shown() -> None:
    scheduler = create_scheduler(Client())
    with pytest.raises(TypeError) as caught:
        scheduler.submit_request(asks(), {"key": KEY})  # type: ignore[arg-type]
    assert KEY not in str(caught.value)
