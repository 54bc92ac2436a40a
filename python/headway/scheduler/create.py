"""create_scheduler: a scheduler from a client and whatever else is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headway._core import ManualClock
from headway.protocols import ClassifierProtocol, ClientProtocol
from headway.providers import ProviderInterface, ProviderTable
from headway.scheduler.accounts import Account
from headway.scheduler.buckets import GivenLimits, LearntLimits
from headway.scheduler.config import RateLimiterConfig, SchedulerMode, StateConfig
from headway.scheduler.scheduler import Scheduler


def create_scheduler(  # noqa: PLR0917 - the order is promised
    client: ClientProtocol | Any,
    mode: SchedulerMode | str | None = None,
    config: RateLimiterConfig | None = None,
    provider: ProviderInterface | ProviderTable | str | None = None,
    classifier: ClassifierProtocol | None = None,
    state_manager: Any = None,
    scheduling_strategy: Any = None,
    *,
    backend: Any = None,
    state_config: StateConfig | None = None,
    limits: GivenLimits | None = None,
    learnt_limits: LearntLimits | None = None,
    accounts: Mapping[str, float | Account] | None = None,
    clock: ManualClock | None = None,
    retry_on: Iterable[type[BaseException]] = (),
    test_rate_multiplier: float = 1.0,
    metrics_enabled: bool = False,
    default_rate_limits: GivenLimits | None = None,
) -> Scheduler:
    """A scheduler; nothing but the client must be given.

    mode: "basic", "intelligent" or "account"; None is the config's. config: its options; they are
    not changed. provider: knows which bucket counts a model, and that bucket's limits; or a table
    by which answers are read, or its name; None goes by the client's base URL. classifier:
    makes metadata of requests that are dicts. state_manager, backend: where the words live.
    scheduling_strategy: decides between buckets that are ready at the same instant, from
    `headway.strategies` or your own. limits: a list for every bucket, or a dict of lists by bucket
    id; they win over what the provider says, resource by resource. learnt_limits: what another
    scheduler's `learnt_limits()` gave; they hold until answers say otherwise. accounts: by
    client_id, a weight or an Account. clock: a ManualClock for tests. retry_on: exceptions that are
    worth another attempt beside those of transports and providers. default_rate_limits: the same as
    limits.
    test_rate_multiplier: of every rate limit.

    ConfigurationError (a ValueError) names what is wrong.
    """
    import dataclasses

    chosen = RateLimiterConfig() if config is None else config
    if mode is not None and isinstance(chosen, RateLimiterConfig):  # else Scheduler says so
        chosen = dataclasses.replace(chosen, mode=SchedulerMode.parse(mode))
    return Scheduler(
        client,
        chosen,
        provider,
        classifier,
        state_manager,
        scheduling_strategy,
        test_rate_multiplier,
        metrics_enabled,
        default_rate_limits,
        backend=backend,
        state_config=state_config,
        limits=limits,
        learnt_limits=learnt_limits,
        accounts=accounts,
        clock=clock,
        retry_on=retry_on,
    )
