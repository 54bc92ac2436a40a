"""StateManager: what is asked of a backend by model, and answered without keeping a copy."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping
from datetime import datetime, timezone
from time import monotonic
from typing import Any

from headway._log import fields
from headway.backends._failures import Failures
from headway.backends.base import BaseBackend
from headway.errors import (
    BackendOperationError,
    ConfigurationError,
    RateLimiterError,
    TooManyFailedRequestsError,
)
from headway.providers import ProviderInterface
from headway.scheduler.config import CachePolicy, StateConfig
from headway.views._provider import Provided
from headway.views.state import RateLimitState, StateType, jsonable

_logger = logging.getLogger("headway")

_MOST_FAILURES = 20
_FAILURE_WINDOW = 30.0

_all: weakref.WeakSet[StateManager] = weakref.WeakSet()
"""A note for the fork handler."""


class StateManager:
    """A thin view on a backend, by model, with a provider to say which bucket counts for it.

    backend: where the state is. config: None for the defaults. provider: None where the bucket is
    the model. metrics_collector: kept, for whoever asks for it.

    No state is cached: what a cache could answer, it could answer wrongly. So every CachePolicy
    writes at once, and the options of the cache mean nothing. WRITE_BACK in production still has to
    be acknowledged, as in a library where it can lose something.

    The provider is asked as a scheduler asks it: once for each model, and for limits every 30 s at
    most. What it raises, and what makes no sense, is logged and counted, and what was known before
    holds; where nothing was, a model is its own bucket for 10 s, and has no limits of its own.

    An error that the backend raises is one of headway's own, or comes as a BackendOperationError
    that names the method; it is never answered by a made-up state. Safe from any thread and loop if
    the backend is. After a fork the child's is stopped.
    """

    def __init__(
        self,
        backend: BaseBackend,
        config: StateConfig | None = None,
        provider: ProviderInterface | None = None,
        metrics_collector: object | None = None,
    ) -> None:
        self.backend = backend
        self.config = StateConfig() if config is None else config
        self.provider = provider
        self.metrics_collector = metrics_collector
        if self.config.cache_policy is CachePolicy.WRITE_BACK and self.config.is_production:
            if not self.config.acknowledge_write_back_risk:
                raise ConfigurationError(
                    "cache_policy WRITE_BACK with is_production must be acknowledged: set "
                    "acknowledge_write_back_risk=True, or use WRITE_THROUGH"
                )
            if self.config.warn_write_back_production:
                _logger.warning(
                    "cache_policy WRITE_BACK writes at once, as WRITE_THROUGH does",
                    extra=fields("write_back_ignored"),
                )
        self._running = False
        self._lock = threading.Lock()
        self._failures = Failures(_MOST_FAILURES, _FAILURE_WINDOW)
        self._said: Provided | None = None
        _all.add(self)

    def _after_fork(self) -> None:
        """In the child: stopped, for its backend was started in its parent."""
        self._running = False
        self._lock = threading.Lock()  # somebody may have held it
        self._failures = Failures(_MOST_FAILURES, _FAILURE_WINDOW)
        self._said = None

    async def start(self) -> None:
        """Starts the backend; a second time does nothing."""
        if not self._running:
            await self._ask("start")
            self._running = True

    async def stop(self) -> None:
        """Stops the backend. There is nothing to be written first."""
        if self._running:
            self._running = False
            await self._ask("stop")

    async def get_state(
        self, key: str, state_type: StateType = StateType.RATE_LIMIT, force_refresh: bool = False
    ) -> RateLimitState | dict[str, Any] | None:
        """The state as it is now, a RateLimitState or, of another type, a dict; None for none.

        key: of a rate limit, the bucket's id. force_refresh: makes no difference.
        """
        state: dict[str, Any] | None = await self._ask("get_state", self._name(key, state_type))
        if state is None or state_type is not StateType.RATE_LIMIT:
            return state
        said = {name: each for name, each in state.items() if each is not None}
        return RateLimitState.model_validate({"model_id": key, "bucket_id": key} | said)

    async def set_state(
        self,
        key: str,
        state: RateLimitState | Mapping[str, Any],
        state_type: StateType = StateType.RATE_LIMIT,
    ) -> None:
        """Replaces the state, at once. Instants are handed on as ISO 8601 texts."""
        if isinstance(state, RateLimitState):
            state = state.model_dump(mode="json")
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state of type {type(state).__name__}: must be a RateLimitState or a dict"
            )
        await self._ask("set_state", self._name(key, state_type), jsonable(state))

    async def update_state_from_headers(
        self,
        model_id: str,
        resource_type: str,
        headers: Mapping[str, str],
        request_id: str | None = None,
        status_code: int | None = None,
    ) -> int:
        """Hands what a response said to the backend, for the model's bucket; 1 if that was news.

        The backend alone works out what it means, so nothing that was reserved meanwhile is lost.
        """
        bucket = await self._bucket(model_id, resource_type)
        learnt: int = await self._ask(
            "update_rate_limits", model_id, dict(headers), bucket, request_id, status_code
        )
        return learnt

    async def check_and_reserve_capacity(
        self,
        model_id: str,
        resource_type: str,
        request_count: int = 1,
        token_count: int | None = None,
    ) -> tuple[bool, str | None]:
        """Reserves in the model's bucket, by the limits that the provider lists for it.

        Whether it did, and the reservation's id. A limit that the provider does not know is none.
        Raises ConfigurationError, a ValueError, without a provider; BucketNotFoundError where it
        names a bucket that it does not list.
        """
        if self.provider is None:
            raise ConfigurationError("check_and_reserve_capacity needs a provider, got None")
        bucket = await self._bucket(model_id, resource_type)
        known = await self._provided(self.provider).limits(bucket, model_id, resource_type)
        took: tuple[bool, str | None] = await self._ask(
            "check_and_reserve_capacity", bucket, request_count, token_count or 0, known
        )
        return took

    async def release_reservation(
        self, reservation_id: str, model_id: str, resource_type: str
    ) -> bool:
        """Gives back what was reserved and not sent; whether the backend knows of it."""
        bucket = await self._bucket(model_id, resource_type)
        known: bool = await self._ask("release_reservation", bucket, reservation_id)
        return known

    async def record_failed_request(self, model_id: str | None = None) -> int:
        """Counts a failure; how many there were in the last 30 s, whatever the model.

        Raises TooManyFailedRequestsError where those are more than 20.
        """
        with self._lock:
            now = monotonic()
            self._failures.record(now)
            count = self._failures.count(now)
        if count > _MOST_FAILURES:
            raise TooManyFailedRequestsError(
                f"Too many failed requests: {_MOST_FAILURES} failures in "
                f"{_FAILURE_WINDOW:.0f} seconds",
                failure_count=count,
                window_seconds=_FAILURE_WINDOW,
                threshold=_MOST_FAILURES,
            )
        return count

    async def get_next_reset_time(self, bucket_id: str) -> datetime | None:
        """When the bucket that has no request left will have some; None where it has some now.

        Of the count a minute and the count a day, the earlier reset of what is used up.
        """
        state = await self.get_state(bucket_id)
        if not isinstance(state, RateLimitState):
            return None
        now = datetime.now(timezone.utc)
        resets = [
            at
            for remaining, at in (
                (state.remaining_requests, state.reset_at),
                (state.remaining_requests_daily, state.reset_at_daily),
            )
            if remaining is not None and remaining <= 0 and at > now
        ]
        return min(resets, default=None)

    async def health_check(self) -> dict[str, Any]:
        """healthy, backend_healthy, cache_healthy (there is none) and metrics; raises nothing."""
        try:
            healthy = bool((await self.backend.health_check()).healthy)
        except Exception as error:
            _logger.warning(
                "health_check of the backend failed: %s",
                type(error).__name__,
                extra=fields("health_check_failed", error=type(error).__name__),
            )
            healthy = False
        return {
            "healthy": healthy,
            "cache_healthy": True,
            "backend_healthy": healthy,
            "metrics": self.get_metrics(),
        }

    def get_metrics(self) -> dict[str, Any]:
        """state_manager, cache, backend and reservations, each a dict."""
        with self._lock:
            failed = self._failures.count(monotonic())
        return {
            "state_manager": {
                "namespace": self.config.namespace,
                "cache_policy": self.config.cache_policy.value,
                "running": self._running,
                "pending_updates": 0,
                "failed_request_count": failed,
                "user_code_errors": {} if self._said is None else self._said.errors,
            },
            "cache": {},
            "backend": {
                "type": type(self.backend).__name__,
                "namespace": getattr(self.backend, "namespace", None),
            },
            "reservations": {},
        }

    async def _bucket(self, model_id: str, resource_type: str) -> str:
        if self.provider is None:
            return model_id
        return await self._provided(self.provider).bucket(model_id, resource_type)

    def _provided(self, provider: ProviderInterface) -> Provided:
        said = self._said
        if said is None or said.provider is not provider:
            said = self._said = Provided(provider)
        return said

    def _name(self, key: str, state_type: StateType) -> str:
        # Of a rate limit the backend's own key: that is where its capacity is.
        if state_type is StateType.RATE_LIMIT:
            return key
        return f"{self.config.namespace}:{state_type.value}:{key}"

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self.backend, method)(*arguments)
        except RateLimiterError:
            raise
        except Exception as error:
            # Not its text: a connection's may have a password in it. It is chained for who asks.
            raise BackendOperationError(
                f"{method} of {type(self.backend).__name__} failed: {type(error).__name__}"
            ) from error


def _after_fork_in_child() -> None:
    for manager in list(_all):
        manager._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
