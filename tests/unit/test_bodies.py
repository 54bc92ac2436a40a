"""Bodies that settle a reservation when they end, and what they say was used."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway._bodies import UsageReader, is_unread, package_of, settle_with_body
from headway._tokens import read_usage

OPENAI = {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
CHAT = json.dumps({"id": "c", "choices": [{"message": {"content": "hi"}}], "usage": OPENAI})
CLAUDE = (
    'event: message_start\ndata: {"type": "message_start", "message": {"id": "m", "usage": '
    '{"input_tokens": 25, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 900, '
    '"output_tokens": 1}}}\n\n'
    'event: content_block_delta\ndata: {"delta": {"text": "say \\"usage\\": {\\"x\\": 9}"}}\n\n'
    'event: message_delta\ndata: {"delta": {}, "usage": {"output_tokens": 15}}\n\n'
)
GEMINI = (
    'data: {"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 6, '
    '"thoughtsTokenCount": 10, "totalTokenCount": 20}}\r\n\r\n'
)
FOUND = {
    CHAT: {"tokens": 42, "input_tokens": 12, "output_tokens": 30},
    CLAUDE: {"tokens": 45, "input_tokens": 30, "output_tokens": 15, "cached_tokens": 900},
    GEMINI: {"tokens": 20, "input_tokens": 4, "output_tokens": 16},
    'data: {"usage": null}\n\ndata: [DONE]\n\n': {},
    'data: {"usage": null}\n\ndata: {"usage": {"total_tokens": 7}}\n\n': {"tokens": 7},
    "": {},
}


def read(parts: list[bytes], encoding: str = "") -> dict[str, int]:
    reader = UsageReader(encoding)
    for part in parts:
        reader.feed(part)
    return reader.read()


@pytest.mark.parametrize("text", FOUND)
def test_usage_is_found_in_whole_answers_and_in_events(text: str) -> None:
    assert read([text.encode()]) == FOUND[text]


@given(st.sampled_from(sorted(FOUND)), st.data(), st.sampled_from(["", "gzip", "deflate"]))
def test_however_it_comes_in_pieces(text: str, data: st.DataObject, encoding: str) -> None:
    body = text.encode()
    body = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](body)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=6)))
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(parts, encoding) == FOUND[text]


@settings(max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [b'"usage"', b":", b"{", b"}", b'{"total_tokens": ', b"-5}", b"1e400", b"[" * 5000]
            ),
        ),
        max_size=12,
    ),
    st.sampled_from(["", "gzip", "deflate", "br", "zstd", "made-up"]),
)
def test_no_body_breaks_it_and_none_says_what_cannot_be(parts: list[bytes], encoding: str) -> None:
    assert all(0 <= amount <= 2**53 for amount in read(parts, encoding).values())


def test_of_a_long_body_its_beginning_and_its_end_are_looked_at() -> None:
    reader = UsageReader()
    start, end = CLAUDE.encode().split(b"event: content_block_delta", 1)
    reader.feed(start)
    for _ in range(5000):
        reader.feed(b'data: {"delta": {"text": "and so on and so on and so on"}}\n\n')
    reader.feed(b"event: content_block_delta" + end)
    assert reader.read() == FOUND[CLAUDE]
    held = sum(map(len, (*reader._head, *reader._tail)))
    assert held < 100_000


SAID = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
LONG = '"usage": {"total_tokens": 1}' * 6000  # in JSON, its quotes are escaped
TOOL = [{"type": "tool", "input": {"usage": {"total_tokens": 2}}}]


def events(last: object) -> bytes:
    """A stream whose last event repeats all that was said before."""
    before = b"event: delta\ndata: {}\n\n" * 2000
    return before + b"event: last\ndata: " + json.dumps(last).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("body", "usage", "whole"),
    [
        (
            events(
                {
                    "type": "response.completed",
                    "response": {
                        "output": [LONG],
                        "usage": SAID,
                        "user": None,
                        "metadata": {"usage": "none"},
                    },
                }
            ),
            SAID,
            True,
        ),
        (events({"candidates": [LONG], "usageMetadata": SAID, "modelVersion": "m"}), SAID, False),
        # What a model has made is not what it has used.
        (events({"response": {"usage": SAID, "output": [LONG, *TOOL]}}), None, False),
        (json.dumps({"content": [LONG, *TOOL], "usage": SAID, "model": "m"}).encode(), SAID, False),
        (json.dumps([{}, {"text": LONG, "usageMetadata": SAID}]).encode(), SAID, False),
        (json.dumps({"content": [LONG], "made": {"usage": SAID}}).encode(), None, False),
    ],
    ids=["responses", "event", "event-of-a-tool", "whole", "list", "whole-of-a-tool"],
)
def test_the_end_of_what_is_too_long_to_be_kept_says_the_use(
    body: bytes, usage: dict[str, int] | None, whole: bool
) -> None:
    reader = UsageReader()
    for at in range(0, len(body), 1400):
        reader.feed(body[at : at + 1400])
    expected = {"input_tokens": 7, "output_tokens": 3, "tokens": 10} if usage else {}
    assert (reader.read(), reader.whole) == (expected, whole)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "total_tokens": True, "completion_tokens": "3"},
        {"prompt_tokens": 2**54, "total_tokens": 1.5},
    ],
)
def test_what_is_no_number_of_tokens_says_nothing(usage: dict[str, Any]) -> None:
    assert read_usage(usage) == {}


# -- responses -----------------------------------------------------------------------------------


def response_of(package: Any, parts: list[bytes], asynchronous: bool, error: bool = False) -> Any:
    if asynchronous:

        class Stream(package.AsyncByteStream):  # type: ignore[misc]
            async def __aiter__(self) -> AsyncIterator[bytes]:
                for part in parts:
                    yield part
                if error:
                    raise package.ReadError("gone")

    else:

        class Stream(package.SyncByteStream):  # type: ignore[no-redef,misc]
            def __iter__(self) -> Iterator[bytes]:
                yield from parts
                if error:
                    raise package.ReadError("gone")

    return package.Response(200, stream=Stream(), request=package.Request("POST", "http://h/"))


async def consume(response: Any, how: str, asynchronous: bool, package: Any) -> None:
    if asynchronous:
        if how == "read":
            await response.aread()
        elif how == "fails":
            with pytest.raises(package.ReadError):
                await response.aread()
        elif how == "closed":
            await response.aclose()
        elif how == "half":
            async for _ in response.aiter_raw():
                break
            await response.aclose()
    elif how == "read":
        response.read()
    elif how == "fails":
        with pytest.raises(package.ReadError):
            response.read()
    elif how == "closed":
        response.close()
    elif how == "half":
        for _ in response.iter_raw():
            break
        response.close()


ENDS = {
    "read": {"tokens": 42, "input_tokens": 12, "output_tokens": 30},
    # What was said so far is a lower bound.
    "fails": {"tokens": 100, "input_tokens": 12, "output_tokens": 30},
    "half": {"tokens": 100, "input_tokens": 12, "output_tokens": 30},
    "closed": {},
    "dropped": {},
}


@pytest.mark.parametrize("package", [httpx, httpx2])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("how", ENDS)
def test_it_settles_once_however_it_ends(package: Any, asynchronous: bool, how: str) -> None:
    settled: list[dict[str, int]] = []

    async def run() -> None:
        parts = [CHAT.encode(), b" "]
        response = response_of(package, parts, asynchronous, error=how == "fails")
        assert is_unread(response)
        assert package_of(response) == package.__name__
        settle_with_body(response, settled.append, {"requests": 1, "tokens": 100})
        await consume(response, how, asynchronous, package)
        if how == "read":
            assert response.json()["id"] == "c"
        assert how == "dropped" or settled == [ENDS[how]]
        del response
        gc.collect()

    asyncio.run(run())
    assert settled == [ENDS[how]]


def test_what_has_been_read_or_is_no_response_is_left_alone() -> None:
    assert not is_unread(httpx.Response(200, json={}))
    assert not is_unread(object())
    assert package_of(3) is None
