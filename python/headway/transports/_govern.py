"""govern: a copy of a ready client that keeps to its provider's limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from headway import Limit, Limiter, RateLimiterConfig, Scheduler, create_scheduler
from headway._bodies import package_of
from headway.errors import ConfigurationError
from headway.providers.table import ProviderTable, provider_tables, table_for
from headway.transports._transport import AsyncTransport, Transport

_Client = TypeVar("_Client")
_KEPT = (
    *("auth", "cookies", "event_hooks", "follow_redirects", "headers", "max_redirects", "params"),
    *("timeout", "trust_env"),
)
_AT_ONCE = 1000


def govern(
    client: _Client,
    *,
    limits: Mapping[str, Sequence[Limit | str]] | Sequence[Limit | str] | None = None,
    scheduler: Scheduler | Limiter | None = None,
    provider: ProviderTable | str | None = None,
    observe_only: bool = False,
) -> _Client:
    """A copy of `client` whose requests wait for their provider's limits; `client` stays as it is.

    client: of the SDKs of OpenAI or Anthropic, or of any that keeps its httpx or httpx2 client as
    `_client` and has `copy(http_client=…)`; or a client of httpx or httpx2 itself, sync or async.
    Its proxies, time-outs, headers and hooks are the copy's, too.

    scheduler: who decides; None makes one, in intelligent mode, with these `limits` (as of
    create_scheduler; None finds them out), for 1000 requests at once and any number that wait. It
    starts with the first request, and lives as long as the process. provider: as of AsyncTransport;
    None goes by the client's type and base URL. observe_only: it only watches, see AsyncTransport.
    ConfigurationError names what cannot be.
    """
    inner: Any = getattr(client, "_client", None)
    of_sdk = package_of(inner) is not None
    http: Any = inner if of_sdk else client
    package = package_of(http)
    if package is None or not hasattr(http, "build_request"):
        raise ConfigurationError(
            f"client of type {type(client).__name__}: must be one of httpx or httpx2, or an SDK's "
            "that has one as _client"
        )
    if scheduler is not None and limits is not None:
        raise ConfigurationError("limits: belong to the scheduler that was given")
    base_url = getattr(client, "base_url", http.base_url)
    if scheduler is None:
        config = RateLimiterConfig(max_concurrent_executions=_AT_ONCE, overflow_policy="wait")
        scheduler = create_scheduler(client, config=config, limits=limits)
    if provider is None:
        provider = _provider_of(client, base_url)
    module: Any = sys.modules[package]
    asynchronous = isinstance(http, module.AsyncClient)
    kept = {name: getattr(http, name) for name in _KEPT}
    kept["default_encoding"] = http._default_encoding
    transport: AsyncTransport | Transport
    if asynchronous:
        transport = AsyncTransport(scheduler, _AsyncWay(http), provider, observe_only=observe_only)
        governed = module.AsyncClient(transport=transport, base_url=http.base_url, **kept)
    else:
        transport = Transport(scheduler, _Way(http), provider, observe_only=observe_only)
        governed = module.Client(transport=transport, base_url=http.base_url, **kept)
    if not of_sdk:
        return governed  # type: ignore[no-any-return]
    if not callable(getattr(client, "copy", None)):
        raise ConfigurationError(f"client of type {type(client).__name__}: has no copy()")
    return client.copy(http_client=governed)  # type: ignore[attr-defined, no-any-return]


class _AsyncWay:
    """The ways of another client, which closes them itself."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def handle_async_request(self, request: Any) -> Any:
        way = self._client._transport_for_url(request.url)
        return await way.handle_async_request(request)

    async def aclose(self) -> None:
        """They are its own."""


class _Way:
    def __init__(self, client: Any) -> None:
        self._client = client

    def handle_request(self, request: Any) -> Any:
        return self._client._transport_for_url(request.url).handle_request(request)

    def close(self) -> None:
        """They are its own."""


def _provider_of(client: object, base_url: object) -> ProviderTable | None:
    """By the host, where it is known; else by whose SDK it is; None: each request's host tells."""
    if table_for(base_url).name != "generic":
        return None
    for kind in type(client).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == "openai" and kind.__name__ in ("AzureOpenAI", "AsyncAzureOpenAI"):
            return provider_tables()["azure"]  # behind a host of one's own
        if package in ("openai", "anthropic"):
            return provider_tables()[package]
    return None
