"""Where requests go: the base URL, the key, and the way there."""

from __future__ import annotations

import json

import httpx

from headway.batch.lines import Line
from headway.transports._ways import make_way, proxy_for

_MOST_PATHS = 1000
_PATIENCE = 5.0


class Endpoint:
    """An OpenAI-compatible API.

    base_url: as in `https://api.example.com/v1`. key: sent with each request, and shown nowhere;
    empty for none. ValueError, which never quotes the key, where one of them cannot be used.
    """

    def __init__(self, base_url: str, key: str = "") -> None:
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise ValueError(f"base URL {base_url!r}: {error}") from error
        if url.userinfo:
            raise ValueError(f"base URL at {url.host!r}: must not contain a user or a password")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base URL {base_url!r}: must begin with http:// or https://")
        if url.query or url.fragment:
            raise ValueError(f"base URL {base_url!r}: must not contain '?' or '#'")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(
                "API key: must be printable ASCII without spaces (it is not shown here)"
            )
        self._base = str(url).rstrip("/")
        self._host = url.host
        self._scheme = url.scheme
        self._urls: dict[str, httpx.URL] = {}
        self._headers = httpx.Headers(
            {
                "accept": "application/json",
                "accept-encoding": "gzip, deflate",
                "content-type": "application/json",
                "user-agent": "headway",
            }
        )
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def url(self, path: str) -> httpx.URL:
        """`path` behind the base URL; a `/v1` that both have is there once. InvalidURL if it is."""
        url = self._urls.get(path)
        if url is None:
            rest = path
            if self._base.endswith("/v1") and (path == "/v1" or path.startswith(("/v1/", "/v1?"))):
                rest = path[len("/v1") :]
            url = httpx.URL(self._base + rest)
            if len(self._urls) < _MOST_PATHS:
                self._urls[path] = url
        return url

    def request(self, line: Line) -> httpx.Request:
        """The request that `line` describes. Without time-outs: the caller bounds the attempt."""
        return httpx.Request(
            "POST",
            self.url(line.url),
            headers=self._headers,
            content=json.dumps(line.body, separators=(",", ":")).encode(),
            extensions={"timeout": {}},
        )

    def ask(self, path: str) -> httpx.Request:
        """A GET of `path`, which is not waited for for long."""
        timeout = httpx.Timeout(_PATIENCE).as_dict()
        return httpx.Request(
            "GET", self.url(path), headers=self._headers, extensions={"timeout": timeout}
        )

    def transport(self) -> httpx.AsyncBaseTransport:
        """As many connections as requests need, through the environment's proxy if it names one."""
        way: httpx.AsyncBaseTransport = make_way(
            httpx, "AsyncHTTPTransport", proxy_for(self._scheme, self._host)
        )
        return way
