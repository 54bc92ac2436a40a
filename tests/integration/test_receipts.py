"""Each refusal has a receipt: what of ours was sent, what the answer said, and what it comes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from running import run, write_requests

from headway import ManualClock, RateLimiterConfig, Receipt, RequestMetadata
from headway.receipts import VERDICTS
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport, Transport

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ASKS = RequestMetadata("r", "m", "text")


def make(limits: Any = None, **options: Any) -> Scheduler:
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    config = RateLimiterConfig(max_retries=0, **options)
    return create_scheduler(None, config=config, limits=limits)


def receipts_of(scheduler: Scheduler) -> tuple[Receipt, ...]:
    found = scheduler.explain(ASKS)
    assert found is not None
    return found.receipts


def send(
    scheduler: Scheduler, url: str, calls: int, between: Callable[[int], None] | None = None
) -> list[int]:
    """The statuses of so many calls, one after another."""

    async def main() -> list[int]:
        statuses = []
        async with (
            scheduler,
            httpx.AsyncClient(transport=AsyncTransport(scheduler), base_url=url) as client,
        ):
            for number in range(calls):
                if between is not None:
                    between(number)
                answer = await client.post("/v1/chat/completions", json=BODY)
                statuses.append(answer.status_code)
        return statuses

    return asyncio.run(asyncio.wait_for(main(), 50))


def use_up(url: str, calls: int) -> None:
    """Somebody else's calls."""
    with httpx.Client(base_url=url) as client:
        for _ in range(calls):
            assert client.post("/v1/chat/completions", json=BODY).status_code == 200


def verdicts_of(scheduler: Scheduler) -> dict[str, int]:
    found: dict[str, int] = scheduler.get_metrics()["refusal_verdicts"]
    return {name: count for name, count in found.items() if count}


def test_more_than_the_limit_was_ours() -> None:
    # The limit is known, but not how it counts: the server takes no more than 10 in any 10 s.
    with SimulatorProcess("--limits", "10 requests/10s window", "--latency", "0") as simulator:
        scheduler = make(["10 requests/10s bucket"])
        statuses = send(scheduler, simulator.url, 11)
    assert statuses == [200] * 10 + [429]
    (receipt,) = receipts_of(scheduler)
    assert receipt.verdict == "ours"
    kept = next(use for use in receipt.uses if use.limit is not None)
    assert (kept.resource, kept.kept, kept.sent, kept.asked) == ("requests", 10, 11, 1)
    assert receipt.retry_after is not None
    assert 0 < receipt.retry_after <= 10
    assert receipt.error == "requests"
    assert verdicts_of(scheduler) == {"ours": 1}


def test_what_others_use_is_another_consumers() -> None:
    with SimulatorProcess("--limits", "10 requests/min window", "--latency", "0") as simulator:
        use_up(simulator.url, 8)
        scheduler = make(["10 requests/min window"])
        statuses = send(
            scheduler,
            simulator.url,
            2,
            # One that they take between what the first answer told and the second request.
            lambda number: use_up(simulator.url, 1) if number == 1 else None,
        )
    assert statuses == [200, 429]
    (receipt,) = receipts_of(scheduler)
    assert receipt.verdict == "another consumer"
    (requests, *_) = receipt.uses
    assert (requests.kept, requests.sent, requests.asked) == (10, 2, 1)
    assert (requests.stated, requests.remaining) == (10, 0)
    assert requests.reset is not None
    assert verdicts_of(scheduler) == {"another consumer": 1}


def test_a_limit_that_was_lowered_has_changed() -> None:
    with SimulatorProcess("--limits", "100 requests/min window", "--latency", "0") as simulator:

        def lower(number: int) -> None:
            if number == 12:
                simulator.set_limits(["10 requests/min window"])

        scheduler = make()
        statuses = send(scheduler, simulator.url, 13, lower)
    assert statuses == [200] * 12 + [429]
    (receipt,) = receipts_of(scheduler)
    assert receipt.verdict == "changed"
    requests = next(use for use in receipt.uses if use.resource == "requests")
    assert (requests.kept, requests.stated, requests.sent) == (100, 10, 13)
    # It has learnt by the receipt what is kept to from now on.
    assert requests.limit is not None
    assert requests.limit.amount == 10
    assert verdicts_of(scheduler) == {"changed": 1}


def test_what_flows_back_into_a_bucket_is_not_ours() -> None:
    class Anthropic:
        base_url = "https://api.anthropic.com"

    clock = ManualClock()
    left = 10

    async def ask() -> Any:
        nonlocal left
        status, left = (429, 0) if left == 0 else (200, left - 1)
        told = {"limit": "10", "remaining": str(left)}
        headers = {f"anthropic-ratelimit-requests-{name}": told[name] for name in told}
        return httpx.Response(status, headers=headers)

    async def main() -> Scheduler:
        nonlocal left
        config = RateLimiterConfig(max_retries=0, rate_limit_buffer_ratio=1.0)
        async with create_scheduler(Anthropic(), config=config, clock=clock) as scheduler:
            for _ in range(10):
                await scheduler.submit_request(ASKS, ask)
            clock.advance(40)
            left = 6  # have flowed back
            for _ in range(4):
                await scheduler.submit_request(ASKS, ask)
            left = 0  # somebody else has taken the rest
            await scheduler.submit_request(ASKS, ask)
        return scheduler

    scheduler = asyncio.run(asyncio.wait_for(main(), 50))
    (receipt,) = receipts_of(scheduler)
    (requests,) = (use for use in receipt.uses if use.resource == "requests")
    assert requests.limit is not None
    assert requests.limit.shape == "bucket"
    # All of fifteen were sent in the last minute.
    assert (requests.sent, requests.stated) == (9, 10)
    assert receipt.verdict == "another consumer"


def test_a_refusal_with_plenty_left_is_capacity() -> None:
    options = ("--limits", "100 requests/min window", "--hidden", "3 requests/min window")
    with SimulatorProcess(*options, "--latency", "0") as simulator:
        scheduler = make(["100 requests/min window"])
        assert send(scheduler, simulator.url, 4) == [200, 200, 200, 429]
    (receipt,) = receipts_of(scheduler)
    assert receipt.verdict == "capacity"
    assert (receipt.uses[0].sent, receipt.uses[0].stated, receipt.uses[0].remaining) == (4, 100, 97)
    assert receipt.uses[0].has_room


def test_a_refusal_that_is_silent_where_others_tell_is_capacity() -> None:
    # What fails so has no headers of limits; all other answers have.
    options = ("--limits", "100 requests/min window", "--fail", "429:0.5", "--seed", "1")
    with SimulatorProcess(*options, "--latency", "0") as simulator:
        scheduler = make(["100 requests/min window"], max_backoff=0.001)
        statuses = send(scheduler, simulator.url, 12)
    refused = statuses.count(429)
    unheard = statuses.index(200)
    assert refused > unheard
    capacity = {"capacity": refused - unheard}
    assert verdicts_of(scheduler) == capacity | ({"another consumer": unheard} if unheard else {})


def test_what_nobody_tells_of_is_unknown() -> None:
    options = ("--limits", "1 requests/min window", "--latency", "0", "--no-headers")
    with SimulatorProcess(*options) as simulator:
        scheduler = make()
        assert send(scheduler, simulator.url, 2) == [200, 429]
    (receipt,) = receipts_of(scheduler)
    assert (receipt.verdict, receipt.uses) == ("unknown", ())
    assert "no limit is known" in str(receipt)


@pytest.mark.parametrize(
    ("error", "verdict", "shown"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, "capacity", "overloaded_error"),
        ({"code": "x", "message": "The model is overloaded."}, "capacity", "x"),
        ({"type": "insufficient_quota", "message": "spent"}, "unknown", "insufficient_quota"),
        ({"type": "requests", "message": "Rate limit"}, "another consumer", "requests"),
        # What is no word may be anything, a key for one.
        ({"type": "key sk-abc of you", "message": "no"}, "another consumer", None),
        ({"type": "sk-1234567890abcdefghijkl"}, "another consumer", "…"),
        ("broken", "another consumer", None),
    ],
)
def test_the_error_says_what_headers_do_not(error: object, verdict: str, shown: str | None) -> None:
    class Refused(Exception):
        status_code = 429
        body = {"error": error}  # noqa: RUF012

    async def refuse() -> None:
        raise Refused

    async def main() -> Scheduler:
        async with make(["10 requests/min"]) as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(ASKS, refuse)
        return scheduler

    (receipt,) = receipts_of(asyncio.run(main()))
    assert (receipt.verdict, receipt.error) == (verdict, shown)
    assert receipt.verdict in VERDICTS


def test_the_last_sixteen_are_kept_and_one_is_logged_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ("--limits", "1 requests/min window", "--latency", "0", "--no-headers")
    with SimulatorProcess(*options) as simulator, caplog.at_level(logging.DEBUG, "headway"):
        scheduler = make(["1000 requests/min bucket"], max_backoff=0.001)

        def ask() -> list[int]:
            with (
                scheduler,
                httpx.Client(transport=Transport(scheduler), base_url=simulator.url) as client,
            ):
                headers = {"authorization": "Bearer sk-secret"}
                return [
                    client.post("/v1/chat/completions", json=BODY, headers=headers).status_code
                    for _ in range(3)
                ]

        async def refuse() -> Any:
            return httpx.Response(429, headers={"retry-after": "0"})

        async def more() -> None:
            async with scheduler:
                for _ in range(18):
                    await scheduler.submit_request(ASKS, refuse)

        assert ask()[0] == 200
        asyncio.run(more())
    receipts = receipts_of(scheduler)
    assert len(receipts) == 16
    assert [each.at for each in receipts] == sorted(each.at for each in receipts)
    assert verdicts_of(scheduler) == {"another consumer": 20}
    said = [each for each in caplog.records if "refused" in each.getMessage()]
    assert [each.levelno for each in said].count(logging.WARNING) == 1
    assert [each.levelno for each in said].count(logging.DEBUG) == 19
    assert said[0].levelno == logging.WARNING
    assert "kept to 1000, sent 2" in said[0].getMessage()
    assert not any("secret" in each.getMessage() for each in caplog.records)
    explained = str(scheduler.explain(ASKS))
    assert explained.count("refused: another consumer") == 3


def test_prometheus_counts_them_by_verdict() -> None:
    from headway.metrics import exposition

    async def refuse() -> Any:
        return httpx.Response(429)

    async def main() -> None:
        async with make(["10 requests/min"]) as scheduler:
            request = RequestMetadata("r", "of-the-receipts", "text")
            await scheduler.submit_request(request, refuse)
            name = 'headway_refusal_verdicts_total{scheduler="default",bucket="of-the-receipts"'
            text = exposition()
            assert f'{name},verdict="another consumer"}} 1\n' in text
            assert f'{name},verdict="ours"}} 0\n' in text

    asyncio.run(main())


def test_a_run_of_a_file_says_why_it_was_refused(tmp_path: Any) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 20)
    options = ("--limits", "1_000 requests/min window", "--hidden", "10 requests/s window")
    with SimulatorProcess(*options, "--latency", "0") as simulator:
        ended = run(requests, simulator.url)
        refused = simulator.stats()["refused"]
    assert refused > 1
    assert (ended.status, ended.summary["refusals"]) == (0, refused)
    # Nobody tells of the limit that refuses.
    assert ended.stderr.count("refused (requests): capacity") == 1
    assert "stated 1000, remaining" in ended.stderr
