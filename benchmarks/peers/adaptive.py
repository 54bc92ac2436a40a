"""adaptive-rate-limiter's scheduler, made as its documents do it, and awaited like headway's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from typing import Any, final

NAME = "adaptive-rate-limiter"
MISSING = "not installed"


def is_installed() -> bool:
    """Whether it can be imported."""
    return find_spec("adaptive_rate_limiter") is not None


@final
class Scheduler:
    """Its scheduler before one bucket `m`; limits are those of a minute, None where unknown."""

    def __init__(
        self, mode: str, requests: int | None, tokens: int | None, **config: object
    ) -> None:
        library = import_module("adaptive_rate_limiter")
        scheduling = import_module("adaptive_rate_limiter.scheduler")

        class Provider(library.ProviderInterface):  # type: ignore[misc, name-defined]
            @property
            def name(self) -> str:
                return "p"

            async def discover_limits(self, *_: object, **__: object) -> Any:
                return {"m": library.DiscoveredBucket("m", requests, tokens)}

            def parse_rate_limit_response(self, *_: object, **__: object) -> Any:
                return library.RateLimitInfo()

            async def get_bucket_for_model(self, *_: object) -> str:
                return "m"

        class Client:
            base_url = "https://api.example.com"
            timeout = 30.0

            def get_headers(self) -> dict[str, str]:
                return {}

        class Classifier:
            async def classify(self, request: Any) -> Any:
                return request

        provider = Provider()
        # It knows what is reserved by the request's name.
        self._numbers = count()
        self._metadata = library.RequestMetadata
        self._scheduler = scheduling.create_scheduler(
            Client(),
            mode=mode,
            config=library.RateLimiterConfig(**config),
            provider=provider,
            classifier=Classifier(),
            state_manager=scheduling.StateManager(library.MemoryBackend(), provider=provider),
        )

    async def submit(
        self,
        call: Callable[[], Awaitable[Any]],
        client: str = "a",
        model: str = "m",
        tokens: int = 1,
    ) -> Any:
        """What `call` gives."""
        metadata = self._metadata(
            str(next(self._numbers)), model, "text", estimated_tokens=tokens, client_id=client
        )
        result = await self._scheduler.submit_request(metadata, call)
        # Two of its three modes give what has a future, instead of the result.
        return await result.request.future if hasattr(result, "request") else result

    async def __aenter__(self) -> Scheduler:
        await self._scheduler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._scheduler.stop()
