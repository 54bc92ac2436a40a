"""Tokens of a request before it is sent, and of its answer."""

from __future__ import annotations

from typing import Any

import pytest

from headway._tokens import estimate_tokens, used_tokens

CHAT = "/v1/chat/completions"


def chat(text: object, **more: object) -> dict[str, Any]:
    return {
        "model": "a-very-long-model-name",
        "messages": [{"role": "user", "content": text}],
        **more,
    }


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (chat("x" * 400), 100),
        (chat("x" * 401), 101),
        (chat("x" * 400, max_tokens=64), 100),
        (chat("x" * 400, max_tokens=640), 640),
        (chat("x" * 400, max_completion_tokens=640), 640),
        ({"input": "x" * 40, "max_output_tokens": 50}, 50),
        ({"input": "x" * 40, "instructions": "x" * 400}, 110),
        (chat("", max_tokens=3, max_completion_tokens=9), 9),
        (chat(""), 1),
        (chat("x", max_tokens=None), 1),
        ({}, 1),
        (chat("x", max_tokens=100, n=5), 500),
        (chat("x", max_tokens=100, n=2, best_of=5), 500),
        (chat("x", n=5), 1),  # nobody knows how long one is
        (chat("x", max_tokens=100, n=True), 100),
        (chat("x", max_tokens=100, n=0), 100),
        (chat("x", max_tokens=100, n=10**30), 100_000),  # which the provider refuses
        ({"generationConfig": {"maxOutputTokens": 50, "candidateCount": 3}}, 150),
    ],
)
def test_a_request_counts_the_larger_of_its_most_and_a_quarter_of_its_characters(
    body: dict[str, Any], tokens: int
) -> None:
    assert estimate_tokens(CHAT, body) == tokens


def test_only_text_counts_in_content_of_several_parts() -> None:
    parts = [
        {"type": "text", "text": "x" * 40},
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 4000}},
    ]
    assert estimate_tokens(CHAT, chat(parts)) == 10


def test_what_a_model_may_call_and_the_form_of_its_answer_count_with_their_names() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"city": "x" * 377}}}
    assert len("typefunctionfunctionnamelookparameterscity") + 377 == 419
    assert estimate_tokens(CHAT, chat("", tools=[tool])) == 105
    assert estimate_tokens(CHAT, chat("x" * 400, tools=[tool])) == 205
    assert estimate_tokens(CHAT, chat("", response_format={"a": ["x" * 39, 7, None]})) == 10


def test_texts_of_a_list_add_up_and_a_number_is_a_token() -> None:
    assert estimate_tokens("/v1/embeddings", {"input": ["x" * 40, "x" * 40]}) == 20
    assert estimate_tokens("/v1/embeddings", {"input": [[1, 2, 3], [4, 5]]}) == 5


@pytest.mark.parametrize(
    ("url", "tokens"),
    [("/v1/completions", 16), ("/v1/completions?a=b", 16), (CHAT, 2), ("/v1/embeddings", 2)],
)
def test_completions_answer_sixteen_tokens_unless_told_otherwise(url: str, tokens: int) -> None:
    assert estimate_tokens(url, {"prompt": "x" * 8}) == tokens
    assert estimate_tokens("/v1/completions", {"prompt": "x" * 8, "best_of": 3}) == 48


@pytest.mark.parametrize("value", ["64", -1, 2.5, True, [64]])
def test_a_maximum_that_is_no_number_of_tokens_is_left_for_the_provider_to_refuse(
    value: object,
) -> None:
    assert estimate_tokens(CHAT, chat("x" * 400, max_tokens=value)) == 100


def test_a_maximum_beyond_all_limits_stays_a_number_that_a_limiter_takes() -> None:
    assert estimate_tokens(CHAT, chat("x", max_tokens=10**30)) == 2**53


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, 7),
        ({"usage": {"input_tokens": 3, "output_tokens": 4}}, 7),
        ({"usage": {"prompt_tokens": 3, "total_tokens": None}}, 3),
        ({"usage": None}, 0),
        ({"usage": [7]}, 0),
        ({}, 0),
        (["usage"], 0),
        ("usage", 0),
        (None, 0),
    ],
)
def test_an_answer_says_what_was_used_or_it_does_not(body: object, tokens: int) -> None:
    assert used_tokens(body) == tokens
