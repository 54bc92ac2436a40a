"""A user's own backend: asked for many requests at a time, told of each reservation's end."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from own_backend import Own, asks, call, make


async def told(backend: Own, count: int) -> None:
    while len(backend.told) < count:  # noqa: ASYNC110 - what is told has no event
        await asyncio.sleep(0.001)


def test_one_question_covers_many_requests() -> None:
    async def run() -> None:
        backend = Own()
        async with make(backend, limits=["5_000 requests/min", "7 concurrency"]) as scheduler:
            results = await asyncio.gather(
                *(scheduler.submit_request(asks(), call) for _ in range(500))
            )
            assert results == [42] * 500
            assert backend.given == ({"rpm_limit": 5_000}, 0.9)
            await asyncio.wait_for(told(backend, 10), 10)
        assert len(backend.asked) <= 40
        assert sum(requests for _, requests, _ in backend.asked) == 500
        assert sum(tokens for _, _, tokens in backend.asked) == 5_000
        assert sum(used for _, _, used in backend.told) == 5_000

    asyncio.run(run())


def test_it_never_lets_more_through_than_the_backend_grants() -> None:
    async def run() -> None:
        backend = Own(rpm=30)
        ran = 0

        async def count() -> None:
            nonlocal ran
            ran += 1

        async with make(backend) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), count)) for _ in range(100)
            ]
            await asyncio.sleep(0.5)
            assert ran == 30
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_usage_is_told_and_what_nobody_used_is_given_back() -> None:
    async def run() -> None:
        backend = Own()

        async def used() -> dict[str, Any]:
            return {"usage": {"total_tokens": 3}}

        async with make(backend) as scheduler:
            await scheduler.submit_request(asks(10), used)
            await asyncio.wait_for(told(backend, 1), 10)
            assert backend.told == [("used", 10, 3)]
            # Cancelled while the backend is asked.
            task = asyncio.ensure_future(scheduler.submit_request(asks(10), call))
            backend.entered.clear()
            await backend.entered.wait()
            task.cancel()
            await asyncio.wait_for(told(backend, 2), 10)
            assert backend.told[1] == ("unused", 0, 0)

    asyncio.run(run())


def test_what_the_last_requests_used_is_told_before_it_stops() -> None:
    async def run() -> list[tuple[str, int, int]]:
        backend = Own()

        async def used() -> dict[str, Any]:
            return {"usage": {"total_tokens": 10}}

        async with make(backend) as scheduler:
            await scheduler.submit_request(asks(10_000), used)
        return backend.told

    assert asyncio.run(run()) == [("used", 10_000, 10)]


def test_a_large_one_is_not_starved_by_small_ones() -> None:
    async def run() -> None:
        backend = Own(tpm=100)
        order: list[int] = []

        def one(tokens: int) -> Any:
            async def append() -> None:
                order.append(tokens)

            return append

        async with make(backend) as scheduler:
            await scheduler.submit_request(asks(50), one(50))
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(tokens), one(tokens)))
                for tokens in (90, 5, 5)
            ]
            await asyncio.sleep(0.2)
            assert order == [50], "nobody passes the one whose turn it is"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_losing_it_never_means_unlimited(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        backend = Own()
        backend.failing = True
        async with make(backend) as scheduler:
            task = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            await asyncio.sleep(0.1)
            assert not task.done()
            assert scheduler.get_metrics()["user_code_errors"]["backend"] >= 1
            backend.failing = False
            assert await asyncio.wait_for(task, 10) == 42

    with caplog.at_level(logging.WARNING, "headway"):
        asyncio.run(run())
    assert caplog.text.count("check_and_reserve_capacity of backend 'Own'") == 1


def test_it_goes_on_when_the_loop_that_it_was_started_on_has_gone_and_from_threads() -> None:
    backend = Own()
    scheduler = make(backend)

    async def start() -> None:
        await scheduler.start()
        assert await scheduler.submit_request(asks(), call) == 42

    async def go_on() -> None:
        assert await asyncio.wait_for(scheduler.submit_request(asks(), call), 10) == 42

    asyncio.run(start())
    asyncio.run(go_on())
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(scheduler.submit_sync(asks(), lambda: 1)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [1] * 5
    asyncio.run(scheduler.stop(0))
