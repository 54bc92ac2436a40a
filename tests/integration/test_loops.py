"""Event loops, threads, forks and the end of the interpreter: nothing leaks, nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from users import run_without_reader

from headway import DeadlineExceededError, Limiter, ManualClock, _core

try:
    import uvloop
except ImportError:  # pragma: no cover - installed wherever the tests run in earnest
    uvloop = None  # type: ignore[assignment]

Runner = Callable[[Coroutine[Any, Any, Any]], Any]


def _run_on_uvloop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


@pytest.fixture(params=["asyncio", "uvloop", "no add_reader"])
def run(request: pytest.FixtureRequest) -> Runner:
    if request.param == "uvloop":
        return _run_on_uvloop
    return run_without_reader if request.param == "no add_reader" else asyncio.run


def test_everybody_is_admitted_in_order_and_on_time(run: Runner) -> None:
    limiter = Limiter("200 requests/s bucket burst 10")

    async def wait(i: int) -> int:
        async with limiter.acquire():
            return i

    async def main() -> list[int]:
        order: list[int] = []
        tasks = [asyncio.ensure_future(wait(i)) for i in range(110)]
        for task in tasks:
            task.add_done_callback(lambda t: order.append(t.result()))
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        await asyncio.sleep(0)
        return order

    began = time.monotonic()
    assert run(main()) == list(range(110))
    assert time.monotonic() - began >= 0.5, "100 beyond the burst at 200/s"


def test_a_limiter_outlives_its_loops(run: Runner) -> None:
    limiter = Limiter("1000 requests/s bucket burst 1")

    async def main() -> None:
        for _ in range(3):
            await asyncio.wait_for(limiter.acquire(), 5)

    for _ in range(3):
        run(main())


def test_several_loops_in_several_threads_wait_at_once(run: Runner) -> None:
    limiter = Limiter("2000 requests/s bucket burst 1")
    done: list[int] = []

    def thread() -> None:
        async def main() -> None:
            async def one() -> None:
                async with limiter.acquire():
                    done.append(1)

            await asyncio.wait_for(asyncio.gather(*(one() for _ in range(100))), 30)

        run(main())

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(done) == 400
    assert limiter.explain().waiting == 0


def test_the_socketpair_mailbox_works_as_the_eventfd_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_core.Mailbox] = []
    original = _core.Mailbox

    def paired() -> _core.Mailbox:
        made.append(original(socketpair=True))
        return made[-1]

    monkeypatch.setattr(_core, "Mailbox", paired)
    limiter = Limiter("1000 requests/s bucket burst 1")

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(one() for _ in range(50))), 10)

    async def one() -> None:
        await limiter.acquire()

    asyncio.run(main())
    assert len(made) == 1


def test_a_task_cancelled_while_it_waits_gives_its_place_back() -> None:
    clock = ManualClock()
    limiter = Limiter("60 requests/min bucket burst 1", clock=clock)

    async def main() -> None:
        assert limiter.try_acquire()
        first, second = (asyncio.ensure_future(wait()) for _ in range(2))
        await turn()
        first.cancel()
        await turn()
        assert limiter.explain().waiting == 1
        clock.advance(1)
        await asyncio.wait_for(second, 5)

    async def wait() -> None:
        await limiter.acquire()

    asyncio.run(main())


def test_a_task_cancelled_between_its_wake_up_and_its_next_step_gives_back_what_it_got() -> None:
    clock = ManualClock()
    limiter = Limiter(["60 requests/min bucket burst 1", "1 concurrency"], clock=clock)

    async def main() -> None:
        for at_step in range(4):
            assert limiter.try_reserve().settle()
            task = asyncio.ensure_future(wait())
            await turn()
            clock.advance(1)  # admitted, posted; the task has not run yet
            for _ in range(at_step):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            look = limiter.explain()
            assert [state.used for state in look.limits] == [0, 0], at_step
            assert look.waiting == 0
            clock.advance(1)

    async def wait() -> None:
        reservation = await limiter.acquire()
        try:
            await asyncio.sleep(60)
        finally:
            # From the step on at which the task has it, giving it back is the task's affair.
            assert reservation.cancel()

    asyncio.run(main())


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_loop_closed_with_waiters_leaves_nothing_behind() -> None:
    clock = ManualClock()
    limiter = Limiter("60 requests/min bucket burst 1", clock=clock)
    assert limiter.try_acquire()
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        await limiter.acquire()

    async def main() -> list[asyncio.Task[None]]:
        tasks = [asyncio.ensure_future(wait()) for _ in range(50)]
        await turn()
        return tasks

    tasks = loop.run_until_complete(main())
    assert limiter.explain().waiting == 50
    loop.close()
    clock.advance(2)  # one is admitted and posted to a loop that is gone
    gone = weakref.ref(loop)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    del tasks, task, loop
    gc.collect()
    assert gone() is None
    assert limiter.explain().waiting == 0
    clock.advance(1)
    assert limiter.try_acquire(), "what the dead were admitted to was given back"


def test_a_hundred_thousand_waiters_of_which_a_third_are_cancelled() -> None:
    clock = ManualClock()
    limiter = Limiter("1_000_000 requests/min bucket", clock=clock)
    assert limiter.try_acquire(1_000_000)
    admitted = 0

    async def wait() -> None:
        nonlocal admitted
        async with limiter.acquire():
            admitted += 1

    async def main() -> None:
        tasks = [asyncio.ensure_future(wait()) for _ in range(100_000)]
        await turn()
        for task in tasks[::3]:
            task.cancel()
        await turn()
        assert limiter.explain().waiting == 66_666
        clock.advance(61)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert sum(isinstance(r, asyncio.CancelledError) for r in results) == 33_334
        assert sum(r is None for r in results) == 66_666

    asyncio.run(main())
    assert admitted == 66_666
    look = limiter.explain()
    assert (look.waiting, look.limits[0].used) == (0, 66_666)


def _rss() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_waits_admitted_or_cancelled() -> None:
    clock = ManualClock()
    limiter = Limiter(["1_000_000 requests/min", "3 concurrency"], clock=clock)

    async def wait() -> None:
        async with limiter.acquire():
            await asyncio.sleep(0)

    async def round_of(n: int) -> None:
        tasks = [asyncio.ensure_future(wait()) for _ in range(n)]
        await turn()
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clock.advance(60)

    async def main() -> None:
        for _ in range(10):
            await round_of(1000)

    asyncio.run(main())
    gc.collect()
    before = _rss()
    for _ in range(5):
        asyncio.run(main())
    gc.collect()
    # 50 000 waits of more than 100 bytes each would be 5 MB.
    assert _rss() - before < 2_000_000


def test_threads_block_without_the_gil_and_are_admitted_in_turn() -> None:
    limiter = Limiter("500 requests/s bucket burst 1")
    counted = 0
    stop = threading.Event()

    def spin() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    spinner = threading.Thread(target=spin)
    done: list[int] = []

    def work() -> None:
        for _ in range(10):
            with limiter.acquire_sync(timeout=30):
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    spinner.start()
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    stop.set()
    spinner.join()
    assert len(done) == 80
    assert counted > 0


def test_a_blocked_thread_times_out_and_says_so() -> None:
    limiter = Limiter("1 concurrency")
    held = limiter.try_reserve()
    with pytest.raises(DeadlineExceededError, match=r"0\.050 s"):
        limiter.acquire_sync(timeout=0.05)
    assert limiter.explain().waiting == 0
    assert held.cancel()


def test_a_signal_interrupts_a_blocked_main_thread() -> None:
    limiter = Limiter("1 concurrency")
    held = limiter.try_reserve()

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.get_ident()

    def send() -> None:
        # Sent once the main thread is known to wait.
        while limiter.explain().waiting == 0:
            os.sched_yield()
        signal.pthread_kill(main, signal.SIGUSR1)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            limiter.acquire_sync()
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)
    assert limiter.explain().waiting == 0
    assert held.cancel()


def _child(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_interpreter_ends_with_waiters() -> None:
    done = _child(
        """
        import asyncio, threading, headway
        limiter = headway.Limiter(["1 concurrency", "5 requests/s"])
        held = limiter.try_reserve()

        def block():
            limiter.acquire_sync()

        threading.Thread(target=block, daemon=True).start()

        async def wait():
            await limiter.acquire()

        async def main():
            global tasks
            tasks = [asyncio.ensure_future(wait()) for _ in range(1000)]
            for _ in range(5):
                await asyncio.sleep(0)
            assert limiter.explain().waiting >= 1000

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        for task in tasks:
            task._log_destroy_pending = False
        print("bye", flush=True)
        """
    )
    assert (done.returncode, done.stdout) == (0, "bye\n"), done.stderr


def test_asyncio_run_twice_and_the_main_module_ending_in_the_middle_of_a_wait() -> None:
    done = _child(
        """
        import asyncio, headway
        limiter = headway.Limiter("1 requests/hour bucket")

        async def main():
            try:
                await asyncio.wait_for(limiter.acquire(), 0.05)
                return "admitted"
            except asyncio.TimeoutError:
                return "timed out"

        print(asyncio.run(main()), asyncio.run(main()), limiter.explain().waiting)
        """
    )
    assert (done.returncode, done.stdout) == (0, "admitted timed out 0\n"), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_after_a_fork_the_child_goes_on_on_its_own_and_says_so_once() -> None:
    done = _child(
        """
        import asyncio, logging, os, sys, warnings, headway
        warnings.simplefilter("ignore", DeprecationWarning)
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        limiter = headway.Limiter("20 requests/s bucket burst 2")

        async def wait():
            await asyncio.wait_for(limiter.acquire(), 10)

        async def both():
            await asyncio.gather(*(wait() for _ in range(4)))

        asyncio.run(both())          # the dispatcher runs, the loop has a mailbox
        with limiter.acquire_sync():  # and so has this thread
            pass
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            asyncio.run(both())
            with limiter.acquire_sync():
                pass
            print("child", limiter.explain().waiting, flush=True)
            os._exit(0)
        asyncio.run(both())
        _, status = os.waitpid(pid, 0)
        print("parent", status, limiter.explain().waiting)
        """
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "child 0" in lines
    assert "parent 0 0" in lines
    warned = [line for line in lines if line.startswith("WARNING")]
    assert len(warned) == 1
    assert "two processes then share no limit" in warned[0]


def test_a_fork_in_the_middle_of_waits_leaves_the_parents_alone() -> None:
    done = _child(
        """
        import asyncio, os, warnings, headway
        warnings.simplefilter("ignore", DeprecationWarning)
        import logging; logging.disable()
        limiter = headway.Limiter("100 requests/s bucket burst 1")

        async def wait():
            await asyncio.wait_for(limiter.acquire(), 20)

        async def main():
            tasks = [asyncio.ensure_future(wait()) for _ in range(60)]
            await asyncio.sleep(0)
            for _ in range(5):
                pid = os.fork()
                if pid == 0:
                    os._exit(0 if limiter.explain().waiting == 0 else 3)
                _, status = os.waitpid(pid, 0)
                assert status == 0, status
            await asyncio.gather(*tasks)

        asyncio.run(main())
        print("done")
        """
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_an_idle_process_with_a_full_queue_uses_no_cpu() -> None:
    limiter = Limiter("1 requests/hour bucket")
    assert limiter.try_acquire()

    async def wait() -> None:
        await limiter.acquire()

    async def main() -> int:
        tasks = [asyncio.ensure_future(wait()) for _ in range(1000)]
        for _ in range(5):
            await asyncio.sleep(0)
        before = _context_switches()
        await asyncio.sleep(1.0)
        after = _context_switches()
        woken = sum(count - before[thread] for thread, count in after.items() if thread in before)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return woken

    # A poll each 10 ms would be 100 wake-ups; sleeping is one for the loop's own timer.
    assert asyncio.run(main()) < 10


def _context_switches() -> dict[str, int]:
    """By thread. Other tests may have left some that are ending."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/status") as status:
                lines = status.readlines()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        for line in lines:
            if line.startswith("voluntary_ctxt_switches"):
                found[thread] = int(line.split()[1])
    return found


def test_a_wait_that_somebody_steps_by_hand_leaves_nothing_behind_for_its_loop() -> None:
    async def main() -> None:
        limiter = Limiter("100 requests/s bucket burst 1")
        hourly = Limiter("1 requests/hour bucket")
        assert limiter.try_acquire()
        assert hourly.try_acquire()
        wait: Any = limiter.acquire()
        assert isinstance(wait.send(None), asyncio.Future)
        # Admitted, and in the mailbox that this loop, being busy, has not looked into yet.
        end = time.monotonic() + 10
        while limiter.explain().waiting:
            assert time.monotonic() < end
        with pytest.raises(StopIteration) as over:
            wait.send(None)
        assert over.value.value.settle()
        del wait, over
        # Waits in the very place of the one that is gone, most likely, and is admitted by nobody.
        other: Any = hourly.acquire()
        future = other.send(None)
        await asyncio.sleep(0.05)
        assert not future.done()
        other.close()

    asyncio.run(main())


def test_a_forked_child_takes_no_wake_up_of_its_parents_loop() -> None:
    program = """
        import asyncio, gc, os, sys, time, warnings
        import headway
        warnings.simplefilter("ignore")  # that a process with threads forks
        limiter = headway.Limiter("5 requests/s bucket burst 1")
        loop = asyncio.new_event_loop()

        async def wait():
            await limiter.acquire()

        async def start():
            task = loop.create_task(wait())
            await asyncio.sleep(0.01)
            return task

        assert limiter.try_acquire()
        task = loop.run_until_complete(start())
        child = os.fork()
        if child == 0:
            time.sleep(0.3)  # by now the parent's wait is admitted and handed over
            assert limiter.try_acquire()
            asyncio.run(wait())  # waits, on a loop of its own
            del task, loop
            gc.collect()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        loop.run_until_complete(asyncio.wait_for(task, 10))
        print("woken")
    """
    done = _child(program)
    assert done.stdout == "woken\n", done.stderr


def test_threads_that_wait_once_and_end_leave_no_descriptor() -> None:
    clock = ManualClock()
    limiter = Limiter("1 requests/min bucket", clock=clock)
    assert limiter.try_acquire()

    def wait() -> None:
        with pytest.raises(DeadlineExceededError):
            limiter.acquire_sync(timeout=1)

    def in_a_thread() -> None:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    in_a_thread()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        in_a_thread()
    # The last ones may not have been taken apart yet: joining waits for Python's part of a thread.
    assert len(os.listdir("/proc/self/fd")) < before + 10


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "headway.Limiter('1 requests/min')"),
        ("limiter = drained()", "limiter.acquire_sync()"),
        ("limiter = drained(); loop = asyncio.new_event_loop()", "loop.run_until_complete(wait())"),
    ],
)
def test_a_process_that_may_open_nothing_more_gets_an_oserror(before: str, after: str) -> None:
    done = _child(
        f"""
        import asyncio, resource
        import headway

        def drained():
            limiter = headway.Limiter("1 requests/min bucket")
            assert limiter.try_acquire()
            return limiter

        async def wait():
            await limiter.acquire()

        {before}
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        try:
            {after}
        except OSError:
            print("OSError")
        """
    )
    assert (done.returncode, done.stdout) == (0, "OSError\n"), done.stderr
