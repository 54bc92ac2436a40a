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


def test_a_resource_of_ones_own_is_none() -> None:
    assert Limit.parse("100 images/min").resource == "images"
