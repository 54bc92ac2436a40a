"""Protocols and the provider's interface: matched by shape, subclassed, or refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import headway.protocols
from headway import (
    TEXT,
    ClassifierProtocol,
    ClientProtocol,
    DiscoveredBucket,
    ProviderInterface,
    RateLimitInfo,
    RequestMetadata,
    StreamingResponseProtocol,
)


class Client(ClientProtocol):
    @property
    def base_url(self) -> str:
        return "https://api.example.com"

    @property
    def timeout(self) -> float:
        return 30.0

    def get_headers(self) -> dict[str, str]:
        return {}


class Provider(ProviderInterface):
    @property
    def name(self) -> str:
        return "example"

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        return {"b": DiscoveredBucket("b", rpm_limit=100)}

    def parse_rate_limit_response(
        self,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        status_code: int | None = None,
    ) -> RateLimitInfo:
        return RateLimitInfo(is_rate_limited=status_code == 429)

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        return "b"


def test_a_client_may_be_a_subclass_or_just_look_like_one() -> None:
    class Alike:
        base_url = "https://api.example.com"
        timeout = 1.0

        def get_headers(self) -> dict[str, str]:
            return {}

    assert isinstance(Client(), ClientProtocol)
    assert isinstance(Alike(), ClientProtocol)
    assert not isinstance(object(), ClientProtocol)


def test_classifiers_and_streams_are_known_by_their_methods() -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> RequestMetadata:
            return RequestMetadata("r", request["model"], TEXT)

    class Response:
        def get_iterator(self) -> None: ...
        def set_iterator(self, iterator: object) -> None: ...

    assert isinstance(Classifier(), ClassifierProtocol)
    assert isinstance(Response(), StreamingResponseProtocol)
    assert not isinstance(Client(), ClassifierProtocol)
    assert not isinstance(Classifier(), StreamingResponseProtocol)
    assert headway.protocols.RequestMetadata is RequestMetadata


def test_a_provider_that_lacks_a_method_cannot_be_made() -> None:
    class Half(ProviderInterface):
        @property
        def name(self) -> str:
            return "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
    provider = Provider()
    assert provider.name == "example"
    assert asyncio.run(provider.discover_limits())["b"] == DiscoveredBucket("b", 100)
    assert asyncio.run(provider.get_bucket_for_model("m")) == "b"
    assert provider.parse_rate_limit_response({}, status_code=429).is_rate_limited


def test_what_a_provider_does_not_know_is_none() -> None:
    assert DiscoveredBucket("b") == DiscoveredBucket("b", None, None, None, None)
    info = RateLimitInfo()
    assert (info.rpm_limit, info.tpm_remaining, info.retry_after) == (None, None, None)
    assert not info.is_rate_limited
    assert info.timestamp > 1.6e9
