"""What a newcomer mistypes is answered in words: the input, its value, and the rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headway import Account, ConfigurationError, Limit, create_scheduler


@pytest.mark.parametrize(
    ("make", "begins"),
    [
        (lambda text: create_scheduler(None, limits=[text]), "limits: "),
        (lambda text: create_scheduler(None, limits={"m": [text]}), "limits 'm': "),
        (lambda text: create_scheduler(None, default_rate_limits=text), "limits: "),
        (lambda text: Account(limits=[text]), "limits: "),
    ],
)
def test_a_limit_of_a_misspelt_resource_is_refused(
    make: Callable[[str], object], begins: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make("100 tokns/min")
    said = str(caught.value)
    assert said.startswith(f"{begins}limit '100 tokns/min': resource 'tokns': must be 'tokens'")


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("60 rpm", "60 requests/min"),
        ("60RPM", "60 requests/min"),
        ("60_000 TPM", "60_000 tokens/min"),
        ("5 rpd window", "5 requests/day"),
        ("50 itpm", "50 input_tokens/min"),
        ("10 concurrent", "10 concurrency"),
        ("60/min", "60 requests/min', or whatever it limits instead of 'requests"),
        ("60 per minute", "60 requests/minute', or whatever it limits instead of 'requests"),
        ("60 tokens per minute", "60 tokens/minute"),
    ],
)
def test_text_that_says_a_limit_in_other_words_is_told_ours(text: str, instead: str) -> None:
    with pytest.raises(ValueError) as caught:
        Limit.parse(text)
    assert str(caught.value) == f"limit '{text}': write '{instead}'"
    assert Limit.parse(instead.partition("'")[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("60,000 tokens/min", "amount '60,000' is not a whole number, as in 60000 or 60_000"),
        ("rpm 60", "amount 'rpm' is not a whole number"),
        ("60 rpx", "a period is missing, as in '/min'"),
        ("60 per week", "a period is missing, as in '/min'"),
        ("60", "must read '<amount> <resource>/<period>"),
    ],
)
def test_text_of_which_nothing_can_be_guessed_is_told_the_rule(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Limit.parse(text)
    assert str(caught.value).startswith(f"limit '{text}': {said}")


def test_a_resource_of_ones_own_is_none() -> None:
    assert Limit.parse("100 images/min").resource == "images"
