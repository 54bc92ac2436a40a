"""Chores and Threads: where a scheduler's side work runs, and that it ends."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from headway.scheduler._threads import Threads
from headway.scheduler.chores import Chores, LoopEnded


def names(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


# -- chores ---------------------------------------------------------------------------------------


def test_before_a_loop_is_chosen_nothing_runs() -> None:
    chores = Chores()
    assert chores.loop_is_gone
    assert not chores.loop_runs
    assert not chores.is_this_loop()
    chores.start(lambda: asyncio.sleep(0))
    chores.stop()


def test_they_run_on_the_loop_that_was_chosen_from_wherever_they_are_started() -> None:
    async def run() -> None:
        chores = Chores()
        chores.on_this_loop()
        assert chores.loop_runs
        assert chores.is_this_loop()
        ran: asyncio.Queue[int] = asyncio.Queue()

        async def chore() -> None:
            ran.put_nowait(threading.get_ident())

        chores.start(chore)
        await asyncio.to_thread(chores.start, chore)
        assert await ran.get() == await ran.get() == threading.get_ident()

        async def double(number: int) -> int:
            return 2 * number

        assert await asyncio.to_thread(lambda: chores.send(lambda: double(3)).wait()) == 6

    asyncio.run(run())


def test_stopping_cancels_them() -> None:
    async def run() -> None:
        chores = Chores()
        chores.on_this_loop()
        ended = asyncio.Event()
        begun = asyncio.Event()

        async def chore() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        chores.start(chore)
        await begun.wait()
        chores.stop()
        await asyncio.wait_for(ended.wait(), 5)
        assert chores.loop_is_gone
        chores.start(chore)
        assert not chores._tasks

    asyncio.run(run())


def test_a_chore_that_raises_takes_no_other_along() -> None:
    async def run() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, said: problems.append(said))
        chores = Chores()
        chores.on_this_loop()
        ran = asyncio.Event()

        async def bad() -> None:
            raise ValueError

        async def good() -> None:
            ran.set()

        chores.start(bad)
        chores.start(good)
        await asyncio.wait_for(ran.wait(), 5)

    asyncio.run(run())


def test_a_loop_that_was_closed_is_gone_and_what_is_started_then_is_dropped() -> None:
    chores = Chores()

    async def choose() -> None:
        chores.on_this_loop()

    asyncio.run(choose())
    assert chores.loop_is_gone
    chores.start(lambda: asyncio.sleep(0))
    chores.stop()


def test_a_loop_that_is_not_running_now_is_there_but_waits_for_nobody() -> None:
    chores = Chores()

    async def choose() -> None:
        chores.on_this_loop()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(choose())
    assert not chores.loop_is_gone
    assert not chores.loop_runs
    loop.close()


def test_a_loop_of_their_own_ends_with_them() -> None:
    before = set(threading.enumerate())  # other tests' may end meanwhile
    chores = Chores()
    chores.on_own_loop()
    (own,) = (each for each in set(threading.enumerate()) - before if each.name == "headway-chores")

    async def where() -> str:
        return threading.current_thread().name

    assert chores.send(where).wait() == "headway-chores"
    chores.start(lambda: asyncio.sleep(60))
    chores.stop()
    assert not own.is_alive()
    chores.stop()


def test_who_finds_their_loop_gone_begins_them_here_unless_they_were_stopped() -> None:
    async def run() -> None:
        chores = Chores()
        begun: list[int] = []
        chores.adopt(lambda: begun.append(0))
        assert not begun, "nobody has started them"
        chores.on_this_loop()
        chores.adopt(lambda: begun.append(1))
        assert not begun, "their loop is there"
        chores.leave()
        assert chores.loop_is_gone
        chores.adopt(lambda: begun.append(2))
        assert chores.is_this_loop()
        chores.leave()
        chores.adopt(lambda: begun.append(3), own=True)
        assert chores.loop_runs
        assert not chores.is_this_loop()
        chores.leave()
        assert chores.loop_runs, "that is not theirs"
        chores.stop()
        chores.adopt(lambda: begun.append(4))
        assert chores.loop_is_gone
        assert begun == [2, 3]

    asyncio.run(run())


def test_where_their_loop_stands_still_they_move_and_are_over_there_when_it_runs_again() -> None:
    chores = Chores()
    ended: list[str] = []

    async def chore(name: str, lasts: bool) -> None:
        try:
            if lasts:
                await asyncio.Event().wait()
            else:
                for _ in range(3):
                    await asyncio.sleep(0)
            ended.append(name)
        except asyncio.CancelledError:
            ended.append(f"{name} cancelled")

    async def begin() -> None:
        chores.on_this_loop()
        chores.start(lambda: chore("lasting", True))
        chores.start(lambda: chore("ending", False), ends=True)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    begun: list[int] = []
    chores.adopt(lambda: begun.append(1))
    chores.adopt(lambda: begun.append(2))
    assert begun == [1]
    assert chores.loop_runs
    assert not ended
    assert not chores.count

    async def again() -> None:
        assert not chores.is_this_loop()
        assert not chores.has_this_task()
        while len(ended) < 2:  # noqa: ASYNC110 - one of them ends by being cancelled
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(again(), 10))
    assert sorted(ended) == ["ending", "lasting cancelled"]
    chores.stop()
    loop.close()


def test_where_no_thread_can_be_made_for_them_a_later_one_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chores = Chores()

    async def choose() -> None:
        chores.on_this_loop()

    asyncio.run(choose())

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            chores.adopt(lambda: None)
    begun: list[int] = []
    chores.adopt(lambda: begun.append(1))
    assert begun == [1]
    assert chores.loop_runs
    chores.stop()


def test_what_is_on_its_way_to_a_loop_that_they_leave_goes_with_them() -> None:
    async def run() -> None:
        chores = Chores()
        chores.on_this_loop()
        ran = threading.Event()
        where: list[str] = []

        async def chore() -> None:
            where.append(threading.current_thread().name)
            ran.set()

        thread = threading.Thread(target=chores.start, args=(chore,))
        thread.start()
        thread.join(10)
        chores.leave()
        chores.adopt(lambda: None, own=True)
        assert await asyncio.to_thread(ran.wait, 10)
        assert where == ["headway-chores"]
        chores.stop()

    asyncio.run(run())


def test_on_a_loop_that_they_have_left_and_that_goes_on_they_end() -> None:
    async def run() -> None:
        chores = Chores()
        chores.on_this_loop()
        ended, goes_on, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        begun: asyncio.Queue[str] = asyncio.Queue()
        here = asyncio.get_running_loop()

        async def lasting() -> None:
            loop = asyncio.get_running_loop()
            begun.put_nowait("here")
            try:
                await asyncio.Event().wait()
            finally:
                assert loop is here
                ended.set()

        async def ending() -> None:
            begun.put_nowait("here")
            await left.wait()
            goes_on.set()

        async def elsewhere() -> None:
            here.call_soon_threadsafe(begun.put_nowait, threading.current_thread().name)
            await asyncio.Event().wait()

        chores.start(lasting)
        chores.start(ending, ends=True)
        assert [await begun.get(), await begun.get()] == ["here", "here"]
        chores.leave()
        assert not chores.count
        chores.adopt(lambda: chores.start(elsewhere), own=True)
        assert await asyncio.wait_for(begun.get(), 20) == "headway-chores"
        await asyncio.wait_for(ended.wait(), 20)
        left.set()
        await asyncio.wait_for(goes_on.wait(), 20)
        assert chores.count == 1
        chores.stop()

    asyncio.run(run())


def test_a_question_that_was_stopped_takes_no_chores_of_a_new_start_from_their_loop() -> None:
    async def run() -> None:
        chores = Chores()
        chores.on_this_loop()
        asked = asyncio.Event()

        async def question() -> None:
            asked.set()
            await asyncio.Event().wait()

        errand = chores.send(question)
        await asked.wait()
        chores.stop()
        chores.on_this_loop()
        chores.start(lambda: asyncio.sleep(60))
        with pytest.raises(LoopEnded):
            await asyncio.wait_for(asyncio.wrap_future(errand.over), 20)
        assert chores.is_this_loop()
        assert chores.count == 1
        chores.stop()

    asyncio.run(run())


# -- threads --------------------------------------------------------------------------------------


def test_there_are_no_more_threads_than_allowed_and_all_calls_get_their_turn() -> None:
    async def run() -> None:
        threads = Threads(3, "headway-test-most")
        running = most = 0
        lock = threading.Lock()
        gate = threading.Event()

        def work() -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 3:
                    gate.set()
            gate.wait(10)
            with lock:
                running -= 1
            return 1

        assert sum(await asyncio.gather(*(threads.call(work) for _ in range(50)))) == 50
        assert most == 3
        assert len(names("headway-test-most")) <= 3

    asyncio.run(run())


def test_one_after_another_they_need_one_thread() -> None:
    async def run() -> None:
        threads = Threads(8, "headway-test-one")
        ids = set()
        for _ in range(50):
            ids.add(await threads.call(threading.get_ident))
            await asyncio.sleep(0)
        assert len(ids) <= 2

    asyncio.run(run())


def test_calls_that_need_each_other_are_called_side_by_side() -> None:
    async def run() -> None:
        threads = Threads(2, "headway-test-pairs", idle=0.002)
        for number in range(2000):
            both = threading.Barrier(2)
            first = asyncio.ensure_future(threads.call(lambda both=both: both.wait(10)))  # type: ignore[misc]
            if number % 2:
                await asyncio.sleep(0)  # a thread is on its way to the first
            second = asyncio.ensure_future(threads.call(lambda both=both: both.wait(10)))  # type: ignore[misc]
            assert sorted(await asyncio.gather(first, second)) == [0, 1]

    asyncio.run(run())


def test_without_work_they_go_and_come_back() -> None:
    async def run() -> None:
        threads = Threads(2, "headway-test-idle", idle=0.01)
        for _ in range(3):
            assert await threads.call(lambda: 1) == 1
            for thread in threading.enumerate():
                if thread.name == "headway-test-idle":
                    await asyncio.to_thread(thread.join, 10)
            assert not names("headway-test-idle")

    asyncio.run(run())


def test_calls_that_come_as_a_thread_is_leaving_are_not_lost() -> None:
    async def run() -> None:
        threads = Threads(2, "headway-test-leaving", idle=0.0005)
        for _ in range(500):
            await asyncio.wait_for(threads.call(lambda: 1), 5)
            await asyncio.sleep(0.0005)

    asyncio.run(run())


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_the_function_raises_is_its_callers(error: BaseException) -> None:
    async def run() -> None:
        threads = Threads(1, "headway-test-raise")

        def raises() -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            await threads.call(raises)
        assert caught.value is error
        assert await threads.call(lambda: 1) == 1, "the thread lives on"

    asyncio.run(run())


def test_a_stop_iteration_is_one_that_a_future_can_carry() -> None:
    async def run() -> None:
        threads = Threads(1, "headway-test-stop")
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.call(lambda: next(iter(())))

    asyncio.run(run())


def test_one_that_nobody_waits_for_any_more_is_finished_all_the_same() -> None:
    async def run() -> threading.Event:
        threads = Threads(1, "headway-test-left")
        begun, gate, done = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            gate.wait(10)
            done.set()

        task = asyncio.ensure_future(threads.call(work))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        assert await threads.call(lambda: 1) == 1
        return done

    assert asyncio.run(run()).wait(10)


def test_those_that_hang_and_were_given_up_on_keep_no_others_from_being_called() -> None:
    async def run() -> None:
        threads = Threads(2, "headway-test-hang")
        gate = threading.Event()
        for _ in range(3):  # more than there are threads
            hanging = [threading.Event() for _ in range(2)]
            tasks = [
                asyncio.ensure_future(threads.call(lambda each=each: (each.set(), gate.wait(20))))  # type: ignore[misc]
                for each in hanging
            ]
            for each in hanging:
                assert await asyncio.to_thread(each.wait, 10)
            behind = asyncio.ensure_future(threads.call(lambda: 1))
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            assert await asyncio.wait_for(behind, 10) == 1
        assert len(names("headway-test-hang")) > 6
        gate.set()
        # Those that were replaced end; the others serve.
        for _ in range(10):
            assert await threads.call(lambda: 1) == 1
        while len(names("headway-test-hang")) > 2:  # noqa: ASYNC110 - a thread's end has no event
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_loop_that_was_closed_meanwhile_hurts_no_thread() -> None:
    threads = Threads(1, "headway-test-closed")
    gate = threading.Event()

    async def leave() -> None:
        task = asyncio.ensure_future(threads.call(lambda: gate.wait(10)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    gate.set()

    async def again() -> None:
        assert await threads.call(lambda: 1) == 1

    asyncio.run(again())


def test_where_no_thread_can_be_made_a_later_call_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        threads = Threads(1, "headway-test-none")

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.call(lambda: 1)
        assert await asyncio.wait_for(threads.call(lambda: 2), 5) == 2

    asyncio.run(run())


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    async def run() -> list[int]:
        threads = Threads(1, "headway-test-unbegun")
        gate = threading.Event()
        began: list[int] = []
        first = asyncio.ensure_future(threads.call(lambda: gate.wait(10)))
        left = [
            asyncio.ensure_future(threads.call(lambda number=number: began.append(number)))
            for number in range(5)
        ]
        await asyncio.sleep(0)
        for task in left[:4]:
            task.cancel()
        await asyncio.wait(left[:4])
        gate.set()
        await asyncio.gather(first, left[4])
        return began

    assert asyncio.run(run()) == [4]
