"""The documented steps, one by one, as a user types them: each runs and does what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Dict, Optional  # noqa: UP035 - as users write it

import pytest

from headway import (
    TEXT,
    BucketNotFoundError,
    CapacityExceededError,
    ClientProtocol,
    DiscoveredBucket,
    ProviderInterface,
    QueueOverflowError,
    RateLimiterError,
    RateLimitInfo,
    RequestMetadata,
    TooManyFailedRequestsError,
)
from headway.scheduler import RateLimiterConfig, Scheduler, create_scheduler

# -- quick start ----------------------------------------------------------------------------------


class MyClient(ClientProtocol):
    @property
    def base_url(self) -> str:
        return "https://api.example.com"

    @property
    def timeout(self) -> float:
        return 30.0

    def get_headers(self) -> dict:  # type: ignore[type-arg]
        return {"Authorization": "Bearer ..."}


def asks(request_id: str = "req-12345", **fields: Any) -> RequestMetadata:
    return RequestMetadata(
        request_id=request_id,
        model_id="venice-uncensored",
        resource_type=TEXT,
        estimated_tokens=1000,
        **fields,
    )


async def my_api_call() -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"choices": ["hello"]}


def used(scheduler: Scheduler, resource: str = "tokens") -> int:
    explanation = scheduler.explain(asks())
    assert explanation is not None
    return next(each.used for each in explanation.limits if each.limit.resource == resource)


def test_quick_start() -> None:
    client = MyClient()
    scheduler = create_scheduler(
        client=client,
        mode="intelligent",
        config=RateLimiterConfig(
            max_concurrent_executions=100,
            max_queue_size=1000,
        ),
    )

    async def make_request() -> Any:
        async with scheduler:
            metadata = RequestMetadata(
                request_id="req-12345",
                model_id="venice-uncensored",
                resource_type=TEXT,
                estimated_tokens=1000,
            )
            result = await scheduler.submit_request(
                metadata=metadata,
                request_func=my_api_call,
            )
        return result  # noqa: RET504

    assert asyncio.run(make_request()) == {"choices": ["hello"]}
    assert asyncio.run(make_request()) == {"choices": ["hello"]}, "and once more"


# -- providers ------------------------------------------------------------------------------------


class MyProvider(ProviderInterface):
    """Custom provider for your API."""

    @property
    def name(self) -> str:
        """Unique provider name."""
        return "my-provider"

    async def discover_limits(
        self,
        force_refresh: bool = False,
        timeout: float = 30.0,
    ) -> Dict[str, DiscoveredBucket]:  # noqa: UP006
        """Discover available rate limits."""
        return {
            "default": DiscoveredBucket(
                bucket_id="default",
                rpm_limit=100,
                tpm_limit=100000,
            )
        }

    def parse_rate_limit_response(
        self,
        headers: Dict[str, str],  # noqa: UP006
        body: Optional[Dict[str, Any]] = None,  # noqa: UP006, UP045
        status_code: Optional[int] = None,  # noqa: UP045
    ) -> RateLimitInfo:
        """Parse rate limit headers from API response."""
        return RateLimitInfo(
            rpm_remaining=int(headers.get("x-ratelimit-remaining-requests", 0)),
            rpm_limit=int(headers.get("x-ratelimit-limit-requests", 0)),
            tpm_remaining=int(headers.get("x-ratelimit-remaining-tokens", 0)),
            tpm_limit=int(headers.get("x-ratelimit-limit-tokens", 0)),
            is_rate_limited=(status_code == 429),
        )

    async def get_bucket_for_model(
        self,
        model_id: str,
        resource_type: Optional[str] = None,  # noqa: UP045
    ) -> str:
        """Get bucket ID for a model."""
        return "default"


def test_the_custom_provider_gives_the_buckets_and_their_limits() -> None:
    async def run() -> None:
        scheduler = create_scheduler(client=MyClient(), mode="intelligent", provider=MyProvider())
        async with scheduler:
            for model in ("one", "two"):
                metadata = RequestMetadata("r", model, TEXT, estimated_tokens=1000)
                assert await scheduler.submit_request(metadata, my_api_call)
                explanation = scheduler.explain(metadata)
            assert explanation is not None
            # 0.9 of what the provider says, and both models count in one bucket.
            assert {
                each.limit.resource: (each.used, each.capacity) for each in explanation.limits
            } == {"requests": (2, 90), "tokens": (2000, 90_000)}
            assert list(scheduler.get_metrics()["buckets"]) == ["default"]

    asyncio.run(run())


def test_headers_without_anything_of_limits_do_not_stop_it() -> None:
    """What the documented provider makes of them is a limit of 0."""

    async def run() -> None:
        async with create_scheduler(MyClient(), provider=MyProvider()) as scheduler:

            async def call() -> Any:
                return SimpleNamespace(status_code=200, headers={"Content-Type": "text"})

            for _ in range(20):
                await asyncio.wait_for(scheduler.submit_request(asks(), call), 5)
                await asyncio.sleep(0)

    asyncio.run(run())


# -- backends -------------------------------------------------------------------------------------


def test_the_memory_backend() -> None:
    from headway.backends import MemoryBackend

    async def run() -> None:
        backend = MemoryBackend()
        async with create_scheduler(client=MyClient(), backend=backend) as scheduler:
            assert await scheduler.submit_request(asks(), my_api_call)

    asyncio.run(run())


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["basic", "intelligent", "account"])
def test_each_mode_gives_what_the_call_returned(mode: str) -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> RequestMetadata:
            return RequestMetadata("r", request["model"], TEXT)

    more: dict[str, Any] = {}
    if mode == "intelligent":
        more = {"provider": MyProvider(), "classifier": Classifier()}

    async def run() -> None:
        scheduler = create_scheduler(client=MyClient(), mode=mode, **more)
        async with scheduler:
            assert await scheduler.submit_request(asks(), my_api_call) == {"choices": ["hello"]}
            assert scheduler.get_metrics()["scheduler_mode"] == mode
            if more:
                request: Any = {"model": "gpt"}
                assert await scheduler.submit_request(request, my_api_call)

    asyncio.run(run())


# -- streams --------------------------------------------------------------------------------------


async def generator(tokens: int) -> AsyncIterator[Any]:
    yield SimpleNamespace(usage=None, text="he")
    await asyncio.sleep(0)
    yield SimpleNamespace(usage=None, text="llo")
    yield SimpleNamespace(usage=SimpleNamespace(total_tokens=tokens), text="")


class Stream:
    """As SDKs have them: not a generator, iterable, and with something of its own."""

    response_id = "resp-1"

    def __init__(self, tokens: int) -> None:
        self._chunks = generator(tokens)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._chunks


@pytest.mark.parametrize("make", [generator, Stream])
def test_a_stream_is_given_through_and_adjusts_the_tokens_when_it_completes(
    make: Callable[[int], Any],
) -> None:
    scheduler = create_scheduler(client=MyClient(), limits=["10_000 tokens/min"])

    async def my_streaming_api_call() -> Any:
        return make(300)

    async def stream_request() -> AsyncIterator[Any]:
        async with scheduler:
            stream = await scheduler.submit_request(
                metadata=asks("stream-12345"),
                request_func=my_streaming_api_call,
            )
            if make is Stream:
                assert stream.response_id == "resp-1"
            async for chunk in stream:
                assert used(scheduler) == 1000, "the estimate, until it has ended"
                yield chunk
            assert used(scheduler) == 300

    async def run() -> str:
        return "".join([chunk.text async for chunk in stream_request()])

    assert asyncio.run(run()) == "hello"
    assert scheduler.get_metrics()["active_requests"] == 0


def test_a_response_whose_stream_can_be_replaced_is_given_back_itself() -> None:
    class Response:
        def __init__(self) -> None:
            self.iterator: Any = generator(300)

        def get_iterator(self) -> Any:
            return self.iterator

        def set_iterator(self, iterator: Any) -> None:
            self.iterator = iterator

    async def run() -> None:
        async with create_scheduler(MyClient(), limits=["10_000 tokens/min"]) as scheduler:
            response = Response()

            async def call() -> Response:
                return response

            assert await scheduler.submit_request(asks(), call) is response
            assert [chunk.text async for chunk in response.iterator] == ["he", "llo", ""]
            assert used(scheduler) == 300

    asyncio.run(run())


# -- resource types and configuration -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "image", "audio", "embedding", "generic", "custom"])
def test_resource_types_are_passed_on_and_any_name_will_do(kind: str) -> None:
    from headway import AUDIO, EMBEDDING, GENERIC, IMAGE, RESOURCE_TYPES

    assert {TEXT, IMAGE, AUDIO, EMBEDDING, GENERIC} == RESOURCE_TYPES
    seen: list[str | None] = []

    class Noting(MyProvider):
        async def get_bucket_for_model(
            self, model_id: str, resource_type: str | None = None
        ) -> str:
            seen.append(resource_type)
            return "default"

    async def run() -> None:
        async with create_scheduler(MyClient(), provider=Noting()) as scheduler:
            await scheduler.submit_request(RequestMetadata("r", "m", kind), my_api_call)

    asyncio.run(run())
    assert seen == [kind]


def test_the_documented_options_are_the_defaults() -> None:
    config = RateLimiterConfig(
        max_concurrent_executions=100,
        max_queue_size=1000,
        request_timeout=30.0,
        rate_limit_buffer_ratio=0.9,
    )
    assert config == RateLimiterConfig()


def test_the_state_configuration() -> None:
    from headway.scheduler import CachePolicy, StateConfig

    state_config = StateConfig(
        cache_policy=CachePolicy.WRITE_THROUGH,
        namespace="my-app",
        is_production=True,
    )
    assert create_scheduler(MyClient(), state_config=state_config).state_config is state_config


# -- exceptions -----------------------------------------------------------------------------------


async def handled(scheduler: Scheduler, metadata: RequestMetadata) -> str:
    """The documented block; what it would print."""
    try:
        await scheduler.submit_request(metadata, my_api_call)
    except CapacityExceededError as e:
        return f"Rate limited on bucket {e.bucket_id}, retry after {e.retry_after} seconds"
    except BucketNotFoundError as e:
        return f"Unknown bucket: {e.bucket_id}"
    except RateLimiterError as e:
        return f"Rate limiter error: {e}"
    return "good"


def test_each_clause_of_the_documented_block_is_reached() -> None:
    class Lost(MyProvider):
        async def get_bucket_for_model(
            self, model_id: str, resource_type: str | None = None
        ) -> str:
            return "elsewhere" if model_id == "lost" else "default"

    async def run() -> None:
        scheduler = create_scheduler(MyClient(), provider=Lost())
        assert await handled(scheduler, asks()) == "Rate limiter error: Scheduler is not running"
        async with scheduler:
            assert await handled(scheduler, asks()) == "good"
            large = RequestMetadata("r", "large", TEXT, estimated_tokens=100_000)
            told = await handled(scheduler, large)
            assert told == "Rate limited on bucket default, retry after None seconds"
            lost = RequestMetadata("r", "lost", TEXT)
            assert await handled(scheduler, lost) == "Unknown bucket: elsewhere"

    asyncio.run(run())


def test_a_full_queue_and_a_tripped_breaker_are_rate_limiter_errors() -> None:
    async def run() -> None:
        config = RateLimiterConfig(max_queue_size=1, max_failures=1, max_retries=0)
        async with create_scheduler(
            MyClient(), config=config, limits=["1 requests/min"]
        ) as scheduler:
            assert await handled(scheduler, asks()) == "good"
            waiting = asyncio.ensure_future(handled(scheduler, asks()))
            await asyncio.sleep(0)
            with pytest.raises(QueueOverflowError):
                await scheduler.submit_request(asks(), my_api_call)
            waiting.cancel()

            async def fails() -> None:
                raise ConnectionError

            other = RequestMetadata("r", "other", TEXT)
            with pytest.raises(ConnectionError):
                await scheduler.submit_request(other, fails)
            with pytest.raises(TooManyFailedRequestsError):
                await scheduler.submit_request(other, my_api_call)

    asyncio.run(run())
