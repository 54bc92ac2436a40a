"""answers: what results and exceptions say, and that looking at them never raises."""

from __future__ import annotations

import http
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from headway.scheduler.answers import Answer, look, read_answer, read_usage


class Raising:
    """Whatever is asked of it, it raises."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # which pytest asks for
            raise AttributeError(name)
        raise RuntimeError(name)


class RaisingMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("iter")

    def __len__(self) -> int:
        raise RuntimeError("len")


NONSENSE = [None, 42, "text", b"bytes", [], {}, object(), Raising(), RaisingMapping(), type, len]


@pytest.mark.parametrize("source", NONSENSE)
def test_nonsense_says_nothing(source: object) -> None:
    assert read_answer(source) == Answer()


@pytest.mark.parametrize("inside", NONSENSE)
@pytest.mark.parametrize(
    "name", ["usage", "headers", "_headers", "response", "status", "__pydantic_private__"]
)
def test_nonsense_inside_says_nothing(name: str, inside: object) -> None:
    assert read_answer(SimpleNamespace(**{name: inside})) == Answer()
    assert read_answer({name: inside, "_response_headers": inside}) == Answer()


def test_headers_are_found_in_the_order_that_clients_keep_them() -> None:
    where: list[Any] = [
        lambda told: {"__pydantic_private__": {"_response": SimpleNamespace(headers=told)}},
        lambda told: {"response": SimpleNamespace(headers=told)},
        lambda told: {"headers": told},
        lambda told: {"_headers": told},
        lambda told: {"cached_rate_limit_headers": told},
    ]
    for first, place in enumerate(where):
        fields: dict[str, Any] = {}
        for number in range(len(where) - 1, first - 1, -1):
            fields |= where[number]({"X-From": str(number)})
        assert read_answer(SimpleNamespace(**fields)).headers == {"x-from": str(first)}, place
    assert read_answer({"_response_headers": {"A": 1}}).headers == {"a": "1"}


def test_header_names_are_lower_case_and_values_are_text() -> None:
    headers = [("X-RateLimit-Limit", 7), ("Retry-After", 1.5)]
    found = read_answer(SimpleNamespace(headers=headers)).headers
    assert found == {"x-ratelimit-limit": "7", "retry-after": "1.5"}


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"status_code": 429}, 429),
        ({"status_code": http.HTTPStatus.TOO_MANY_REQUESTS}, 429),
        ({"status": 503}, 503),
        ({"response": SimpleNamespace(status_code=500)}, 500),
        ({"response": SimpleNamespace(status=500)}, 500),
        ({"status_code": 400, "status": 500}, 400),
        ({"status_code": "429"}, None),
        ({"status_code": True}, None),
        ({"status_code": 42}, None),
        ({"status_code": 10**30}, None),
        ({"status_code": -429}, None),
        ({"status_code": 429.0}, None),
    ],
)
def test_the_status_is_a_number_of_three_digits(fields: dict[str, Any], status: int | None) -> None:
    assert read_answer(SimpleNamespace(**fields)).status == status


def test_only_an_exception_has_a_body() -> None:
    error = ValueError()
    error.body = {"error": {}}  # type: ignore[attr-defined]
    assert read_answer(error).body == {"error": {}}
    assert read_answer(SimpleNamespace(body={"error": {}})).body is None


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"total_tokens": 5}, {"tokens": 5}),
        (
            {"prompt_tokens": 5, "completion_tokens": 7},
            {"tokens": 12, "input_tokens": 5, "output_tokens": 7},
        ),
        (
            {"input_tokens": 5, "output_tokens": 0},
            {"tokens": 5, "input_tokens": 5, "output_tokens": 0},
        ),
        ({"input_tokens": 5, "prompt_tokens": 6}, {"input_tokens": 5}),
        ({"input_tokens": 0, "prompt_tokens": 6}, {"input_tokens": 0}),
        ({"total_tokens": 2**53}, {"tokens": 2**53}),
        ({"total_tokens": 2**53 + 1}, {}),
        ({"total_tokens": 10**30}, {}),
        ({"total_tokens": -1}, {}),
        ({"total_tokens": "5"}, {}),
        ({"total_tokens": 5.0}, {}),
        ({"total_tokens": True}, {}),
        ({"total_tokens": None}, {}),
        ({}, {}),
    ],
)
def test_usage_is_read_by_both_names_and_only_where_it_makes_sense(
    usage: dict[str, Any], read: dict[str, int]
) -> None:
    assert read_usage({"usage": usage}) == read
    assert read_usage(SimpleNamespace(usage=usage)) == read
    assert read_usage(SimpleNamespace(usage=SimpleNamespace(**usage))) == read


def test_what_ends_the_program_is_not_held_back() -> None:
    class Ends:
        @property
        def usage(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(Ends(), "usage")


class OddList(list[Any]):
    def __getitem__(self, place: Any) -> Any:
        raise RuntimeError("item")


def test_a_body_may_come_in_a_list() -> None:
    body = {"error": {"code": 429}}
    for given in ([body], b'[{"error": {"code": 429}}]', body):
        assert read_answer(SimpleNamespace(status_code=429, body=given)).body == body
    for given in ([], [7], [[body]], OddList([body]), b"[]"):
        assert read_answer(SimpleNamespace(status_code=429, body=given)).body is None
