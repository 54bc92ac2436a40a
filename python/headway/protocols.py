"""What headway asks of the caller's own objects: shapes, checked by their attributes alone.

Each may be subclassed or just be matched: `isinstance` looks only at the names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

from headway.types import RequestMetadata

__all__ = [
    "ClassifierProtocol",
    "ClientProtocol",
    "RequestMetadata",
    "StreamingResponseProtocol",
]


@runtime_checkable
class ClientProtocol(Protocol):
    """The client whose calls are scheduled. Headway reads `base_url` only, and logs none of it."""

    @property
    def base_url(self) -> str:
        """Where the API is; it chooses what is known of the provider if none is given."""
        ...

    @property
    def timeout(self) -> float:
        """Seconds; the client's own affair."""
        ...

    def get_headers(self) -> dict[str, str]:
        """The headers that the client sends, secrets among them; the client's own affair."""
        ...


@runtime_checkable
class ClassifierProtocol(Protocol):
    """Turns a request as the application has it into what a scheduler needs to know of it."""

    async def classify(self, request: dict[str, Any]) -> RequestMetadata:
        """What `request` is and costs. What it raises fails the request, as a ProviderError."""
        ...


@runtime_checkable
class StreamingResponseProtocol(Protocol):
    """A response whose stream can be replaced by one that is watched."""

    def get_iterator(self) -> AsyncIterator[Any]:
        """The stream of chunks."""
        ...

    def set_iterator(self, iterator: AsyncIterator[Any]) -> None:
        """From now on `iterator` is the stream of chunks."""
        ...
