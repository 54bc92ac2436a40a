"""Transports of httpx and httpx2 that keep to a provider's limits, and what they are made of.

`AsyncTransport` and `Transport` govern a whole client, an SDK's for one, and `govern` makes such a
client of a ready one. `send` makes one governed request of httpx; `Connections` is a transport of
httpx that stays quick with hundreds of connections; `NetworkDelays` remembers how far away each
host is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headway.transports._govern import govern
from headway.transports._httpx import send
from headway.transports._network import NetworkDelays
from headway.transports._transport import AsyncTransport, Transport, asking

if TYPE_CHECKING:
    from headway.transports._connections import Connections

__all__ = [
    "AsyncTransport",
    "Connections",
    "NetworkDelays",
    "Transport",
    "asking",
    "govern",
    "send",
]


def __getattr__(name: str) -> Any:
    # An SDK may bring httpx2 and no httpx.
    if name != "Connections":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from headway.transports._connections import Connections
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "httpcore"):
            raise
        raise ModuleNotFoundError(
            "headway.transports.Connections needs httpx: pip install 'headway[httpx]'",
            name=error.name,
        ) from error
    return Connections
