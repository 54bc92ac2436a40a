"""`observe_only`: requests go out as they would without us, and what we would do is told."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx
import pytest
from own_backend import Own

from headway import Limiter, Observed, RateLimiterConfig, RequestMetadata, govern
from headway.errors import ConfigurationError
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport, Transport

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ASKS = RequestMetadata("r", "m", "text")
PATH = "/v1/chat/completions"


def make(limits: Any = None) -> Scheduler:
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, max_concurrent_executions=1000)
    return create_scheduler(None, config=config, limits=limits)


def observed_by(scheduler: Scheduler) -> Observed:
    found = scheduler.explain(ASKS)
    assert found is not None
    assert found.observed is not None
    return found.observed


async def at_once(client: httpx.AsyncClient, calls: int) -> list[int]:
    async def ask() -> int:
        return (await client.post(PATH, json=BODY)).status_code

    return sorted(await asyncio.gather(*(ask() for _ in range(calls))))


def test_what_would_be_avoided_is_told_and_nothing_is_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = ["10 requests/3s window"]
    options = ("--limits", *limits, "--latency", "0.05")

    async def send(client: httpx.AsyncClient) -> tuple[list[int], float]:
        """The others after the first ten's answers: which are refused is no matter of chance."""
        async with client:
            began = time.monotonic()
            statuses = await asyncio.wait_for(at_once(client, 10), 50)
            statuses += await asyncio.wait_for(at_once(client, 20), 50)
            return statuses, time.monotonic() - began

    with SimulatorProcess(*options) as simulator:
        without, _ = asyncio.run(send(httpx.AsyncClient(base_url=simulator.url)))
    assert without == [200] * 10 + [429] * 20

    with SimulatorProcess(*options) as simulator, caplog.at_level(logging.WARNING, "headway"):
        scheduler = make(limits)
        transport = AsyncTransport(scheduler, observe_only=True)
        client = httpx.AsyncClient(transport=transport, base_url=simulator.url)
        statuses, took = asyncio.run(send(client))
        stats = simulator.stats()
    assert statuses == without
    assert (stats["admitted"], stats["refused"]) == (10, 20)
    seen = observed_by(scheduler)
    assert (seen.requests, seen.would_have_waited) == (30, 20)
    assert (seen.refusals, seen.refusals_avoided) == (20, 20)
    # Each of them a window at least; those of the window after that are not told apart.
    assert 20 * 2 < seen.would_have_waited_seconds < 20 * (3.5 + took)
    metrics = scheduler.get_metrics()
    assert metrics["observed_requests"] == metrics["requests_completed"] == 30
    assert metrics["would_have_waited"] == 20
    assert metrics["would_have_waited_seconds"] == seen.would_have_waited_seconds
    assert metrics["observed_refusals"] == metrics["refusals"] == 20
    assert metrics["refusals_avoided"] == 20
    assert metrics["refusal_verdicts"]["ours"] == 20
    assert metrics["retries"] == metrics["cool_downs"] == 0
    assert metrics["buckets"]["m"]["in_flight"] == 0
    assert str(seen) in str(scheduler.explain(ASKS))
    said = [each.getMessage() for each in caplog.records if "observes only" in each.getMessage()]
    assert len(said) == 1

    # And so it is.
    with SimulatorProcess(*options) as simulator:
        transport = AsyncTransport(make(limits))
        client = httpx.AsyncClient(transport=transport, base_url=simulator.url)
        statuses, governed = asyncio.run(send(client))
        refused = simulator.stats()["refused"]
    assert (statuses, refused) == ([200] * 30, 0)
    assert governed > 5  # two windows are waited for


def test_limits_are_learnt_from_what_is_only_watched() -> None:
    options = ("--limits", "10 requests/min window", "--latency", "0.05")
    scheduler = make()

    async def main(url: str) -> list[int]:
        transport = AsyncTransport(scheduler, observe_only=True)
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            return await asyncio.wait_for(at_once(client, 25), 50)

    with SimulatorProcess(*options) as simulator:
        statuses = asyncio.run(main(simulator.url))
    assert statuses == [200] * 10 + [429] * 15
    seen = observed_by(scheduler)
    # While nothing was known, all others would have waited for the first answer; and those for
    # which there was no room, for a minute.
    assert (seen.requests, seen.would_have_waited) == (25, 24)
    # The one that would not have waited may be among the refused: a server counts in any order.
    assert seen.refusals_avoided in (14, 15)
    assert seen.would_have_waited_seconds > 15 * 40
    found = scheduler.explain(ASKS)
    assert found is not None
    requests = next(each for each in found.limits if each.limit.resource == "requests")
    assert (requests.limit.amount, requests.used) == (10, 25)
    assert found.ready_in is not None
    assert found.ready_in > 10


def test_a_ready_client_in_a_thread_is_only_watched(caplog: pytest.LogCaptureFixture) -> None:
    options = ("--limits", "10 requests/min window", "--latency", "0")
    with (
        SimulatorProcess(*options) as simulator,
        httpx.Client(base_url=simulator.url) as plain,
        govern(plain, limits=["10 requests/min window"], observe_only=True) as client,
    ):
        statuses = [client.post(PATH, json=BODY).status_code for _ in range(15)]
        assert simulator.stats()["refused"] == 5
        transport = client._transport
    # A tenth is kept back: nine would have gone.
    assert statuses == [200] * 10 + [429] * 5
    assert isinstance(transport, Transport)
    scheduler = transport._scheduler
    assert scheduler is not None
    seen = observed_by(scheduler)
    assert (seen.requests, seen.would_have_waited) == (15, 6)
    assert (seen.refusals, seen.refusals_avoided) == (5, 5)
    assert [each.getMessage() for each in caplog.records if "observes" in each.getMessage()]


def test_a_refusal_that_nobody_could_avoid_is_not_said_to_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ("--limits", "100 requests/min window", "--hidden", "2 requests/min window")
    scheduler = make(["100 requests/min window"])
    with (
        SimulatorProcess(*options, "--latency", "0") as simulator,
        httpx.Client(
            transport=Transport(scheduler, observe_only=True), base_url=simulator.url
        ) as client,
    ):
        statuses = [client.post(PATH, json=BODY).status_code for _ in range(5)]
        assert simulator.stats()["refused"] == 3
    assert statuses == [200] * 2 + [429] * 3
    seen = observed_by(scheduler)
    # The first refusal would have held up the other two.
    assert (seen.refusals, seen.refusals_avoided, seen.would_have_waited) == (3, 2, 2)
    assert scheduler.get_metrics()["cool_downs"] == 1
    assert scheduler.get_metrics()["refusal_verdicts"]["capacity"] == 3


def test_nothing_is_tried_again_and_failures_come_as_they_are() -> None:
    scheduler = make(["100 requests/min"])
    with (
        SimulatorProcess("--fail", "503:1", "--latency", "0") as simulator,
        httpx.Client(
            transport=Transport(scheduler, observe_only=True), base_url=simulator.url
        ) as client,
    ):
        # More than would open a breaker.
        answers = [client.post(PATH, json=BODY) for _ in range(25)]
        assert simulator.stats()["admitted"] == 25
    assert {each.status_code for each in answers} == {503}
    assert not any("x-should-retry" in each.headers for each in answers)
    assert all("overloaded" in each.text for each in answers)
    metrics = scheduler.get_metrics()
    assert (metrics["attempts"], metrics["retries"]) == (25, 0)
    assert metrics["observed_requests"] == 25
    assert metrics["would_have_waited"] == metrics["would_have_waited_seconds"] == 0


def test_what_an_answer_has_used_is_counted() -> None:
    scheduler = make(["100_000 tokens/min", "5 concurrency"])
    with (
        SimulatorProcess("--latency", "0") as simulator,
        httpx.Client(
            transport=Transport(scheduler, observe_only=True), base_url=simulator.url
        ) as client,
    ):
        used = client.post(PATH, json=BODY).json()["usage"]["total_tokens"]
        with client.stream("POST", PATH, json=BODY) as answer:
            explained = scheduler.explain(ASKS)
            assert explained is not None
            state = {each.limit.resource: each.used for each in explained.limits}
            assert state["concurrency"] == 1
            answer.read()
    explained = scheduler.explain(ASKS)
    assert explained is not None
    state = {each.limit.resource: each.used for each in explained.limits}
    assert state == {"concurrency": 0, "tokens": used + answer.json()["usage"]["total_tokens"]}


def test_what_cannot_be_sent_leaves_nothing_behind() -> None:
    scheduler = make(["5 requests/min"])
    with (
        httpx.Client(
            transport=Transport(scheduler, observe_only=True), base_url="http://127.0.0.1:1"
        ) as client,
        pytest.raises(httpx.ConnectError),
    ):
        client.post(PATH, json=BODY)
    found = scheduler.explain(ASKS)
    assert found is not None
    assert found.limits[0].used == 0
    metrics = scheduler.get_metrics()
    assert (metrics["observed_requests"], metrics["requests_failed"]) == (1, 1)
    assert metrics["buckets"]["m"]["in_flight"] == 0


def test_what_would_have_to_be_asked_first_is_no_scheduler_for_it() -> None:
    with pytest.raises(ConfigurationError, match="observe_only: needs a Scheduler"):
        AsyncTransport(Limiter(["5 requests/min"]), observe_only=True)
    own = create_scheduler(None, backend=Own())
    with pytest.raises(ConfigurationError, match="backend of your own"):
        Transport(own, observe_only=True)
