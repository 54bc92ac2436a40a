"""What a StateManager asks of its provider: once for each model, and for limits now and then."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any, final

from headway.errors import BucketNotFoundError, RateLimiterError
from headway.providers import DiscoveredBucket, ProviderInterface
from headway.scheduler._once import Once
from headway.scheduler.buckets import MOST_BUCKETS
from headway.scheduler.questions import ask_limits, name_of
from headway.scheduler.routes import ASK_AGAIN, ask_bucket
from headway.scheduler.user_code import UserCode

ASK_FOR_LIMITS = 30.0
"""Seconds for which its limits are not asked for anew."""
_PATIENCE = 5.0
"""Seconds that it may take for that, where something is known to go on with; else the usual."""


@final
class Provided:
    """The answers of one provider. From any loop.

    What it raises, and what makes no sense, is logged and counted as a scheduler does; one goes on
    with what is known. Only that there is no such bucket is believed.
    """

    def __init__(self, provider: ProviderInterface) -> None:
        self.provider = provider
        self._user_code = UserCode(lambda _: None)
        self._name = name_of(provider, self._user_code)
        self._once: Once[Any] = Once()
        self._buckets: dict[tuple[str, str], str] = {}
        self._assumed: dict[tuple[str, str], float] = {}  # until when it is the model's name
        self._listed: dict[str, DiscoveredBucket] = {}
        self._listed_until: float | None = None  # None where it was never asked

    @property
    def errors(self) -> dict[str, int]:
        """How often it has raised, or given nonsense; as user_code_errors of a scheduler."""
        return dict(self._user_code.errors)

    async def bucket(self, model: str, kind: str) -> str:
        """The bucket of a model."""
        key = (model, kind)
        known = self._buckets.get(key)
        if known is not None:
            return known
        until = self._assumed.get(key)
        if until is not None and monotonic() < until:
            return model
        bucket: str = await self._once.ask(key, lambda: self._ask_bucket(model, kind))
        return bucket

    async def limits(self, bucket: str, model: str, kind: str) -> dict[str, int]:
        """The limits of a model's bucket, where they are known, as a backend wants them.

        BucketNotFoundError where it was named, and others are listed only.
        """
        listed = await self._list()
        found = listed.get(bucket)
        if found is None:
            if listed and self._buckets.get((model, kind)) == bucket:
                raise BucketNotFoundError(bucket, self._name, model)
            return {}
        limits = {"rpm_limit": found.rpm_limit, "tpm_limit": found.tpm_limit}
        return {name: limit for name, limit in limits.items() if limit is not None}

    async def _list(self) -> Mapping[str, DiscoveredBucket]:
        if self._listed_until is None or monotonic() >= self._listed_until:
            await self._once.ask(None, self._refresh)
        return self._listed

    async def _ask_bucket(self, model: str, kind: str) -> str:
        # Names come from outside; what is not known any more is asked again.
        for known in (self._buckets, self._assumed):
            if len(known) >= MOST_BUCKETS:
                known.clear()
        try:
            bucket = await ask_bucket(self._user_code, self.provider, self._name, model, kind)
        except BucketNotFoundError:
            raise
        except RateLimiterError:  # logged and counted
            self._assumed[(model, kind)] = monotonic() + ASK_AGAIN
            return model
        self._buckets[(model, kind)] = bucket
        return bucket

    async def _refresh(self) -> None:
        force = self._listed_until is not None
        patience = _PATIENCE if self._listed else None
        try:
            self._listed, _ = await ask_limits(
                self._user_code,
                self.provider,
                self._name,
                self._listed,
                force=force,
                patience=patience,
            )
        except RateLimiterError:  # logged and counted
            self._listed_until = monotonic() + ASK_AGAIN
        else:
            self._listed_until = monotonic() + ASK_FOR_LIMITS
