"""What is handed to a scheduler: what could not work is refused when it is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headway import (
    TEXT,
    ConfigurationError,
    DiscoveredBucket,
    MemoryBackend,
    RequestMetadata,
    create_scheduler,
)
from headway.strategies import FairQueueStrategy


@pytest.mark.parametrize(
    "verb",
    [
        "check_and_reserve_capacity",
        "release_reservation",
        "release_streaming_reservation",
        "check_capacity",
    ],
)
def test_a_verb_that_would_not_be_asked_cannot_be_overridden(verb: str) -> None:
    async def mine(self: Any, *_: Any) -> Any: ...

    with pytest.raises(ConfigurationError, match=f"of type Mine: overrides {verb}.*BaseBackend"):
        create_scheduler(None, backend=type("Mine", (MemoryBackend,), {verb: mine})())
    patched = MemoryBackend()
    setattr(patched, verb, mine)
    with pytest.raises(ConfigurationError, match=verb):
        create_scheduler(None, backend=patched)


def test_other_methods_of_a_backend_in_memory_may_be_overridden() -> None:
    class Mine(MemoryBackend):
        async def start(self) -> None: ...

        async def set_state(self, key: str, state: dict[str, Any]) -> None: ...

    backend = Mine()
    assert create_scheduler(None, backend=backend).backend is backend


class Protocols:
    """Matches what is asked of each, and is a subclass of nothing."""

    name = "mine"

    async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
        return {}

    def parse_rate_limit_response(self, *_: Any) -> Any: ...
    async def get_bucket_for_model(self, *_: Any) -> str:
        return "b"

    async def classify(self, request: Any) -> Any: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def select(self, eligible: Any) -> Any: ...


WRONG: list[tuple[str, Any, str]] = [
    ("provider", object(), "provider of type object: must be .*ProviderInterface.*discover_limits"),
    ("provider", Protocols, "provider of type type: must be an object"),
    ("classifier", lambda request: request, "classifier of type function: .*classify"),
    ("classifier", Protocols, "classifier of type type: .*classify"),
    ("state_manager", object(), "state_manager of type object: .*StateManager.*start"),
    ("scheduling_strategy", FairQueueStrategy, r"not a class, as in FairQueueStrategy\(\)"),
    ("scheduling_strategy", object(), "scheduling_strategy .*select"),
]


@pytest.mark.parametrize(("name", "given", "says"), WRONG)
def test_what_has_not_the_methods_that_are_asked_is_refused(
    name: str, given: Any, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        create_scheduler(None, **{name: given})


@pytest.mark.parametrize("name", ["provider", "classifier", "state_manager", "scheduling_strategy"])
def test_what_merely_has_the_methods_will_do(name: str) -> None:
    given = Protocols()
    assert getattr(create_scheduler(None, **{name: given}), name) is given


def test_a_provider_in_basic_mode_is_warned_of_like_accounts() -> None:
    with pytest.warns(UserWarning, match="the provider's limits \\(in mode basic"):
        create_scheduler(None, mode="basic", provider=Protocols())


# -- limits that limit nothing --------------------------------------------------------------------


def asks(model: str, **fields: Any) -> RequestMetadata:
    return RequestMetadata("r", model, TEXT, **fields)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records]


def test_a_model_that_is_not_in_the_dict_of_limits_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = create_scheduler(None, limits={"gpt-4o": ["60 requests/min"]})
    scheduler.estimate(asks("gpt-4o"))
    scheduler.estimate(asks("", requires_model=False))
    assert told(caplog) == []
    for model in ("gpt4o", "gpt4o", "other"):
        scheduler.estimate(asks(model))
    assert told(caplog) == [
        "bucket 'gpt4o' has no limits: they were given for 'gpt-4o' only; more such are not logged"
    ]


def test_where_every_model_has_limits_or_none_has_nothing_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for limits in (None, {}, ["60 requests/min"], {"m": []}):
        create_scheduler(None, limits=limits).estimate(asks("m"))
    assert told(caplog) == []


def test_a_limit_of_tokens_without_an_estimate_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduler = create_scheduler(None, limits=["60 requests/min", "1_000 tokens/min"])
    scheduler.estimate(asks("exact", cost={"tokens": 4}))
    scheduler.estimate(asks("none", estimated_tokens=0))
    assert told(caplog) == []
    scheduler.estimate(asks("m"))
    scheduler.estimate(asks("n"))
    (text,) = told(caplog)
    assert text == (
        "bucket 'm': a request without estimated_tokens reserves none of '900 tokens/min', which "
        "then counts only what answers say was used; more such are not logged"
    )


def test_limits_of_the_wrong_type_say_that_there_are_none_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wrong(Protocols):
        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            return {"b": DiscoveredBucket("b", rpm_limit="60")}  # type: ignore[arg-type]

    async def run() -> None:
        async with create_scheduler(None, provider=Wrong()):
            pass

    asyncio.run(run())
    (text,) = told(caplog)
    assert "limits must be None or whole numbers from 0 to 2**53; until it gives good ones" in text
    assert "requests go by given and earlier limits, or without any" in text


def test_what_is_no_bucket_at_all_is_told_from_one_with_wrong_limits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Dicts(Protocols):
        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            return {"b": {"rpm_limit": 60}}

    async def run() -> None:
        async with create_scheduler(None, provider=Dicts()):
            pass

    asyncio.run(run())
    (text,) = told(caplog)
    assert "gave {'b': {'rpm_limit': 60}}: must be a dict of DiscoveredBucket by bucket id" in text
