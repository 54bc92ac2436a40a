"""Limits as values and as text."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from headway import Limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500 requests/min", Limit(500)),
        ("200_000 tokens/60s window", Limit(200_000, "tokens", shape="window")),
        (
            "100 requests/s bucket burst 10",
            Limit(100, "requests", 1.0, shape="bucket", burst=10),
        ),
        ("10_000 requests/day fixed", Limit(10_000, "requests", 86_400.0, "fixed")),
        ("32 concurrency", Limit(32, "concurrency")),
        ("5 requests / 2 hour", Limit(5, "requests", 7200.0)),
        ("5 requests/0.25s", Limit(5, "requests", 0.25)),
        ("7 tokens/second", Limit(7, "tokens", 1.0)),
        ("9 my_unit/h", Limit(9, "my_unit", 3600.0)),
        ("9 requests/day fixed anchor -28800", Limit(9, per=86_400, shape="fixed", anchor=-28_800)),
    ],
)
def test_text_says_the_same_as_the_arguments(text: str, expected: Limit) -> None:
    limit = Limit.parse(text)
    assert limit == expected
    assert Limit.parse(str(limit)) == limit
    assert hash(limit) == hash(expected)
    assert pickle.loads(pickle.dumps(limit)) == limit


def test_attributes_are_in_the_units_of_the_documentation() -> None:
    limit = Limit(100, "tokens", per=1.5, shape="bucket", burst=7)
    assert (limit.amount, limit.resource, limit.per) == (100, "tokens", 1.5)
    assert (limit.shape, limit.burst, limit.anchor) == ("bucket", 7, None)
    assert Limit(100, shape="bucket").burst == 100
    assert Limit(100).shape is None
    assert Limit(100).burst is None
    assert Limit(3, "concurrency").shape == "concurrency"
    assert repr(Limit(3, "concurrency")) == "Limit('3 concurrency')"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"amount": -1}, ["amount -1", "0 to 2**53"]),
        ({"amount": 2**53 + 1}, ["amount", "2**53"]),
        ({"amount": 10**30}, ["amount", "2**53"]),
        ({"amount": 1, "per": 0.0005}, ["per 0.0005", "0.001 s to 31 days"]),
        ({"amount": 1, "per": 32 * 86_400.0}, ["per", "31 days"]),
        ({"amount": 1, "per": float("nan")}, ["per", "finite"]),
        ({"amount": 1, "resource": "Tokens"}, ["resource 'Tokens'", "lower-case"]),
        ({"amount": 1, "resource": ""}, ["resource ''"]),
        ({"amount": 1, "resource": "request"}, ["resource 'request'", "'requests'"]),
        ({"amount": 1, "resource": "tokns"}, ["resource 'tokns'", "must be 'tokens'", "your own"]),
        ({"amount": 1, "resource": "prompt_tokens"}, ["must be 'input_tokens'"]),
        ({"amount": 1, "shape": "leaky"}, ["shape 'leaky'", "'bucket', 'fixed', 'window'"]),
        ({"amount": 1, "burst": 5}, ["burst 5", "needs shape 'bucket'"]),
        ({"amount": 1, "shape": "bucket", "burst": 0}, ["burst 0", "1 to 2**53"]),
        ({"amount": 1, "shape": "window", "anchor": 0.0}, ["anchor 0", "needs shape 'fixed'"]),
        ({"amount": 1, "shape": "concurrency"}, ["shape 'concurrency'"]),
        ({"amount": 1, "resource": "concurrency", "shape": "bucket"}, ["shape 'bucket'"]),
        (
            {"amount": 1, "per": 31 * 86_400.0, "shape": "bucket", "burst": 2**53},
            ["burst", "4.5 years"],
        ),
    ],
)
def test_bad_values_are_named_with_the_rule(arguments: dict[str, object], names: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        Limit(**arguments)  # type: ignore[arg-type]
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5, "tokens", "min"), "per 'min': must be a number of seconds, as 60 for a minute"),
        ((5, 5), "resource 5: must be a text"),
        ((5, "tokens", 60, 3), "shape 3: must be a text"),
        ((5, "tokens", 60, "fixed", None, "noon"), "anchor 'noon': must be a number of seconds"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(arguments: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says) as raised:
        Limit(*arguments)
    assert "incompatible" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("60 requests/minutes", "60 requests/min"),
        ("60 requests/m", "60 requests/min"),
        ("60 requests/hr", "60 requests/hour"),
        ("60 requests / 2 hrs window", "60 requests / 2 hour window"),
        ("60 requests/30 seconds bucket burst 2", "60 requests/30 s bucket burst 2"),
        ("60 requests/days", "60 requests/day"),
    ],
)
def test_a_period_that_is_nearly_one_says_what_to_write(text: str, instead: str) -> None:
    with pytest.raises(ValueError, match=f"limit '{text}': write '{instead}'$"):
        Limit.parse(text)
    Limit.parse(instead)


@pytest.mark.parametrize("amount", [1.5, 2.0, "3", None, True])
def test_amounts_that_are_no_whole_numbers_are_refused(amount: object) -> None:
    with pytest.raises(TypeError, match="whole number"):
        Limit(amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "500",
        "500 requests",
        "500 requests/fortnight",
        "500 requests/",
        "x requests/min",
        "-5 requests/min",
        "500 requests/min leaky",
        "500 requests/min burst 5",
        "500 requests/min bucket burst",
        "500 requests/min bucket bucket",
        "3 concurrency/min",
        "1__ requests/min",
        "500 requests/min window anchor 5",
    ],
)
def test_text_that_is_no_limit_is_quoted(text: str) -> None:
    with pytest.raises(ValueError) as error:
        Limit.parse(text)
    assert f"limit '{text}'" in str(error.value)


@pytest.mark.parametrize(
    "limit",
    [
        Limit(0, shape="bucket"),
        Limit(0, "tokens", 60.0),
        Limit(5, "concurrency"),
        Limit.parse("10 requests/day fixed anchor 1700000000.123456789"),
    ],
)
def test_every_limit_survives_a_copy_and_a_pickle(limit: Limit) -> None:
    assert pickle.loads(pickle.dumps(limit)) == limit
    assert copy.copy(limit) == copy.deepcopy(limit) == limit
