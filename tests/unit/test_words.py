"""What a newcomer mistypes is answered in words: the input, its value, and the rule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from headway import (
    TEXT,
    Account,
    ConfigurationError,
    Limit,
    Limiter,
    ProviderInterface,
    RequestMetadata,
    create_scheduler,
)
from headway.backends import MemoryBackend
from headway.scheduler import RateLimiterConfig, SchedulingStrategy, StateConfig

REQUEST = RequestMetadata("r", "m", TEXT)


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


# -- what a scheduler is made of ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "quick"}, "Unknown scheduler mode: quick. Available modes: 'basic', 'intell"),
        ({"mode": 5}, "Unknown scheduler mode: 5. Available modes: "),
        ({"config": {"max_retries": 1}}, "config of type dict: must be a RateLimiterConfig"),
        (
            {"config": {"max_retries": 1}, "mode": "basic"},
            "config of type dict: must be a RateLimiterConfig",
        ),
        ({"state_config": {"namespace": "n"}}, "state_config of type dict: must be a StateConfig"),
        ({"provider": "sk-secret"}, "provider of type str: must be an object like a Provider"),
        ({"provider": ProviderInterface}, "provider of type ABCMeta: must be an object"),
        ({"clock": 5}, "clock 5: must be a ManualClock or None"),
        ({"retry_on": ValueError}, "retry_on <class 'ValueError'>: must be a list of types"),
        ({"retry_on": ["ValueError"]}, "retry_on ['ValueError']: must be a list of types"),
        ({"test_rate_multiplier": "x"}, "test_rate_multiplier must be positive, a number, got 'x'"),
        ({"test_rate_multiplier": -1}, "test_rate_multiplier must be positive, got -1"),
        ({"metrics_enabled": "no"}, "metrics_enabled must be True or False, got 'no'"),
        ({"accounts": ["a"]}, "accounts ['a']: must be a dict of weights or Accounts"),
        (
            {"accounts": {"a": "x"}},
            "accounts 'a': weight 'x': must be a number from 0.001 to 1_000_000",
        ),
        ({"limits": 5}, "limits 5: must be a list of limits"),
        ({"limits": {"m": None}}, "limits 'm' None: must be a list of limits"),
        (
            {"scheduling_strategy": "fast"},
            "scheduling_strategy: Unknown scheduling strategy: fast. Available strategies: ",
        ),
        (
            {"scheduling_strategy": SchedulingStrategy.FIFO},
            "scheduling_strategy <SchedulingStrategy.FIFO: 'fifo'>: must have `async select(",
        ),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_scheduler(None, **given)
    assert str(caught.value).startswith(said)
    if "scheduling_strategy" in given:
        assert "'deficit_round_robin'" in str(caught.value)


def test_limits_of_an_account_are_a_list() -> None:
    with pytest.raises(ConfigurationError, match="limits 5: must be a list of limits"):
        Account(limits=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "limits 5: must be a limit or a list of them"),
        (None, "limits None: must be a limit or a list of them"),
        ([5], "limits 5: must be a Limit or its text"),
    ],
)
def test_a_limiter_names_what_is_no_limit(given: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        Limiter(given)


_ODD: list[Any] = [object(), "", b"x", None, [], {}, 1j, float("nan"), float("inf"), -1, 10**400]
_OPTIONS = [(kind, field) for kind in (RateLimiterConfig, StateConfig) for field in fields(kind)]


@pytest.mark.parametrize(
    ("kind", "field"), _OPTIONS, ids=[f"{kind.__name__}.{field.name}" for kind, field in _OPTIONS]
)
def test_whatever_an_option_is_given_it_takes_or_names(kind: Any, field: Any) -> None:
    taken, said = [], {}
    for odd in _ODD:
        try:
            kind(**{field.name: odd})
        except ConfigurationError as error:
            said[repr(odd)] = str(error)
        else:
            taken.append(odd)
    for odd, text in said.items():
        if field.name == "mode":
            assert text.startswith("Unknown scheduler mode: ")
        else:
            assert text.startswith(f"{field.name} must be ")
            assert text.endswith(f"got {odd}")
    nothing = field.name in {"stale_entry_ttl", "max_tracking_entries", "max_cache_size"}
    assert taken == ([None] if nothing else [])


# -- what it is asked -----------------------------------------------------------------------------


def test_one_request_is_no_batch() -> None:
    scheduler = create_scheduler(None)
    with pytest.raises(
        TypeError, match=r"costs RequestMetadata: must be an iterable .*\[request\]"
    ):
        scheduler.preview(REQUEST)  # type: ignore[arg-type]
    assert scheduler.preview([REQUEST]).fits


@pytest.mark.parametrize(
    "ask",
    [
        lambda scheduler, what: scheduler.preview([what]),
        lambda scheduler, what: scheduler.estimate(what),
        lambda scheduler, what: scheduler.explain(what),
        lambda scheduler, what: scheduler.submit_sync(what, lambda: 1),
    ],
)
@pytest.mark.parametrize("what", [None, "m", 5, RequestMetadata("r", None, TEXT)])  # type: ignore[arg-type]
def test_what_is_no_metadata_is_named(ask: Callable[[Any, Any], Any], what: Any) -> None:
    with create_scheduler(None) as scheduler:
        with pytest.raises(TypeError) as caught:
            ask(scheduler, what)
        name = type(what).__name__
        given = isinstance(what, RequestMetadata)
        assert str(caught.value) == (
            "metadata.model_id None: must be a str"
            if given
            else f"metadata {name}: must be a RequestMetadata"
        )
        assert scheduler.get_metrics()["requests_scheduled"] == 0


async def _answers() -> int:
    return 42


class _Answers:
    async def answer(self) -> int:
        return 42


@pytest.mark.parametrize(
    ("function", "name"),
    [(_answers, "_answers"), (_Answers().answer, "_Answers.answer")],
)
def test_an_async_function_is_not_for_a_thread(function: Any, name: str) -> None:
    with create_scheduler(None, limits=["9 requests/min"]) as scheduler:
        with pytest.raises(TypeError) as caught:
            scheduler.submit_sync(REQUEST, function)
        assert str(caught.value).startswith(
            f"request_func {name} is an async function: submit_sync"
        )
        assert "submit_request awaits" in str(caught.value)
        explanation = scheduler.explain(REQUEST)
        assert explanation is not None
        assert explanation.limits[0].used == 0, "nothing was taken for it"
        # What cannot be seen from outside is found when it is called.
        with pytest.raises(TypeError, match="gave an awaitable: submit_sync is for plain"):
            scheduler.submit_sync(REQUEST, lambda: [_answers()][0])


def test_a_coroutine_is_no_function() -> None:
    said = "request_func of type coroutine: must be callable without arguments"

    async def run() -> None:
        coroutine = _answers()
        async with create_scheduler(None) as scheduler:
            with pytest.raises(TypeError, match=said):
                await scheduler.submit_request(REQUEST, coroutine)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=said):
                await scheduler.submit(REQUEST, coroutine)  # type: ignore[arg-type]
            assert scheduler.get_metrics()["requests_scheduled"] == 0
        coroutine.close()

    asyncio.run(run())
    coroutine = _answers()
    with create_scheduler(None) as scheduler, pytest.raises(TypeError, match=said):
        scheduler.submit_sync(REQUEST, coroutine)  # type: ignore[arg-type]
    coroutine.close()


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize(
    "ask",
    [
        lambda scheduler, what: scheduler.preview([what]),
        lambda scheduler, what: scheduler.estimate(what),
        lambda scheduler, what: scheduler.submit_sync(what, lambda: 1),
        lambda scheduler, what: asyncio.run(_awaited(scheduler.submit_request(what, _answers))),
    ],
)
def test_a_cost_of_a_resource_that_nobody_knows_is_refused(
    ask: Callable[[Any, Any], Any], limited: bool
) -> None:
    limits = {"other": ["9 images/min"], "m": ["900 tokens/min"]}
    accounts = {"a": Account(limits=["9 pages/day"])}
    config = RateLimiterConfig(enable_rate_limiting=limited, mode="account")  # type: ignore[arg-type]
    with create_scheduler(None, config=config, limits=limits, accounts=accounts) as scheduler:
        for cost in ({"tokns": 5}, {"tokens": 5, "image": 1}):
            with pytest.raises(ValueError) as caught:
                ask(scheduler, RequestMetadata("r", "m", TEXT, cost=cost))
            assert str(caught.value).startswith(f"cost {cost!r}: {[*cost][-1]!r} is no resource")
        # What others count, or a provider might, costs nothing here.
        for name in ("images", "pages", "requests", "input_tokens", "output_tokens"):
            ask(scheduler, RequestMetadata("r", "m", TEXT, cost={name: 1}))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize("when", ["soon", None, float("nan")])
def test_an_instant_that_is_none_is_named(when: Any) -> None:
    async def run() -> None:
        with pytest.raises(ConfigurationError, match=f"reset_timestamp {when!r}: must be a number"):
            await create_scheduler(None).schedule_rate_limit_reset("m", when)

    asyncio.run(run())


@pytest.mark.parametrize("timeout", ["5", None, -1, float("nan")])
def test_a_drain_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with (
        create_scheduler(None) as scheduler,
        pytest.raises(ConfigurationError, match=r"drain_timeout .*: must be 0 or more seconds"),
    ):
        scheduler.stop_sync(drain_timeout=timeout)


def test_whoever_shares_a_bucket_is_told_that_its_limits_are_another_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = MemoryBackend()
    first = create_scheduler(None, limits=["100 requests/min"], backend=backend)
    other = create_scheduler(None, limits=["10 requests/min", "500 tokens/min"], backend=backend)
    with first, other:
        for scheduler in (first, other, first):
            scheduler.submit_sync(RequestMetadata("r", "m", TEXT), lambda: None)
    told = [each.getMessage() for each in caplog.records if "has limits already" in each.message]
    assert told == [
        (
            "bucket 'm' of the backend has limits already, which hold for all who share it: "
            "90 requests/min; not 9 requests/min, 450 tokens/min"
        )
    ]
