"""Ways for calls to tell the core when they were sent and when they were answered.

`send` makes one governed httpx request; `Connections` is a transport that stays quick with hundreds
of connections; `NetworkDelays` remembers how far away each host is.
"""

from __future__ import annotations

try:
    from headway.transports._connections import Connections
    from headway.transports._httpx import send
    from headway.transports._network import NetworkDelays
except ModuleNotFoundError as error:
    if error.name not in ("httpx", "httpcore"):
        raise
    raise ModuleNotFoundError(
        "headway.transports needs httpx: pip install 'headway[httpx]'", name=error.name
    ) from error

__all__ = ["Connections", "NetworkDelays", "send"]
