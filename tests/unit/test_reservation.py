"""ReservationTracker, against a plain model and by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headway.reservation
from headway import (
    ConfigurationError,
    ReservationCapacityError,
    ReservationContext,
    ReservationTracker,
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing: no loop is needed to run it."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("it waited")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(headway.reservation, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


REQUESTS = st.sampled_from(["r0", "r1", "r2", "r3"])
BUCKETS = st.sampled_from(["a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("store"), REQUESTS, BUCKETS),
        st.tuples(st.just("get"), REQUESTS, BUCKETS),
        st.tuples(st.just("take"), REQUESTS, st.one_of(st.none(), BUCKETS)),
        st.tuples(st.just("take all"), REQUESTS),
        st.tuples(st.just("take older"), st.integers(0, 8)),
        st.tuples(st.just("wait"), st.integers(1, 5)),
        st.tuples(st.just("compact")),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS)
def test_it_behaves_like_a_plain_table(steps: list[tuple[Any, ...]]) -> None:
    most, oldest = 4, 6
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        tracker = ReservationTracker(most, max_reservation_age=oldest)
        table: dict[tuple[str, str], tuple[float, str]] = {}

        def take_older(cutoff: float) -> list[str]:
            old = sorted((at, int(name), key) for key, (at, name) in table.items() if at < cutoff)
            for _, _, key in old:
                del table[key]
            return [str(name) for _, name, _ in old]

        for number, (verb, *given_) in enumerate(steps):
            if verb == "store":
                request, bucket = given_
                if (request, bucket) not in table and len(table) >= most:
                    take_older(clock.now - oldest)
                if (request, bucket) not in table and len(table) >= most:
                    with pytest.raises(ReservationCapacityError, match=r"at capacity \(4\)"):
                        at_once(tracker.store(request, bucket, str(number), number))
                else:
                    at_once(tracker.store(request, bucket, str(number), number))
                    table[request, bucket] = (clock.now, str(number))
            elif verb == "get":
                request, bucket = given_
                found = at_once(tracker.get(request, bucket))
                assert (found and (found.created_at, found.reservation_id)) == table.get(
                    (request, bucket)
                )
            elif verb == "take":
                request, bucket = given_
                found = at_once(tracker.get_and_clear(request, bucket))
                mine = {
                    k: v for k, v in table.items() if k[0] == request and bucket in (None, k[1])
                }
                assert (found is None) == (not mine)
                if found is not None:
                    assert table.pop((request, found.bucket_id))[1] == found.reservation_id
            elif verb == "take all":
                taken = at_once(tracker.clear_all_for_request(*given_))
                mine = {k: v for k, v in table.items() if k[0] == given_[0]}
                assert {each.reservation_id for each in taken} == {v[1] for v in mine.values()}
                for key in mine:
                    del table[key]
            elif verb == "take older":
                cutoff = clock.now - given_[0]
                taken = at_once(tracker.get_and_clear_stale(cutoff))
                assert [each.reservation_id for each in taken] == take_older(cutoff)
            elif verb == "wait":
                clock.now += given_[0]
            else:
                tracker.compact_heap()
                assert tracker.stale_entry_ratio == 0.0
            assert tracker.reservation_count == len(table)
            assert tracker.request_count == len({request for request, _ in table})
            assert 0.0 <= tracker.stale_entry_ratio <= 1.0


def test_a_reservation_is_stamped_by_the_monotonic_clock() -> None:
    before = monotonic()
    assert before <= ReservationContext("id", "b", 5).created_at <= monotonic()
    assert ReservationContext("id", "b", 5, 1.0) == ReservationContext("id", "b", 5, 1.0)


def test_room_is_made_of_stale_ones_only_and_not_for_one_that_is_replaced(clock: Clock) -> None:
    tracker = ReservationTracker(max_reservations=2, max_reservation_age=10)
    at_once(tracker.store("r0", "b", "id0", 1))
    clock.now += 10
    at_once(tracker.store("r1", "b", "id1", 1))
    with pytest.raises(ReservationCapacityError) as error:
        at_once(tracker.store("r2", "b", "id2", 1))
    assert str(error.value) == "Reservation tracker at capacity (2)"
    at_once(tracker.store("r1", "b", "again", 1))
    assert tracker.reservation_count == 2
    clock.now += 0.5
    at_once(tracker.store("r2", "b", "id2", 1))
    assert at_once(tracker.get("r0", "b")) is None
    assert at_once(tracker.get("r1", "b")).reservation_id == "again"


def test_what_was_ended_leaves_a_heap_entry_that_compacting_drops() -> None:
    tracker = ReservationTracker()
    assert tracker.stale_entry_ratio == 0.0
    for number in range(4):
        at_once(tracker.store(f"r{number}", "b", "id", 1))
    at_once(tracker.get_and_clear("r0"))
    assert tracker.stale_entry_ratio == 0.25
    assert tracker.compact_heap() == 1
    assert tracker.stale_entry_ratio == 0.0


def test_the_heap_stays_in_proportion_however_many_come_and_go() -> None:
    tracker = ReservationTracker()
    for number in range(20_000):
        at_once(tracker.store(f"r{number}", "b", "id", 1))
        at_once(tracker.get_and_clear(f"r{number}", "b"))
    assert len(tracker._heap) < 2000


def test_the_cleanup_drops_stale_ones_until_it_is_stopped(clock: Clock) -> None:
    async def main() -> None:
        tracker = ReservationTracker(max_reservation_age=10, stale_cleanup_interval=0.001)
        await tracker.start()
        cleanup = tracker._cleanup._task
        await tracker.start()
        assert cleanup is tracker._cleanup._task is not None
        await tracker.store("r", "b", "id", 1)
        clock.now += 11
        for _ in range(1000):
            await asyncio.sleep(0.005)
            if not tracker.reservation_count:
                break
        assert tracker.reservation_count == 0
        await tracker.stop()
        await tracker.stop()
        assert cleanup.done()
        await tracker.store("r", "b", "id", 1)
        clock.now += 11
        await asyncio.sleep(0.02)
        assert tracker.reservation_count == 1

    run(main())


def test_the_cleanup_starts_again_after_its_loop_was_closed_with_it() -> None:
    tracker = ReservationTracker(stale_cleanup_interval=1000)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(tracker.start())
    first = tracker._cleanup._task
    assert first is not None
    first.cancel()
    # The loop is closed before the task has seen it.
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def main() -> None:
        await tracker.start()
        assert tracker._cleanup._task is not first
        await tracker.stop()

    run(main())


def test_it_may_be_stopped_from_another_loop() -> None:
    async def main() -> None:
        tracker = ReservationTracker(stale_cleanup_interval=1000)
        await tracker.start()
        cleanup = tracker._cleanup._task
        assert cleanup is not None
        await asyncio.to_thread(lambda: run(tracker.stop()))
        await asyncio.wait([cleanup])

    run(main())


def test_several_threads_with_loops_of_their_own_lose_nothing() -> None:
    tracker = ReservationTracker()
    lost: list[str] = []

    async def use(thread: int) -> None:
        for number in range(500):
            request = f"r{thread}-{number}"
            await tracker.store(request, "a", request, 1)
            await tracker.store(request, "b", request, 1)
            if await tracker.get_and_clear(request, "a") is None:
                lost.append(request)
            if len(await tracker.clear_all_for_request(request)) != 1:
                lost.append(request)

    threads = [
        threading.Thread(target=lambda each=each: run(use(each)))  # type: ignore[misc]
        for each in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert (tracker.reservation_count, tracker.request_count) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_reservations": 0},
        {"max_reservation_age": -1},
        {"max_reservation_age": float("nan")},
        {"stale_cleanup_interval": 0},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        ReservationTracker(**options)
