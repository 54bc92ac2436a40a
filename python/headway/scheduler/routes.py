"""From a request's metadata to its bucket; the provider is asked once for each model."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, final

from headway.errors import BucketNotFoundError, RateLimiterError
from headway.providers import ProviderInterface, ProviderTable
from headway.scheduler._once import Once
from headway.scheduler.answers import look
from headway.scheduler.arguments import check_metadata
from headway.scheduler.buckets import MOST_BUCKETS, Bucket, Buckets
from headway.scheduler.user_code import UserCode, method_of
from headway.types import RequestMetadata

ASK_AGAIN = 10.0
"""Seconds for which a bucket is assumed after the provider could not name one."""

_Key = tuple[str, str]


@final
class Routes:
    """Fills the cache that the core looks into: by resource type, by model, the bucket."""

    def __init__(
        self,
        cache: dict[str, dict[str, Bucket]],
        buckets: Buckets,
        provider: ProviderInterface | None,
        user_code: UserCode,
        provider_name: Callable[[], str],
        *,
        table: ProviderTable,
    ) -> None:
        self._cache = cache
        self._buckets = buckets
        self._provider = provider
        self._user_code = user_code
        self._provider_name = provider_name
        self._table = table
        self._remembered = 0
        self._assumed: dict[_Key, tuple[Bucket, float]] = {}
        self._once: Once[Bucket] = Once()

    def known(self, metadata: RequestMetadata) -> Bucket | None:
        """The bucket, if nobody needs to be asked for it."""
        check_metadata(metadata)
        if not metadata.requires_model or not metadata.model_id:
            # The provider was not asked, so it need not list it.
            return self._buckets.make_unlisted(f"default_{metadata.resource_type}")
        bucket = self._cache.get(metadata.resource_type, {}).get(metadata.model_id)
        if bucket is not None:
            return bucket
        if self._provider is None:
            return self._remember(metadata, self._buckets.make_unlisted(self._name(metadata)))
        return None

    def _name(self, metadata: RequestMetadata) -> str:
        """By the table of whoever sends it, else the scheduler's; limits given for it are its."""
        model = metadata.model_id
        if self._buckets.is_given(model):
            return model
        table = look(metadata, "table")
        return (table if isinstance(table, ProviderTable) else self._table).bucket_for(model)

    async def find(self, metadata: RequestMetadata) -> Bucket:
        """The bucket. BucketNotFoundError where the provider names one that it does not list."""
        bucket = self.known(metadata)
        if bucket is not None:
            return bucket
        key = (metadata.model_id, metadata.resource_type)
        assumed = self._assumed.get(key)
        if assumed is not None and monotonic() < assumed[1]:
            return assumed[0]
        return await self._once.ask(key, lambda: self._ask(metadata))

    async def _ask(self, metadata: RequestMetadata) -> Bucket:
        provider = self._provider
        assert provider is not None
        model, kind = metadata.model_id, metadata.resource_type
        name = self._provider_name()
        try:
            given = await ask_bucket(self._user_code, provider, name, model, kind)
        except BucketNotFoundError:
            raise
        except RateLimiterError:
            # It has been logged and counted. The request goes on with what is known.
            bucket = self._buckets.make_unlisted(model)
            if len(self._assumed) >= MOST_BUCKETS:
                self._assumed.clear()
            self._assumed[(model, kind)] = (bucket, monotonic() + ASK_AGAIN)
            return bucket
        self._assumed.pop((model, kind), None)
        return self._remember(metadata, self._buckets.find(given, name, model))

    def _remember(self, metadata: RequestMetadata, bucket: Bucket) -> Bucket:
        self._buckets.first_seen(bucket, metadata)
        # Names come from outside; what is not known any more is asked again.
        self._remembered += 1
        if self._remembered > 2 * MOST_BUCKETS:
            self._remembered = 1
            self._cache.clear()
        self._cache.setdefault(metadata.resource_type, {})[metadata.model_id] = bucket
        return bucket


async def ask_bucket(
    user_code: UserCode, provider: ProviderInterface, name: str, model: str, kind: str
) -> str:
    """The id of the bucket that a provider, called `name`, names for a model.

    BucketNotFoundError, with both names, where it says that there is none. Another RateLimiterError
    where it fails, or gives nonsense, which has been logged and counted.
    """
    origin = f"get_bucket_for_model of provider {name!r}"
    try:
        given: Any = await user_code.call(
            origin, method_of(provider, "get_bucket_for_model"), model, kind
        )
    except BucketNotFoundError as error:
        if error.provider is not None or error.model_id is not None:
            raise
        raise BucketNotFoundError(error.bucket_id, name, model) from error
    if not isinstance(given, str) or not given:
        raise user_code.nonsense(origin, given, "must be the id of a bucket, a str")
    return given
