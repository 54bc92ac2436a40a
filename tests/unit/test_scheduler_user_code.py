"""UserCode: what others have written is contained, counted, named, and not waited for for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from headway.errors import BucketNotFoundError, ProviderError
from headway.scheduler.user_code import UserCode, method_of

ORIGIN = "ask of provider 'p'"


class Unspeakable(Exception):
    """Neither str nor repr works."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def make() -> tuple[UserCode, list[str]]:
    counted: list[str] = []
    return UserCode(counted.append), counted


def ask(method: Callable[..., Any], *args: Any, patience: float = 10.0) -> Any:
    async def run() -> Any:
        return await make()[0].call(ORIGIN, method, *args, patience=patience)

    return asyncio.run(run())


def raising(error: BaseException) -> Callable[[], Any]:
    def raises() -> None:
        raise error

    return raises


def raising_later(error: BaseException) -> Callable[[], Any]:
    async def raises() -> None:
        await asyncio.sleep(0)
        raise error

    return raises


def test_it_gives_what_the_method_gave_whichever_way_that_is_written() -> None:
    async def coroutine(value: int) -> int:
        await asyncio.sleep(0)
        return value

    class Callable_:
        async def __call__(self, value: int) -> int:
            return value

    class Awaits:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return 3

    assert ask(lambda value: value, 3) == 3
    assert ask(coroutine, 3) == 3
    assert ask(Callable_(), 3) == 3
    assert ask(lambda value: [coroutine(value)][0], 3) == 3
    assert ask(Awaits) == 3


def test_what_is_not_async_runs_off_the_loop_and_what_is_on_it() -> None:
    async def here() -> int:
        return threading.get_ident()

    assert ask(threading.get_ident) != threading.get_ident()
    assert ask(here) == threading.get_ident()


@pytest.mark.parametrize("wrap", [raising, raising_later])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError("itself"),
        asyncio.InvalidStateError(),
        Unspeakable(),
        MemoryError(),
        RecursionError(),
    ],
)
def test_whatever_it_raises_becomes_an_error_that_names_it(
    wrap: Callable[[BaseException], Callable[[], Any]], error: BaseException
) -> None:
    with pytest.raises(ProviderError, match=r"^ask of provider 'p' raised "):
        ask(wrap(error))


@pytest.mark.parametrize("wrap", [raising, raising_later])
def test_our_own_errors_stay_what_they_are(
    wrap: Callable[[BaseException], Callable[[], Any]],
) -> None:
    error = BucketNotFoundError("b")
    with pytest.raises(BucketNotFoundError) as caught:
        ask(wrap(error))
    assert caught.value is error


def test_its_own_time_out_is_told_like_ours() -> None:
    with pytest.raises(ProviderError, match="did not answer within 10 s"):
        ask(raising_later(TimeoutError()))


def test_it_is_not_waited_for_longer_than_patience_lasts() -> None:
    gate = threading.Event()

    async def forever() -> None:
        await asyncio.Event().wait()

    try:
        for method in (gate.wait, forever):
            began = time.monotonic()
            with pytest.raises(ProviderError, match=r"did not answer within 0\.05 s"):
                ask(method, patience=0.05)
            assert time.monotonic() - began < 3
    finally:
        gate.set()


def test_one_that_does_not_let_itself_be_cancelled_is_left_alone() -> None:
    async def run() -> None:
        leave = asyncio.Event()

        async def stubborn() -> None:
            while not leave.is_set():
                try:
                    await leave.wait()
                except asyncio.CancelledError:
                    continue
            raise ValueError("nobody hears this")

        user_code, _ = make()
        with pytest.raises(ProviderError, match="did not answer"):
            await asyncio.wait_for(user_code.call(ORIGIN, stubborn, patience=0.05), 5)
        leave.set()

    asyncio.run(run())


def test_whoever_waits_can_be_cancelled_and_takes_the_question_back() -> None:
    async def run() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        user_code, counted = make()
        task = asyncio.ensure_future(user_code.call(ORIGIN, slow))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 5)
        assert counted == []

    asyncio.run(run())


def test_each_failure_is_counted_and_the_first_of_a_kind_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    user_code, counted = make()
    with caplog.at_level(logging.WARNING, logger="headway"):
        for error in (ValueError("one"), ValueError("two"), KeyError("x"), Unspeakable()):
            user_code.note(ORIGIN, error)
        user_code.note("classify of classifier 'c'", ValueError("three"))
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "ask of provider 'p' raised ValueError: one",
        "ask of provider 'p' raised KeyError: 'x'",
        "ask of provider 'p' raised Unspeakable",
        "classify of classifier 'c' raised ValueError: three",
    ]
    assert user_code.errors == {"provider": 4, "classifier": 1}
    assert counted == ["provider"] * 4 + ["classifier"]


def test_kinds_without_end_are_not_remembered_without_end() -> None:
    user_code, _ = make()
    for number in range(1100):
        user_code.note(f"ask of provider '{number}'", ValueError())
    assert len(user_code._told) == 1000
    assert user_code.errors["provider"] == 1100


def test_what_must_not_wait_is_called_right_there() -> None:
    user_code, counted = make()
    assert user_code.call_here(ORIGIN, threading.get_ident) == threading.get_ident()
    assert user_code.call_here(ORIGIN, raising(Unspeakable())) is None
    assert counted == ["provider"]


@pytest.mark.parametrize(
    "value",
    [None, 10**5000, "x" * 1_000_000, Unspeakable(), {"a": []}],
    ids=["none", "number", "text", "unspeakable", "dict"],
)
def test_nonsense_is_named_in_few_words(value: object) -> None:
    user_code, counted = make()
    error = user_code.nonsense(ORIGIN, value, "must be a str")
    assert str(error).startswith("ask of provider 'p' gave ")
    assert str(error).endswith(": must be a str")
    assert len(str(error)) < 150
    assert counted == ["provider"]


def test_an_error_of_megabytes_is_told_in_few_words(caplog: pytest.LogCaptureFixture) -> None:
    user_code, _ = make()
    began = time.perf_counter()
    user_code.note(ORIGIN, ValueError("a-" * 1_000_000))
    assert time.perf_counter() - began < 1
    assert len(caplog.records[0].message) < 1000


def test_a_method_that_is_not_there_is_as_one_that_raises() -> None:
    with pytest.raises(ProviderError, match="raised AttributeError: 'object' object has no"):
        ask(method_of(object(), "discover_limits"), 1, 2)
    assert method_of("text", "upper")() == "TEXT"
