"""What tables say of errors, bodies and models, as schedulers and transports act on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from users import Refused, asks, make

from headway import (
    TEXT,
    Limiter,
    ManualClock,
    RateLimiterConfig,
    RequestMetadata,
    Reservation,
    _core,
)
from headway.errors import ConfigurationError
from headway.providers import ProviderTable, provider_tables
from headway.scheduler import Scheduler, create_scheduler
from headway.transports import AsyncTransport, Transport, govern

GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-x:generateContent"
CLAUDE = "https://api.anthropic.com/v1/messages"
ROUTER = "https://openrouter.ai/api/v1/chat/completions"
AZURE = "https://mine.openai.azure.com/openai/deployments/d/chat/completions"


class Way(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Answers as it is told, and keeps when it was asked."""

    def __init__(self, say: Callable[[int], httpx.Response]) -> None:
        self.say = say
        self.asked: list[float] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(time.monotonic())
        return self.say(len(self.asked))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


def refusal(quota: str, value: str, delay: str) -> httpx.Response:
    violation = {"quotaId": quota, "quotaValue": value}
    details = [{"violations": [violation]}, {"retryDelay": delay}]
    return httpx.Response(429, json={"error": {"code": 429, "details": details}})


def post(way: Way, scheduler: Scheduler, url: str, body: dict[str, Any]) -> httpx.Response:
    async def main() -> httpx.Response:
        async with (
            scheduler,
            httpx.AsyncClient(transport=AsyncTransport(scheduler, way)) as client,
        ):
            return await client.post(url, json=body)

    return asyncio.run(main())


def limits_of(scheduler: Scheduler, model: str) -> list[str]:
    explanation = scheduler.explain(RequestMetadata("r", model, TEXT))
    assert explanation is not None
    return [str(each.limit) for each in explanation.limits]


def test_a_refusal_that_tells_only_in_its_body_is_waited_for_and_learnt_from() -> None:
    minute = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    way = Way(lambda n: refusal(minute, "10", "0.4s") if n == 1 else httpx.Response(200, json={}))
    scheduler = create_scheduler(None)
    assert post(way, scheduler, GEMINI, {"contents": []}).status_code == 200
    first, second = way.asked
    assert second - first >= 0.4
    assert limits_of(scheduler, "gemini-x") == ["9 requests/min window"]


def test_a_receipt_holds_what_only_the_body_tells() -> None:
    minute = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
    way = Way(lambda _: refusal(minute, "10", "7s"))
    scheduler = create_scheduler(None, config=RateLimiterConfig(max_retries=0))
    assert post(way, scheduler, GEMINI, {"contents": []}).status_code == 429
    explanation = scheduler.explain(RequestMetadata("r", "gemini-x", TEXT))
    assert explanation is not None
    (receipt,) = explanation.receipts
    assert receipt.retry_after == 7
    assert [use.stated for use in receipt.uses] == [10]


def test_a_model_that_is_not_in_the_plan_is_asked_once_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    way = Way(lambda _: refusal("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "0", "1s"))
    assert post(way, create_scheduler(None), GEMINI, {"contents": []}).status_code == 429
    assert len(way.asked) == 1
    assert "the model is not in the plan" in caplog.text


def test_want_of_capacity_is_tried_again_and_holds_nobody_up() -> None:
    relayed = {"error": {"code": 429, "metadata": {"provider_name": "p", "raw": "busy"}}}
    way = Way(lambda n: httpx.Response(429 if n == 1 else 200, json=relayed if n == 1 else {}))
    scheduler = create_scheduler(None)
    assert post(way, scheduler, ROUTER, {"model": "m"}).status_code == 200
    assert len(way.asked) == 2
    assert scheduler.get_metrics()["cool_downs"] == 0


@pytest.mark.parametrize("by_client", [False, True])
def test_models_that_share_limits_are_one_bucket(by_client: bool) -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "100",
        "anthropic-ratelimit-requests-remaining": "99",
    }
    client = SimpleNamespace(base_url=CLAUDE) if by_client else None
    scheduler = create_scheduler(client)
    way = Way(lambda _: httpx.Response(200, json={}, headers=headers))

    async def main() -> None:
        async with scheduler, httpx.AsyncClient(transport=AsyncTransport(scheduler, way)) as http:
            for model in ("claude-opus-4-1", "claude-opus-4-8", "claude-sonnet-4-5", "claude-3"):
                await http.post(CLAUDE, json={"model": model, "messages": []})

    asyncio.run(main())
    names = sorted(bucket.name for bucket in scheduler._buckets)
    assert names == ["claude-3", "claude-opus-4", "claude-sonnet-4"]
    assert limits_of(scheduler, "claude-opus-4") == ["90 requests/min bucket"]


def test_a_model_that_has_limits_of_its_own_shares_with_none() -> None:
    client = SimpleNamespace(base_url=CLAUDE)
    given = {"claude-opus-4-1": ["5 requests/min"], "claude-opus-4": ["50 requests/min"]}
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
    scheduler = create_scheduler(client, config=config, limits=given)
    assert limits_of(scheduler, "claude-opus-4-1") == ["5 requests/min"]
    assert limits_of(scheduler, "claude-opus-4-8") == ["50 requests/min"]


MINE = ProviderTable(
    {
        "name": "mine",
        "limits": [{"resource": "requests", "limit": "x-max", "remaining": "x-left"}],
        "errors": [{"class": "refused", "status": 420}],
        "waits": [{"at": "error.in"}],
    }
)


def test_a_scheduler_reads_by_a_table_of_ones_own() -> None:
    calls = 0

    async def call() -> SimpleNamespace:
        nonlocal calls
        calls += 1
        if calls == 1:
            return SimpleNamespace(status_code=420, headers={}, body={"error": {"in": "100ms"}})
        return SimpleNamespace(status_code=200, headers={"X-Max": "40", "X-Left": "39"})

    async def main() -> Scheduler:
        async with create_scheduler(None, provider=MINE) as scheduler:
            assert scheduler.provider is None
            await scheduler.submit_request(RequestMetadata("r", "m", TEXT), call)
            return scheduler

    scheduler = asyncio.run(main())
    assert calls == 2
    assert limits_of(scheduler, "m") == ["36 requests/min window"]
    assert scheduler.get_metrics()["refusals"] == 1


def test_a_table_may_be_named() -> None:
    table = create_scheduler(None, provider="azure")._observations.table
    assert table is provider_tables()["azure"]
    for named in ("sk-azure", ""):
        with pytest.raises(ConfigurationError, match=r"provider of type str: .*anthropic, azure"):
            create_scheduler(None, provider=named)


USED = {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}


@pytest.mark.parametrize(
    ("provider", "reserved", "kept"), [("azure", 26, 26), ("openai", 24, 24), ("generic", 24, 2)]
)
def test_tokens_are_reserved_and_given_back_as_the_table_says(
    provider: str, reserved: int, kept: int
) -> None:
    limiter = Limiter(["100 tokens/min window"])
    seen: list[int] = []

    def used() -> int:
        return limiter.explain().limits[0].used

    def say(_: int) -> httpx.Response:
        seen.append(used())
        return httpx.Response(200, content=iter([json.dumps(USED).encode()]))

    with httpx.Client(transport=Transport(limiter, Way(say), provider=provider)) as client:
        body = {
            "model": "m",
            "max_tokens": 24,
            "messages": [{"role": "user", "content": "hi you!"}],
        }
        assert client.post(AZURE, json=body).status_code == 200
    assert seen == [reserved]
    assert used() == kept


def test_a_scheduler_gives_nothing_back_of_what_is_kept() -> None:
    async def call() -> SimpleNamespace:
        return SimpleNamespace(status_code=200, headers={}, usage=USED["usage"])

    async def main(provider: str) -> int:
        config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
        async with create_scheduler(
            None, provider=provider, config=config, limits=["100 tokens/min window"]
        ) as scheduler:
            request = RequestMetadata("r", "m", TEXT, estimated_tokens=40)
            await scheduler.submit_request(request, call)
            explanation = scheduler.explain(RequestMetadata("r", "m", TEXT, estimated_tokens=1))
            assert explanation is not None
            return next(each.used for each in explanation.limits if each.limit.amount == 100)

    assert asyncio.run(main("azure")) == 40
    assert asyncio.run(main("openai")) == 40
    assert asyncio.run(main("generic")) == 2


def test_azures_own_client_behind_a_host_of_ones_own_is_azures() -> None:
    openai = pytest.importorskip("openai")
    client = openai.AzureOpenAI(
        base_url="https://gateway.example.com/openai", api_version="v1", api_key="k"
    )
    governed = govern(client)
    assert governed._client._transport._provider is provider_tables()["azure"]


@pytest.mark.parametrize(("debt", "fit"), [("absolute", 0), ("proportional", 15)])
def test_what_is_owed_when_a_limit_is_halved_is_scaled_or_not(debt: str, fit: int) -> None:
    stated = {"resource": "requests", "limit": "x-max", "period": 60, "shape": "bucket"}
    table = ProviderTable({"name": "mine", "limits": [stated], "debt": {"is": debt}})
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
    scheduler = create_scheduler(None, provider=table, config=config, clock=ManualClock(1000.0))
    scheduler._buckets.make_unlisted("m")
    words = scheduler._words.words("m")
    assert words is not None
    cost = [int(each == "requests") for each in _core.resources(words)]

    def answered(limit: str) -> None:
        call = words.try_reserve(*cost)
        assert isinstance(call, Reservation)
        call.sent()
        _core.observe(words, call._record(), table.read({"x-max": limit}))
        call.settle()

    answered("60")
    for _ in range(29):
        assert words.try_acquire(*cost)
    answered("30")
    assert [words.try_acquire(*cost) for _ in range(fit + 1)] == [True] * fit + [False]


_LEFT, _RESET = "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"
_WHOLE = {"x-ratelimit-limit-requests": "60", _LEFT: "0", _RESET: "6s"}
_ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "0",
    "anthropic-ratelimit-requests-reset": "2099-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("mode", "table", "headers", "least", "most"),
    [
        ("basic", "openai", _WHOLE, 6, 7),
        ("basic", "openai", {**_WHOLE, _LEFT: "1"}, 0, 1),
        ("basic", "openai", {_LEFT: "0"}, 0, 1),
        ("basic", "openai", {**_WHOLE, "retry-after": "2"}, 2, 3),
        ("basic", "openai", {**_WHOLE, _RESET: "1h0m0s"}, 120, 121),
        # Full again by then: it has something to give long before.
        ("basic", "anthropic", _ANTHROPIC, 0, 1),
        # What is kept to as a limit waits for it there.
        ("intelligent", "openai", _WHOLE, 0, 1),
        ("intelligent", "openai", {_LEFT: "0", _RESET: "6s"}, 6, 7),
        ("account", "openai", {_LEFT: "0", _RESET: "6s"}, 6, 7),
    ],
)
def test_a_refusal_that_asks_for_no_wait_holds_its_bucket_up_until_something_is_left_again(
    mode: str, table: str, headers: dict[str, str], least: float, most: float
) -> None:
    async def run() -> None:
        async def call() -> None:
            raise Refused(429, headers)

        async with make(mode, provider=table, max_retries=0, clock=ManualClock()) as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(asks(), call)
            held = scheduler.get_metrics()["buckets"]["m"]["cooled_for"]
            assert least <= held <= most

    asyncio.run(run())
