"""Where requests of a batch go, and with which key."""

from __future__ import annotations

import httpx
import pytest

from headway.batch.endpoint import Endpoint
from headway.batch.lines import Line
from headway.transports import Connections

KEY = "sk-not-to-be-seen"


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("http://h/v1", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1/", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h:8/a/v1", "/v1/embeddings?a=b", "http://h:8/a/v1/embeddings?a=b"),
        ("http://h/v1", "/v1", "http://h/v1"),
        ("http://h/v1", "/v1beta/chat", "http://h/v1/v1beta/chat"),
        ("http://h/v1", "/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/v1", "//elsewhere/x", "http://h/v1//elsewhere/x"),
        ("http://h", "/@elsewhere/x", "http://h/@elsewhere/x"),
    ],
)
def test_a_version_that_both_have_is_there_once(base: str, path: str, url: str) -> None:
    assert str(Endpoint(base).url(path)) == url
    assert Endpoint(base).url(path).host == "h"


def test_a_request_carries_its_body_and_the_key() -> None:
    line = Line(1, "a", "/v1/chat/completions", {"model": "m", "x": "é"})
    request = Endpoint("http://h/v1", KEY).request(line)
    assert request.method == "POST"
    assert request.content == b'{"model":"m","x":"\\u00e9"}'
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in Endpoint("http://h/v1").request(line).headers


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("h/v1", "must begin with http:// or https://"),
        ("ftp://h/v1", "must begin with http:// or https://"),
        ("http:///v1", "must begin with http:// or https://"),
        ("http://h/v1?key=1", "must not contain"),
        ("http://h:port/v1", "Invalid port"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(base: str, said: str) -> None:
    with pytest.raises(ValueError, match="base URL") as error:
        Endpoint(base)
    assert said in str(error.value)


def test_a_password_in_the_base_url_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="must not contain a user or a password") as error:
        Endpoint("https://user:s3cret@h/v1")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("key", [KEY + "\n", KEY + " x", KEY + "é"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as error:
        Endpoint("https://h/v1", key)
    assert "sk-" not in str(error.value)


def test_the_way_leads_through_a_proxy_where_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    endpoint = Endpoint("http://api.example.com/v1")
    assert isinstance(endpoint.transport(), Connections)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")
    assert isinstance(endpoint.transport(), httpx.AsyncHTTPTransport)
    monkeypatch.setenv("no_proxy", "example.com")
    assert isinstance(endpoint.transport(), Connections)
