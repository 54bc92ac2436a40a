"""Streams of the real SDKs that a call has given: read for their use, ended in their own ways."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from users import asks, idle, make, until

from headway import RateLimitedAsyncIterator
from headway.scheduler import Scheduler
from headway.streaming import RateLimitedIterator

SAYS: list[Any] = [{"role": "user", "content": "hi"}]
LIMITS = ["1_000 input_tokens/31day bucket", "1_000 output_tokens/31day bucket", "1 concurrency"]
COST = {"requests": 1, "input_tokens": 400, "output_tokens": 300}

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHAT = [
    {**CHUNK, "choices": [{"index": 0, "delta": {"content": "hi"}}], "usage": None},
    {
        **CHUNK,
        "choices": [],
        "usage": {
            "prompt_tokens": 70,
            "completion_tokens": 20,
            "total_tokens": 90,
            "prompt_tokens_details": {"cached_tokens": 60},
        },
    },
]
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
RESPONSES = [
    {"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "usage": None}},
    {
        "type": "response.output_text.delta",
        "sequence_number": 1,
        "item_id": "i",
        "output_index": 0,
        "content_index": 0,
        "delta": "hi",
        "logprobs": [],
    },
    {
        "type": "response.completed",
        "sequence_number": 2,
        "response": {
            **RESPONSE,
            "usage": {
                "input_tokens": 70,
                "input_tokens_details": {"cached_tokens": 60},
                "output_tokens": 20,
                "output_tokens_details": {"reasoning_tokens": 5},
                "total_tokens": 90,
            },
        },
    },
]
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {
        "input_tokens": 65,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 60,
        "output_tokens": 1,
    },
}
CLAUDE = [
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    *(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        for text in ("hi", " there")
    ),
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 20},
    },
    {"type": "message_stop"},
]
# Whatever the dialect: 70 in, of which 60 of the cache where that is counted, and 20 out.
SETTLED = {"input_tokens": 70, "output_tokens": 20, "concurrency": 0}
KEPT = {"input_tokens": 400, "output_tokens": 300, "concurrency": 0}


def events(said: list[dict[str, Any]], named: bool) -> bytes:
    lines = [
        (f"event: {each['type']}\n" if named else "") + f"data: {json.dumps(each)}\n\n"
        for each in said
    ]
    return "".join(lines).encode() + (b"" if named else b"data: [DONE]\n\n")


def answer(request: httpx2.Request) -> httpx2.Response:
    said = {"/v1/messages": CLAUDE, "/v1/responses": RESPONSES}.get(request.url.path, CHAT)
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, headers=headers, content=events(said, named=said is not CHAT))


OPENAI = openai.AsyncOpenAI(
    api_key="k",
    base_url="http://test/v1",
    http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
)
SYNC_OPENAI = openai.OpenAI(
    api_key="k",
    base_url="http://test/v1",
    http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
)
ANTHROPIC = anthropic.AsyncAnthropic(
    api_key="k",
    base_url="http://test",
    http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(answer)),
)
SYNC_ANTHROPIC = anthropic.Anthropic(
    api_key="k",
    base_url="http://test",
    http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
)
# Each gives a stream, awaited or not.
WAYS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "chat": (
        lambda: OPENAI.chat.completions.create(model="m", messages=SAYS, stream=True),
        lambda: SYNC_OPENAI.chat.completions.create(model="m", messages=SAYS, stream=True),
    ),
    "chat helper": (
        lambda: OPENAI.chat.completions.stream(model="m", messages=SAYS).__aenter__(),
        lambda: SYNC_OPENAI.chat.completions.stream(model="m", messages=SAYS).__enter__(),
    ),
    "responses": (
        lambda: OPENAI.responses.create(model="m", input="hi", stream=True),
        lambda: SYNC_OPENAI.responses.create(model="m", input="hi", stream=True),
    ),
    "messages": (
        lambda: ANTHROPIC.messages.create(model="m", messages=SAYS, max_tokens=9, stream=True),
        lambda: SYNC_ANTHROPIC.messages.create(model="m", messages=SAYS, max_tokens=9, stream=True),
    ),
    "messages helper": (
        lambda: ANTHROPIC.messages.stream(model="m", messages=SAYS, max_tokens=9).__aenter__(),
        lambda: SYNC_ANTHROPIC.messages.stream(model="m", messages=SAYS, max_tokens=9).__enter__(),
    ),
}
each_way = pytest.mark.parametrize("way", WAYS)


def used(scheduler: Scheduler) -> dict[str, int]:
    explained = scheduler.explain(asks())
    assert explained is not None
    return {each.limit.resource: each.used for each in explained.limits}


def with_stream(way: str, do: Callable[[Any, Any, Scheduler], Any]) -> None:
    """Has `do(stream, bare, scheduler)` done, bare being the same stream of nobody."""

    async def run() -> None:
        async with make(limits=LIMITS) as scheduler:
            begin = WAYS[way][0]
            bare = await begin()
            stream = await scheduler.submit_request(asks(cost=COST), begin)
            assert used(scheduler) == {**KEPT, "concurrency": 1}
            await do(stream, bare, scheduler)
            await bare.close()
            assert idle(scheduler)

    asyncio.run(run())


def with_sync_stream(way: str, do: Callable[[Any, Any, Scheduler], Any]) -> None:
    with make(limits=LIMITS) as scheduler:
        begin = WAYS[way][1]
        bare = begin()
        stream = scheduler.submit_sync(asks(cost=COST), begin)
        assert used(scheduler) == {**KEPT, "concurrency": 1}
        do(stream, bare, scheduler)
        bare.close()
        assert idle(scheduler)


@each_way
def test_what_it_says_settles_by_resource(way: str) -> None:
    async def do(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        assert [chunk async for chunk in stream] == [chunk async for chunk in bare]
        assert used(scheduler) == SETTLED
        told = {"tokens": 90, "input_tokens": 70, "output_tokens": 20, "cached_tokens": 60}
        assert stream.context.used == told
        assert stream.context.final_tokens == 90

    with_stream(way, do)

    def do_sync(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        assert list(stream) == list(bare)
        assert used(scheduler) == SETTLED

    with_sync_stream(way, do_sync)


@each_way
def test_closing_it_in_its_own_way_settles(way: str) -> None:
    async def do(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        await anext(stream)
        await stream.close()
        assert used(scheduler) == KEPT
        assert stream.response.is_closed
        await stream.close()
        assert [chunk async for chunk in stream] == []

    async def do_with(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        async with stream as entered:
            await anext(entered)
        assert used(scheduler) == KEPT
        assert stream.response.is_closed

    if way != "chat helper":  # which shows no response
        with_stream(way, do)
        with_stream(way, do_with)

    def do_sync(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        next(stream)
        stream.close()
        assert used(scheduler) == KEPT
        stream.close()
        assert list(stream) == []

    def do_with_sync(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        with stream as entered:
            next(entered)
        assert used(scheduler) == KEPT

    with_sync_stream(way, do_sync)
    with_sync_stream(way, do_with_sync)


@each_way
def test_it_is_taken_for_what_it_wraps(way: str) -> None:
    async def do(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        assert type(stream) is RateLimitedAsyncIterator
        assert isinstance(stream, RateLimitedAsyncIterator)
        assert isinstance(stream, type(bare))
        for ask in (inspect.isawaitable, inspect.iscoroutine, asyncio.iscoroutine, callable):
            assert not ask(stream)
        assert hasattr(stream, "close")
        assert not hasattr(stream, "nothing")
        await stream.close()

    with_stream(way, do)

    def do_sync(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        assert type(stream) is RateLimitedIterator
        assert isinstance(stream, type(bare))
        stream.close()

    with_sync_stream(way, do_sync)


async def texts(stream: Any) -> None:
    assert [text async for text in stream.text_stream] == ["hi", " there"]


async def final_message(stream: Any) -> None:
    assert (await stream.get_final_message()).usage.output_tokens == 20
    assert await stream.get_final_text() == "hi there"


async def done(stream: Any) -> None:
    await stream.until_done()


async def completion(stream: Any) -> None:
    assert (await stream.get_final_completion()).usage.total_tokens == 90


@pytest.mark.parametrize(
    ("way", "read"),
    [
        ("messages helper", texts),
        ("messages helper", final_message),
        ("messages helper", done),
        ("chat helper", completion),
    ],
)
def test_what_a_helper_reads_by_itself_settles_too(way: str, read: Callable[[Any], Any]) -> None:
    async def do(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        await read(bare)
        await read(stream)
        assert used(scheduler) == SETTLED

    with_stream(way, do)


def test_so_does_what_a_helper_of_a_thread_reads() -> None:
    def do(stream: Any, bare: Any, scheduler: Scheduler) -> None:
        assert list(stream.text_stream) == ["hi", " there"]
        assert used(scheduler) == SETTLED
        assert stream.get_final_text() == "hi there"

    with_sync_stream("messages helper", do)


def test_texts_alone_keep_the_place() -> None:
    async def run() -> None:
        async with make(limits=LIMITS) as scheduler:
            begin = WAYS["messages helper"][0]
            texts = (await scheduler.submit_request(asks(cost=COST), begin)).text_stream
            gc.collect()
            assert await anext(texts) == "hi"
            assert used(scheduler) == {**KEPT, "concurrency": 1}
            assert [text async for text in texts] == [" there"]
            assert used(scheduler) == SETTLED

    asyncio.run(run())


# -- iterators that are not asynchronous ---------------------------------------------------------


def said(going_in: int, out: int) -> SimpleNamespace:
    return SimpleNamespace(usage={"input_tokens": going_in, "output_tokens": out})


class Broken(Exception):
    pass


def pieces(*given: Any) -> Iterator[Any]:
    for each in given:
        if isinstance(each, BaseException):
            raise each
        yield each


def take_all(stream: Any) -> None:
    assert len(list(stream)) == 2


def fail(stream: Any) -> None:
    with pytest.raises(Broken):
        list(stream)


def leave(stream: Any) -> None:
    next(stream)
    stream.close()
    assert list(stream) == []


def enter(stream: Any) -> None:
    with pytest.raises(Broken), stream as entered:
        next(entered)
        raise Broken


def drop(stream: Any) -> None:
    next(stream)


ENDS = [
    (take_all, (said(1, 1), said(70, 20)), SETTLED),
    (fail, (said(70, 500), Broken()), {**KEPT, "output_tokens": 500}),
    (leave, (said(70, 20), 1), KEPT),
    (enter, (said(70, 20), 1), KEPT),
    (drop, (said(70, 20), 1), KEPT),
]


@pytest.mark.parametrize(("end", "given", "left"), ENDS, ids=[end.__name__ for end, *_ in ENDS])
def test_an_iterator_settles_once_as_it_ends(
    end: Callable[[Any], None], given: tuple[Any, ...], left: dict[str, int]
) -> None:
    with make(limits=LIMITS) as scheduler:
        for _ in range(2):  # the second finds the place free
            scheduler.submit_sync(asks(cost={"requests": 1}), lambda: 42)
            stream = scheduler.submit_sync(asks(cost=COST), lambda: pieces(*given))
            assert inspect.isgenerator(stream)
            assert used(scheduler)["concurrency"] == 1
            end(stream)
            del stream
            assert used(scheduler)["concurrency"] == 0
        twice = {name: 2 * amount for name, amount in left.items()}
        assert used(scheduler) == twice
        assert idle(scheduler)


def test_so_it_does_on_a_loop() -> None:
    async def run() -> None:
        async with make(limits=LIMITS) as scheduler:

            async def call() -> Iterator[Any]:
                return pieces(said(1, 1), said(70, 20))

            stream = await scheduler.submit_request(asks(cost=COST), call)
            assert used(scheduler) == {**KEPT, "concurrency": 1}
            # Whoever does not wait for a loop may read it in a thread.
            with ThreadPoolExecutor(1) as pool:
                assert len(pool.submit(list, stream).result()) == 2
            assert used(scheduler) == SETTLED

    asyncio.run(run())


def test_an_iterator_that_nobody_reads_is_settled() -> None:
    async def run() -> None:
        async with make(limits=LIMITS) as scheduler:

            async def call() -> Iterator[Any]:
                return pieces(1, 2)

            stream = await scheduler.submit_request(asks(cost=COST), call)
            scheduler._streams._look(stream._end.unread_since + scheduler._streams.patience + 1)
            await until(lambda: used(scheduler) == KEPT)
            assert scheduler.get_metrics()["idle_streams"] == 1
            assert list(stream) == [1, 2]

    asyncio.run(run())


def test_lists_and_files_are_no_streams() -> None:
    with make(limits=LIMITS) as scheduler:
        for result in ([1], {"a": 1}, "text", open(__file__)):  # noqa: SIM115 - given back open
            assert (
                scheduler.submit_sync(asks(cost={"requests": 1}), lambda given=result: given)
                is result
            )
            assert used(scheduler)["concurrency"] == 0
        result.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_iterator_of_a_response_may_be_replaced(kind: str) -> None:
    class Response:
        def __init__(self) -> None:
            self.iterator: Any = self._pieces() if kind == "async" else pieces(said(70, 20), 1)

        async def _pieces(self) -> AsyncIterator[Any]:
            for each in (said(70, 20), 1):
                yield each

        def get_iterator(self) -> Any:
            return self.iterator

        def set_iterator(self, iterator: Any) -> None:
            self.iterator = iterator

    async def run() -> None:
        async with make(limits=LIMITS) as scheduler:
            response = Response()

            async def call() -> Response:
                return response

            assert await scheduler.submit_request(asks(cost=COST), call) is response
            assert used(scheduler) == {**KEPT, "concurrency": 1}
            if kind == "async":
                assert len([chunk async for chunk in response.iterator]) == 2
            else:
                assert len(list(response.iterator)) == 2
            assert used(scheduler) == SETTLED

    asyncio.run(run())


def test_what_promises_more_than_the_wrapper_has_is_not_shown() -> None:
    class Both:
        """Could be awaited, which the wrapper cannot."""

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

        def __await__(self) -> Any:
            yield

    async def run() -> None:
        async with make() as scheduler:

            async def call() -> Both:
                return Both()

            stream: Any = await scheduler.submit_request(asks(), call)
            assert not isinstance(stream, Both)
            assert not inspect.isawaitable(stream)
            await stream.aclose()

    asyncio.run(run())
