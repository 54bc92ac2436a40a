"""Options do what they say, each looked at by its effect."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
import warnings
from typing import Any

import pytest
from own_backend import Own
from users import Provider, asks, at_once, until

from headway import Limit, ManualClock, MemoryBackend, RateLimiterConfig
from headway.metrics import exposition
from headway.scheduler import CachePolicy, Scheduler, StateConfig, StateManager, create_scheduler

LIMITS = ["100 requests/min"]


def kept(scheduler: Scheduler) -> list[Limit]:
    """The limits that the bucket of `asks()` keeps to."""
    asyncio.run(ask(scheduler))
    found = scheduler.explain(asks())
    assert found is not None
    return [state.limit for state in found.limits]


async def ask(scheduler: Scheduler) -> None:
    async with scheduler:
        await scheduler.submit_request(asks(), at_once)


@pytest.mark.parametrize(
    ("options", "argument", "amount"),
    [
        ({}, 1.0, 90),
        ({"rate_limit_buffer_ratio": 1.0}, 1.0, 100),
        ({"test_mode": True, "test_rate_multiplier": 0.5}, 1.0, 45),
        ({"test_mode": True, "test_rate_multiplier": 0.5}, 3.0, 135),
        ({"test_rate_multiplier": 0.5}, 1.0, 90),
        ({}, 0.001, 1),
    ],
)
def test_multipliers_and_the_buffer_are_of_each_limit(
    options: dict[str, Any], argument: float, amount: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a multiplier without its mode: below
        scheduler = create_scheduler(
            None,
            config=RateLimiterConfig(**options),
            default_rate_limits=LIMITS,
            test_rate_multiplier=argument,
        )
    assert [limit.amount for limit in kept(scheduler)] == [amount]


def test_a_multiplier_is_of_what_a_backend_of_ones_own_is_told_too() -> None:
    backend = Own()
    limits = ["100 requests/min", "1_000 tokens/min"]
    scheduler = create_scheduler(None, backend=backend, limits=limits, test_rate_multiplier=0.5)
    asyncio.run(ask(scheduler))
    assert backend.given == ({"rpm_limit": 50, "tpm_limit": 500}, 0.9)


def test_limits_win_over_their_other_name() -> None:
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0)
    both = create_scheduler(None, config=config, limits=LIMITS, default_rate_limits=["7 tokens/s"])
    assert [str(limit) for limit in kept(both)] == ["100 requests/min"]


def test_what_is_counted_can_be_switched_off_and_on() -> None:
    off = RateLimiterConfig(metrics_enabled=False)
    names = StateConfig(namespace="silent"), StateConfig(namespace="loud")
    asyncio.run(ask(create_scheduler(None, config=off, state_config=names[0])))
    assert 'scheduler="silent"' not in exposition()
    loud = create_scheduler(None, config=off, state_config=names[1], metrics_enabled=True)
    asyncio.run(ask(loud))
    assert 'headway_attempts_total{scheduler="loud",bucket="m"} 1' in exposition()


def test_the_state_managers_config_counts_where_the_scheduler_has_none_of_its_own() -> None:
    backend = MemoryBackend()
    manager = StateManager(backend, StateConfig(namespace="managers", cache_ttl=5.0))
    with pytest.warns(
        UserWarning, match=r"no meaning in headway: state_manager\.config\.cache_ttl"
    ):
        scheduler = create_scheduler(None, state_manager=manager)
    asyncio.run(ask(scheduler))
    assert 'headway_attempts_total{scheduler="managers",bucket="m"} 1' in exposition()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_scheduler(None, state_manager=manager, state_config=StateConfig())


@pytest.mark.parametrize(
    "options", [{"mode": "basic"}, {"enable_rate_limiting": False}, {"backend": Own()}]
)
def test_limits_that_were_learnt_are_warned_of_where_nothing_is(options: dict[str, Any]) -> None:
    given = {"backend": options.pop("backend")} if "backend" in options else {}
    with pytest.warns(UserWarning, match=r"no meaning in headway: learnt_limits \(where"):
        create_scheduler(
            None,
            config=RateLimiterConfig(**options),
            learnt_limits={"m": ["5 requests/min"]},
            **given,
        )


@pytest.mark.parametrize(
    ("options", "states", "said"),
    [
        ({}, {"cache_policy": CachePolicy.WRITE_AROUND}, r"state_config\.cache_policy"),
        ({}, {"cache_policy": "write_back"}, r"state_config\.cache_policy"),
        ({"test_rate_multiplier": 2.0}, {}, "test_rate_multiplier"),
        (
            {"prometheus_host": "::", "prometheus_port": 8000},
            {},
            "prometheus_host, prometheus_port .without start_prometheus_server.",
        ),
        (
            {"enable_priority_scheduling": False, "priority_ageing": 5.0},
            {},
            "priority_ageing .without priorities.",
        ),
        ({"mode": "basic", "priority_ageing": 5.0}, {}, "priority_ageing .without priorities."),
    ],
)
def test_what_has_no_meaning_is_warned_of(
    options: dict[str, Any], states: dict[str, Any], said: str
) -> None:
    with pytest.warns(UserWarning, match=f"these options have no meaning in headway: {said}$"):
        create_scheduler(
            None, config=RateLimiterConfig(**options), state_config=StateConfig(**states)
        )


def test_a_provider_that_fails_so_often_in_a_row_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Down(Provider):
        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            self.asked["discover_limits"] += 1
            raise ConnectionError("down")

    async def run() -> None:
        provider = Down()
        config = RateLimiterConfig(
            max_consecutive_failures=4, health_check_interval=0.01, max_backoff=0.01
        )
        async with create_scheduler(None, provider=provider, config=config):
            await until(lambda: provider.asked["discover_limits"] >= 3)
            assert not [each for each in caplog.messages if "in a row" in each]
            await until(lambda: provider.asked["discover_limits"] >= 7)

    asyncio.run(run())
    (said,) = [each for each in caplog.messages if "in a row" in each]
    assert "'mine' has failed 4 times in a row" in said


def test_its_metrics_are_served_where_its_options_say() -> None:
    with socket.socket() as unused:  # of an address of its own, on which nothing else listens
        unused.bind(("127.0.0.7", 0))
        port = unused.getsockname()[1]
    config = RateLimiterConfig(
        start_prometheus_server=True, prometheus_host="127.0.0.7", prometheus_port=port
    )
    state = StateConfig(namespace="served")

    async def run() -> str:
        async with create_scheduler(None, config=config, state_config=state) as scheduler:
            await scheduler.submit_request(asks(), at_once)
            url = f"http://127.0.0.7:{port}/metrics"

            def fetch() -> str:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    text: str = answer.read().decode()
                    return text

            return await asyncio.to_thread(fetch)

    assert 'headway_attempts_total{scheduler="served",bucket="m"} 1' in asyncio.run(run())


def test_a_bucket_admits_nothing_before_the_instant_that_was_scheduled() -> None:
    async def run() -> None:
        clock = ManualClock()
        async with create_scheduler(None, limits=LIMITS, clock=clock) as scheduler:
            await scheduler.submit_request(asks(), at_once)
            await scheduler.schedule_rate_limit_reset("m", time.time() + 30)
            held = asyncio.ensure_future(scheduler.submit_request(asks(), at_once))
            clock.advance(25.0)
            done, _ = await asyncio.wait([held], timeout=0.05)
            assert not done
            clock.advance(6.0)
            assert await asyncio.wait_for(held, 10) == 42

    asyncio.run(run())
