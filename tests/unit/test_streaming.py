"""Streams: passed through, read for their use, and released once however they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from headway import RateLimitedAsyncIterator, StreamingReservationContext


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 30))


class Backend:
    """Remembers what was released; `waits` and `fails` as it is told."""

    def __init__(self, waits: float = 0.0, error: Exception | None = None) -> None:
        self.released: list[tuple[str, str, int, int]] = []
        self.waits = waits
        self.error = error

    async def release_streaming_reservation(
        self, bucket_id: str, reservation_id: str, reserved: int, actual: int
    ) -> bool:
        await asyncio.sleep(self.waits)
        self.released.append((bucket_id, reservation_id, reserved, actual))
        if self.error is not None:
            raise self.error
        return True


class Calls:
    """Both callbacks."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, ...]] = []
        self.failed: list[str] = []


def context_of(backend: Backend, calls: Calls | None = None) -> StreamingReservationContext:
    context = StreamingReservationContext("id", "bucket", "request", 100, backend)
    if calls is not None:
        context.metrics_callback = lambda *arguments: calls.ended.append(arguments)
        context.error_metrics_callback = calls.failed.append
    return context


def used(tokens: object) -> SimpleNamespace:
    return SimpleNamespace(usage=SimpleNamespace(total_tokens=tokens))


async def chunks(*given: Any) -> AsyncIterator[Any]:
    for each in given:
        if isinstance(each, BaseException):
            raise each
        yield each


async def endless() -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(1000)


def kept(actual: int = 100) -> list[tuple[str, str, int, int]]:
    return [("bucket", "id", 100, actual)]


def test_a_stream_that_ends_releases_what_it_did_not_use() -> None:
    async def main() -> None:
        backend, calls = Backend(), Calls()
        stream = RateLimitedAsyncIterator[Any](chunks(1, used(40), 2), context_of(backend, calls))
        assert [chunk async for chunk in stream][0::2] == [1, 2]
        assert backend.released == kept(40)
        assert calls.failed == []
        ((reserved, actual, succeeded, bucket, duration),) = calls.ended
        assert (reserved, actual, succeeded, bucket) == (100, 40, True, "bucket")
        assert 0 <= duration < 10
        await stream.aclose()
        assert [chunk async for chunk in stream] == []
        assert backend.released == kept(40)

    run(main())


@pytest.mark.parametrize(
    ("given", "actual"),
    [
        ([1, "text", None, object()], 100),
        ([used(40), used(60)], 60),
        ([{"usage": {"total_tokens": 7}}], 7),
        ([{"usage": SimpleNamespace(total_tokens=8)}], 8),
        ([SimpleNamespace(usage={"total_tokens": 9})], 9),
        ([used(0)], 0),
        ([used("12")], 12),
        ([used(12.0)], 12),
        ([used(250)], 250),
        ([used(40), used(-1)], 40),
        ([used(40), used(True)], 40),
        ([used(40), used(None)], 40),
        ([used(40), used("many")], 40),
        ([used(40), used("9" * 10_000)], 40),
        ([used(40), used(float("nan"))], 40),
        ([used(40), used(float("inf"))], 40),
        ([used(40), used(1.5)], 40),
        ([used(40), used(2**60)], 40),
        ([used(40), used([1])], 40),
        ([used(40), {"usage": None}, {"usage": 5}, {"usage": []}], 40),
    ],
)
def test_the_last_valid_word_on_use_counts(given: list[Any], actual: int) -> None:
    async def main() -> None:
        backend = Backend()
        async for _ in RateLimitedAsyncIterator[Any](chunks(*given), context_of(backend)):
            pass
        assert backend.released == kept(actual)

    run(main())


def gemini(**counts: int | None) -> SimpleNamespace:
    """A chunk as google-genai has it."""
    names = ("prompt", "candidates", "thoughts", "cached_content", "total")
    told = {f"{name}_token_count": counts.get(name) for name in names}
    usage = SimpleNamespace(**told, prompt_tokens_details=[SimpleNamespace(token_count=4)])
    return SimpleNamespace(text="hi", usage_metadata=usage)


def started(**usage: int) -> SimpleNamespace:
    return SimpleNamespace(type="message_start", message=SimpleNamespace(usage=usage))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([1, "text", b"text", None, {}, SimpleNamespace(message="hi", response=7)], {}),
        (
            [gemini(prompt=4, total=4), gemini(prompt=4, candidates=6, thoughts=10, total=20)],
            {"tokens": 20, "input_tokens": 4, "output_tokens": 16},
        ),
        (
            [gemini(prompt=9, candidates=1, cached_content=8, total=10), gemini(total=11)],
            {"tokens": 11, "input_tokens": 9, "output_tokens": 1, "cached_tokens": 8},
        ),
        (
            [{"usageMetadata": {"promptTokenCount": 9, "cachedContentTokenCount": 8}}],
            {"input_tokens": 9, "cached_tokens": 8},
        ),
        (
            [
                started(input_tokens=25, cache_read_input_tokens=900, output_tokens=1),
                SimpleNamespace(type="message_delta", usage={"output_tokens": 15}),
            ],
            {"tokens": 40, "input_tokens": 25, "output_tokens": 15, "cached_tokens": 900},
        ),
        (
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
                {"type": "message_delta", "usage": {"input_tokens": None, "output_tokens": 2}},
                {"type": "message_stop"},
            ],
            {"tokens": 5, "input_tokens": 3, "output_tokens": 2},
        ),
        (
            [
                {
                    "response": {
                        "usage": {
                            "input_tokens": 9,
                            "input_tokens_details": {"cached_tokens": 7},
                            "output_tokens": 1,
                            "total_tokens": 10,
                        }
                    }
                }
            ],
            {"tokens": 10, "input_tokens": 9, "output_tokens": 1, "cached_tokens": 7},
        ),
        (
            # A model may write such a thing.
            [{"choices": [{"delta": {"usage": {"total_tokens": 5}}}], "content": {"usage": {}}}],
            {},
        ),
    ],
)
def test_use_is_told_by_resource(given: list[Any], told: dict[str, int]) -> None:
    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[Any](chunks(*given), context_of(backend))
        assert [chunk async for chunk in stream] == given
        assert stream.context.used == told
        assert stream.context.final_tokens == told.get("tokens")
        assert backend.released == kept(told.get("tokens", 100))

    run(main())


def test_a_model_is_asked_for_its_fields_only() -> None:
    asked: list[str] = []

    class Model:
        """As pydantic's: what it has not is looked for at length."""

        model_fields = {"text": str, "usage": object}  # noqa: RUF012

        def __init__(self, usage: object) -> None:
            self.usage = usage

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise AttributeError(name)

    async def main() -> None:
        backend = Backend()
        given = chunks(Model(None), Model({"total_tokens": 7}))
        async for _ in RateLimitedAsyncIterator[Any](given, context_of(backend)):
            pass
        assert backend.released == kept(7)
        assert asked == []

    run(main())


def test_a_chunk_whose_attributes_raise_is_passed_on() -> None:
    class Odd:
        @property
        def usage(self) -> int:
            raise RuntimeError("no")

    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[Any](chunks(Odd()), context_of(backend))
        assert len([chunk async for chunk in stream]) == 1
        assert backend.released == kept()

    run(main())


def test_a_stream_that_fails_keeps_its_estimate_and_raises_its_own_error() -> None:
    async def main() -> None:
        backend, calls = Backend(), Calls()
        given = chunks(used(40), ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            async for _ in RateLimitedAsyncIterator[Any](given, context_of(backend, calls)):
                pass
        assert backend.released == kept()
        assert (calls.failed, calls.ended) == (["bucket"], [])

    run(main())


def test_a_stream_that_breaks_off_beyond_its_estimate_says_so() -> None:
    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[Any](chunks(used(150), 1), context_of(backend))
        await anext(stream)
        await stream.aclose()
        assert backend.released == kept(150)

    run(main())


def test_closing_closes_what_is_wrapped_and_releases_once() -> None:
    async def main() -> None:
        backend, calls = Backend(), Calls()
        inner = endless()
        stream = RateLimitedAsyncIterator[int](inner, context_of(backend, calls))
        assert await anext(stream) == 1
        await asyncio.gather(stream.aclose(), stream.aclose())
        assert backend.released == kept()
        assert len(calls.ended) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(inner)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run(main())


def test_what_is_wrapped_is_closed_once_also_after_its_end() -> None:
    class Response:
        closed = 0

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        def close(self) -> None:
            self.closed += 1

    async def main() -> None:
        backend, response = Backend(), Response()
        stream = RateLimitedAsyncIterator[int](response, context_of(backend))
        assert [chunk async for chunk in stream] == []
        assert response.closed == 0
        await stream.aclose()
        await stream.aclose()
        assert response.closed == 1
        assert backend.released == kept()

    run(main())


def test_an_error_of_closing_is_raised_after_the_release() -> None:
    class Stubborn:
        def __aiter__(self) -> AsyncIterator[int]:
            return endless()

        async def close(self) -> None:
            raise OSError("stuck")

    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[int](Stubborn(), context_of(backend))
        with pytest.raises(OSError, match="stuck"):
            await stream.aclose()
        assert backend.released == kept()

    run(main())


def test_its_own_close_releases_as_it_does() -> None:
    class Stream:
        closed = 0

        async def __anext__(self) -> int:
            return 1

    class Awaited(Stream):
        async def close(self, code: int) -> int:
            await asyncio.sleep(0)
            self.closed += 1
            return code

    class Plain(Stream):
        def close(self) -> str:
            self.closed += 1
            return "closed"

    class Stubborn(Stream):
        def close(self) -> None:
            raise OSError("stuck")

    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[int](Awaited(), context_of(backend))
        assert await anext(stream) == 1
        assert await stream.close(7) == 7
        assert (stream.closed, backend.released) == (1, kept())
        await stream.aclose()
        assert stream.closed == 1
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        plain = RateLimitedAsyncIterator[int](Plain(), context_of(backend))
        assert plain.close() == "closed"
        stubborn = RateLimitedAsyncIterator[int](Stubborn(), context_of(backend))
        with pytest.raises(OSError, match="stuck"):
            stubborn.close()
        await asyncio.sleep(0.01)
        assert backend.released == kept() * 3
        assert not hasattr(RateLimitedAsyncIterator[int](endless(), context_of(backend)), "close")

    run(main())


def test_cancelling_the_reader_releases_before_the_cancellation_goes_on() -> None:
    async def main() -> None:
        backend, calls = Backend(waits=0.01), Calls()
        stream = RateLimitedAsyncIterator[int](endless(), context_of(backend, calls))

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.released == kept()
        assert (calls.failed, len(calls.ended)) == ([], 1)

    run(main())


def test_cancelling_twice_interrupts_the_wait_but_not_the_release() -> None:
    async def main() -> None:
        backend = Backend(waits=0.05)
        stream = RateLimitedAsyncIterator[int](endless(), context_of(backend))

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        for _ in range(2):
            await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.released == []
        await asyncio.sleep(0.1)
        assert backend.released == kept()

    run(main())


def test_an_iterator_that_survives_a_cancellation_is_not_cut_short() -> None:
    class Patient:
        def __init__(self) -> None:
            self.left = [2, 1]
            self.ready = asyncio.Event()

        async def __anext__(self) -> int:
            await self.ready.wait()
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    async def main() -> None:
        backend, inner = Backend(), Patient()
        stream = RateLimitedAsyncIterator[int](inner, context_of(backend))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        inner.ready.set()
        assert [chunk async for chunk in stream] == [1, 2]
        assert backend.released == kept()

    run(main())


def test_closing_the_coroutine_that_reads_releases_too() -> None:
    async def main() -> None:
        backend = Backend()

        class Forever:
            async def __anext__(self) -> int:
                await asyncio.get_running_loop().create_future()
                return 1

        stream = RateLimitedAsyncIterator[int](Forever(), context_of(backend))
        reading = stream.__anext__()
        reading.send(None)
        reading.close()
        await asyncio.sleep(0.01)
        assert backend.released == kept()

    run(main())


def test_a_stream_that_nobody_holds_any_more_is_released() -> None:
    async def main() -> None:
        backend, calls = Backend(), Calls()
        stream = RateLimitedAsyncIterator[int](endless(), context_of(backend, calls))
        assert await anext(stream) == 1
        gone = weakref.ref(stream)
        del stream
        gc.collect()
        assert gone() is None
        await asyncio.sleep(0.01)
        assert backend.released == kept()
        assert len(calls.ended) == 1

    run(main())


def test_a_stream_that_is_left_as_the_main_function_returns_is_released() -> None:
    backend = Backend()

    async def main() -> None:
        stream = RateLimitedAsyncIterator[int](chunks(1, 2, 3), context_of(backend))
        async for _ in stream:
            break

    asyncio.run(main())
    assert backend.released == kept()


def test_a_stream_that_is_collected_in_another_thread_is_released_on_its_loop() -> None:
    async def main() -> None:
        backend = Backend()
        held = [RateLimitedAsyncIterator[int](endless(), context_of(backend))]
        await anext(held[0])
        released_in: list[int] = []
        held[0].context.metrics_callback = lambda *_: released_in.append(threading.get_ident())
        await asyncio.to_thread(held.clear)
        await asyncio.sleep(0.01)
        assert backend.released == kept()
        assert released_in == [threading.get_ident()]

    run(main())


def test_a_stream_that_outlives_its_loop_is_collected_in_silence() -> None:
    backend = Backend()

    async def main() -> RateLimitedAsyncIterator[int]:
        return RateLimitedAsyncIterator[int](chunks(1), context_of(backend))

    stream = asyncio.run(main())
    del stream
    unused = RateLimitedAsyncIterator[int](None, context_of(backend))
    del unused
    gc.collect()
    assert backend.released == []


def test_what_has_only_aiter_is_iterated() -> None:
    class Response:
        def __aiter__(self) -> AsyncIterator[int]:
            return chunks(1, 2)

    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[int](Response(), context_of(backend))
        assert [chunk async for chunk in stream] == [1, 2]
        assert backend.released == kept()

    run(main())


def test_what_cannot_be_iterated_at_all_is_a_failure_of_the_stream() -> None:
    async def main() -> None:
        backend, calls = Backend(), Calls()
        stream = RateLimitedAsyncIterator[int](5, context_of(backend, calls))
        with pytest.raises(TypeError):
            await anext(stream)
        assert backend.released == kept()
        assert calls.failed == ["bucket"]

    run(main())


class Manager:
    """As SDKs have them: entered, it gives the stream."""

    def __init__(self, stream: Any = None, error: Exception | None = None) -> None:
        self.stream = stream
        self.error = error
        self.left: list[type[BaseException] | None] = []

    async def __aenter__(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.stream

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.left.append(kind)
        return kind is KeyError


def test_async_with_enters_and_leaves_what_is_wrapped() -> None:
    async def main() -> None:
        backend, manager = Backend(), Manager(chunks(1, 2))
        async with RateLimitedAsyncIterator[int](manager, context_of(backend)) as stream:
            assert await anext(stream) == 1
        assert manager.left == [None]
        assert backend.released == kept()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run(main())


def test_async_with_closes_what_cannot_be_entered_also_when_its_body_raises() -> None:
    async def main() -> None:
        backend, inner = Backend(), endless()
        with pytest.raises(KeyError):
            async with RateLimitedAsyncIterator[int](inner, context_of(backend)) as stream:
                assert await anext(stream) == 1
                raise KeyError
        assert backend.released == kept()
        with pytest.raises(StopAsyncIteration):
            await anext(inner)

    run(main())


def test_what_is_wrapped_may_swallow_the_error_or_fail_to_open() -> None:
    async def main() -> None:
        backend = Backend()
        async with RateLimitedAsyncIterator[int](Manager(chunks()), context_of(backend)):
            raise KeyError
        closed = RateLimitedAsyncIterator[int](Manager(error=OSError()), context_of(backend))
        with pytest.raises(OSError):
            await closed.__aenter__()
        assert backend.released == kept() * 2

    run(main())


def test_other_attributes_are_those_of_what_is_wrapped() -> None:
    class Response:
        request_id = "abc"

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    async def main() -> None:
        backend = Backend()
        stream = RateLimitedAsyncIterator[int](Response(), context_of(backend))
        assert stream.request_id == "abc"
        assert stream.context.bucket_id == "bucket"
        with pytest.raises(AttributeError):
            _ = stream.nothing
        assert [chunk async for chunk in stream] == []

    run(main())


def test_a_release_that_fails_is_logged_once_without_what_it_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        backend = Backend(error=OSError("redis://:secret@host"))
        with contextlib.suppress(StopAsyncIteration):
            await anext(RateLimitedAsyncIterator[int](chunks(), context_of(backend)))
        assert len(backend.released) == 1

    with caplog.at_level(logging.DEBUG, "headway"):
        run(main())
    assert len(caplog.records) == 1
    assert "OSError" in caplog.text
    assert "secret" not in caplog.text


def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        backend = Backend()
        context = context_of(backend)
        context.metrics_callback = lambda *_: 1 / 0
        async for _ in RateLimitedAsyncIterator[int](chunks(1), context):
            pass
        assert backend.released == kept()

    run(main())
    assert len(caplog.records) == 1


def test_a_context_counts_by_the_monotonic_clock_and_shows_no_counters() -> None:
    before = monotonic()
    context = context_of(Backend())
    assert before <= context.created_at <= monotonic()
    assert (context.duration_seconds, context.actual_tokens_for_release) == (None, 100)
    context.record_chunk()
    context.set_final_tokens(-5)
    assert context.final_tokens is None
    context.set_final_tokens(5)
    assert (context.chunk_count, context.actual_tokens_for_release) == (1, 5)
    assert context.duration_seconds is not None
    assert context.last_chunk_at is not None
    assert "chunk_count" not in repr(context)
    assert "callback" not in repr(context)
