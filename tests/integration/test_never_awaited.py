"""An acquire() that nobody has awaited says so: else nothing is limited, and nobody sees it."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from typing import Any

import pytest

from headway import Limiter

TEXT = "an acquire\\(\\) was never awaited: nothing was acquired"


def test_one_that_is_dropped_warns() -> None:
    limiter = Limiter("1 requests/min")
    with pytest.warns(RuntimeWarning, match=TEXT):
        limiter.acquire()
    with pytest.warns(RuntimeWarning, match=TEXT):
        assert limiter.acquire()  # which is true whatever fits
    assert limiter.try_acquire()


def test_one_that_is_garbage_in_a_cycle_warns() -> None:
    cycle: list[Any] = [Limiter("1 requests/min").acquire()]
    cycle.append(cycle)
    del cycle
    with pytest.warns(RuntimeWarning, match=TEXT):
        gc.collect()


def test_an_error_made_of_it_is_not_lost_and_nothing_crashes() -> None:
    limiter = Limiter("1 requests/min")
    seen: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, seen.append
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            limiter.acquire()
    finally:
        sys.unraisablehook = hook
    assert [each.exc_type for each in seen] == [RuntimeWarning]


def test_what_was_awaited_closed_or_cancelled_in_time_says_nothing() -> None:
    async def run() -> None:
        limiter = Limiter("3 requests/min")
        await limiter.acquire()
        async with limiter.acquire():
            pass
        await asyncio.gather(limiter.acquire())
        limiter.acquire().close()
        before = asyncio.ensure_future(limiter.acquire())  # cancelled before its first step
        before.cancel()
        await asyncio.gather(before, return_exceptions=True)
        while_waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        while_waiting.cancel()
        await asyncio.gather(while_waiting, return_exceptions=True)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(limiter.acquire(), 0.01)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(limiter.acquire(), 0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(run())
        gc.collect()
