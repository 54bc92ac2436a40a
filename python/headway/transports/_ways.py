"""The way to a host: directly, or through the environment's proxy."""

from __future__ import annotations

from typing import Any
from urllib.request import getproxies, proxy_bypass


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for such a URL; None for none."""
    proxies = {} if proxy_bypass(host) else getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def make_way(package: Any, kind: str, proxy: str | None) -> Any:
    """A transport with as many connections as requests need.

    package: httpx or httpx2. kind: the name of its transport. ImportError where the proxy needs a
    package that is not installed.
    """
    if proxy is None and package.__name__ == "httpx" and kind == "AsyncHTTPTransport":
        from headway.transports._connections import Connections

        return Connections()
    limits = package.Limits(max_connections=None, max_keepalive_connections=None)
    return getattr(package, kind)(proxy=proxy, limits=limits)
