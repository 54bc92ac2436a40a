"""A user's own backend: asked for many requests at a time, told of each reservation's end."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from own_backend import Own, asks, call, make
from users import Provider, run_without_reader, until

from headway import CapacityExceededError, Reservation
from headway._core import WithReservation


@pytest.fixture(autouse=True)
def keeps_credit_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.scheduler.remote._KEPT", 0.05)


async def told(backend: Own, count: int) -> None:
    while len(backend.told) < count:  # noqa: ASYNC110 - what is told has no event
        await asyncio.sleep(0.001)


def test_one_question_covers_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy the machine is: what is taken back is asked for again.
    monkeypatch.setattr("headway.scheduler.remote._KEPT", 60.0)

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
        # Who goes between two looks is asked for once more, and that is given back.
        assert 500 <= sum(requests for _, requests, _ in backend.asked) < 550
        assert 5_000 <= sum(tokens for _, _, tokens in backend.asked) < 5_500
        assert sum(used for _, _, used in backend.told) == 5_000

    asyncio.run(run())


def test_limits_that_its_provider_changes_reach_the_backend_but_no_given_one_is_changed() -> None:
    async def run() -> None:
        backend, provider = Own(), Provider()
        async with make(
            backend, refreshed=0.02, provider=provider, limits=["9_000 tokens/min"]
        ) as scheduler:
            await scheduler.submit_request(asks(), call)
            assert backend.given == ({"rpm_limit": 1000, "tpm_limit": 9_000}, 0.9)
            provider.rpm = 7
            asked = provider.asked["discover_limits"]
            await until(lambda: provider.asked["discover_limits"] >= asked + 2)
            while backend.given != ({"rpm_limit": 7, "tpm_limit": 9_000}, 0.9):
                await scheduler.submit_request(asks(), call)  # until it is asked again

    asyncio.run(asyncio.wait_for(run(), 20))


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
    before = set(threading.enumerate())
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
    # The first that finds the loop gone makes one, for all of them.
    own = [each for each in set(threading.enumerate()) - before if each.name == "headway-chores"]
    assert len(own) == 1
    asyncio.run(scheduler.stop(0))
    assert not own[0].is_alive()


def threads_of_chores() -> int:
    return sum(thread.name == "headway-chores" for thread in threading.enumerate())


def test_it_is_asked_on_a_loop_that_watches_no_descriptors() -> None:
    def bridges() -> int:
        return sum(each.name == "headway-bridge" for each in threading.enumerate())

    async def run() -> None:
        backend = Own()
        scheduler = make(backend, at_once=2)
        for _ in range(3):
            async with scheduler:
                requests = (scheduler.submit_request(asks(), call) for _ in range(9))
                assert await asyncio.wait_for(asyncio.gather(*requests), 10) == [42] * 9
            await until(lambda: bridges() <= before + 1)  # that of the loop's own mailbox

    before = bridges()
    run_without_reader(run())


def test_of_all_threads_that_find_the_loop_gone_one_makes_another() -> None:
    backend = Own()
    scheduler = make(backend)
    asyncio.run(scheduler.start())
    before = threads_of_chores()
    together = threading.Barrier(8)
    results: list[int] = []

    def work() -> None:
        together.wait(10)
        results.append(scheduler.submit_sync(asks(), lambda: 1))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [1] * 8
    assert threads_of_chores() == before + 1
    assert len([task for task in scheduler._chores._tasks if "Supply.run" in repr(task)]) == 1
    asyncio.run(scheduler.stop(0))
    assert threads_of_chores() == before


def test_a_thread_that_waits_is_served_though_the_loop_goes() -> None:
    backend = Own()
    scheduler = make(backend)
    results: list[int] = []
    thread = threading.Thread(
        target=lambda: results.append(scheduler.submit_sync(asks(), lambda: 1)), daemon=True
    )

    async def run() -> None:
        backend.failing = True
        await scheduler.start()
        thread.start()
        await asyncio.wait_for(backend.entered.wait(), 10)

    asyncio.run(run())
    backend.failing = False
    thread.join(10)
    assert results == [1]
    asyncio.run(scheduler.stop(0))


def test_many_buckets_need_one_descriptor_and_those_that_are_forgotten_leave_nothing() -> None:
    async def run() -> None:
        backend = Own()
        async with make(backend) as scheduler:
            await scheduler.submit_request(asks(model="first"), call)
            descriptors = len(os.listdir("/proc/self/fd"))
            for number in range(200):
                # Cancelled while the backend is asked: what it grants is nobody's.
                backend.entered.clear()
                task = asyncio.ensure_future(
                    scheduler.submit_request(asks(model=f"m{number}"), call)
                )
                await backend.entered.wait()
                task.cancel()
                await asyncio.wait([task])
            buckets = weakref.WeakSet(scheduler._buckets)
            assert len(buckets) == 201
            del task
            scheduler._buckets._forget()
            assert len(os.listdir("/proc/self/fd")) <= descriptors
            await asyncio.wait_for(told(backend, 201), 10)
            supply = scheduler._remote
            assert supply is not None
            while supply._holding:  # noqa: ASYNC110 - looked at by a timer
                await asyncio.sleep(0.01)
            assert scheduler._chores.count == 1, "one task for all of them"
            assert not list(buckets)
            assert not len(supply._buckets)

    asyncio.run(run())


def test_who_waits_for_another_limit_is_not_asked_for_and_holds_up_nobody_else() -> None:
    async def run() -> None:
        backend = Own()
        async with make(backend, limits=["100 images/hour"]) as scheduler:
            await scheduler.submit_request(asks(cost={"images": 90}), call)
            images = [
                asyncio.ensure_future(scheduler.submit_request(asks(0, cost={"images": 50}), call))
                for _ in range(60)
            ]
            await asyncio.sleep(0)
            assert await asyncio.wait_for(scheduler.submit_request(asks(), call), 5) == 42
            await asyncio.sleep(0.1)
            assert sum(requests for _, requests, _ in backend.asked) == 2
            for task in images:
                task.cancel()
            await asyncio.gather(*images, return_exceptions=True)

    asyncio.run(run())


def test_the_gate_holds_up_no_question_for_somebody_else() -> None:
    async def run() -> None:
        backend = Own()
        hold = asyncio.Event()
        async with make(backend, at_once=1) as scheduler:
            first = asyncio.ensure_future(
                scheduler.submit_request(asks(0, "first", cost={"requests": 0}), hold.wait)
            )
            await asyncio.sleep(0)
            free = asyncio.ensure_future(
                scheduler.submit_request(asks(0, cost={"requests": 0}), call)
            )
            await asyncio.sleep(0.02)
            asking = asyncio.ensure_future(scheduler.submit_request(asks(priority=5), call))
            await asyncio.wait_for(backend.entered.wait(), 5)
            hold.set()
            await asyncio.gather(first, free, asking)

    asyncio.run(run())


def test_credit_that_waits_for_its_turn_at_the_gate_is_kept() -> None:
    async def run() -> None:
        backend = Own()
        hold = asyncio.Event()
        async with make(backend, at_once=1) as scheduler:
            first = asyncio.ensure_future(scheduler.submit_request(asks(), hold.wait))
            await asyncio.wait_for(backend.entered.wait(), 5)
            second = asyncio.ensure_future(scheduler.submit_request(asks(model="n"), call))
            await asyncio.sleep(0.3)  # longer than unused credit is kept
            assert [key for key, _, _ in backend.asked] == ["m", "n"]
            hold.set()
            await asyncio.gather(first, second)
            assert len(backend.asked) == 2

    asyncio.run(run())


def test_a_stream_that_is_under_way_at_the_stop_counts_as_used() -> None:
    async def run() -> None:
        backend = Own()

        async def stream() -> AsyncIterator[int]:
            yield 1
            yield 2

        async with make(backend) as scheduler:
            given = await scheduler.submit_request(asks(30), stream)  # type: ignore[arg-type]
            await anext(given)
        assert backend.told == [("used", 30, 30)]
        assert [each async for each in given] == [2]
        async with scheduler:
            await scheduler.submit_request(asks(7), call)
        assert backend.told[1:] == [("used", 7, 7)]

    asyncio.run(run())


def test_a_function_that_gives_its_reservation_back_has_used_nothing() -> None:
    async def run() -> None:
        backend = Own()

        async def thinks_better(reservation: Reservation) -> None:
            assert reservation.cancel()

        async with make(backend) as scheduler:
            await scheduler.submit_request(asks(30), WithReservation(thinks_better))
            await scheduler.submit_request(asks(30), call)
            assert len(backend.asked) == 1, "what was given back is there for the next"
        assert backend.told == [("used", 30, 30)]

    asyncio.run(run())


def test_a_loop_that_was_closed_under_it_takes_nobody_along() -> None:
    backend = Own()
    scheduler = make(backend)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(scheduler.start())
    assert loop.run_until_complete(scheduler.submit_request(asks(), call)) == 42
    loop.run_until_complete(told(backend, 1))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # with the chores on it

    async def run() -> None:
        for _ in range(3):
            assert await asyncio.wait_for(scheduler.submit_request(asks(), call), 10) == 42
            gc.collect()  # what was left on the other loop
        assert scheduler._chores.is_this_loop()
        await scheduler.stop()

    asyncio.run(run())
    assert len(backend.told) == len(backend.asked)


@pytest.mark.parametrize("thread", [True, False])
def test_where_its_loop_stands_still_it_goes_on_elsewhere_and_nothing_is_told_twice(
    thread: bool,
) -> None:
    backend = Own()
    scheduler = make(backend)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(scheduler.start())
    # Left in the middle of a question.
    first = loop.create_task(scheduler.submit_request(asks(), call))
    loop.run_until_complete(backend.entered.wait())

    async def elsewhere() -> None:
        for _ in range(3):
            assert await asyncio.wait_for(scheduler.submit_request(asks(), call), 10) == 42
        assert scheduler._chores.is_this_loop()

    if thread:
        results: list[int] = []
        other = threading.Thread(
            target=lambda: results.append(scheduler.submit_sync(asks(), lambda: 42)), daemon=True
        )
        other.start()
        other.join(20)
        assert results == [42]
    else:
        asyncio.run(elsewhere())
    for _ in range(2):
        assert loop.run_until_complete(scheduler.submit_request(asks(), call)) == 42
    assert loop.run_until_complete(first) == 42
    loop.run_until_complete(scheduler.stop())
    left = [task.get_coro() for task in asyncio.all_tasks(loop)]
    assert not [each for each in left if "Supply.run" in getattr(each, "__qualname__", "")]
    loop.close()
    assert len(backend.told) == len(backend.asked)


def test_what_is_about_to_be_told_as_the_loop_ends_is_told_at_the_stop() -> None:
    backend = Own()
    scheduler = make(backend)

    async def run() -> None:
        await scheduler.start()
        # The task that tells makes another, which has not begun when all are cancelled.
        await scheduler.submit_request(asks(), call)

    asyncio.run(run())
    asyncio.run(scheduler.stop())
    assert backend.told == [("used", 10, 10)]


def test_what_its_limits_never_admit_fails_at_once() -> None:
    text = "can never fit in bucket 'm': needs 46 tokens, the limit is 45 (50 at ratio 0.9)"

    async def run() -> None:
        backend = Own()
        scheduler = make(backend, limits=["50 tokens/min"])
        async with scheduler:
            await scheduler.submit_request(asks(45), call)
            asked = len(backend.asked)
            for _ in range(2):  # the second finds its bucket without being asked for it
                with pytest.raises(CapacityExceededError, match=re.escape(text)) as raised:
                    await asyncio.wait_for(scheduler.submit_request(asks(46), call), 10)
                assert raised.value.bucket_id == "m"
            with pytest.raises(CapacityExceededError, match=re.escape(text)):
                await asyncio.wait_for(
                    asyncio.to_thread(scheduler.submit_sync, asks(46), lambda: 42), 10
                )
            assert scheduler.estimate(asks(46)) == math.inf
            assert scheduler.preview([asks(46)]).fits is False
            assert len(backend.asked) == asked

    asyncio.run(run())
