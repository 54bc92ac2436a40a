"""Transports where answers, requests and networks are not as one would like them."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from servers import Answer, Server, said

from headway import Limiter, RateLimiterConfig, RequestMetadata
from headway.scheduler import Scheduler, create_scheduler
from headway.transports import AsyncTransport, Transport, govern
from headway.transports._limiter import OpenBodies

SAYS: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15},
}
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "c",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 16, "output_tokens": 5},
}


def make(limits: Any = None, **options: Any) -> Scheduler:
    options.setdefault("max_backoff", 0.001)
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    return create_scheduler(None, config=RateLimiterConfig(**options), limits=limits)


@pytest.fixture(params=[httpx, httpx2])
def package(request: pytest.FixtureRequest) -> Any:
    return request.param


def used_of(scheduler: Scheduler, model: str, resource: str) -> int:
    explained = scheduler.explain(RequestMetadata("r", model, "text"))
    assert explained is not None
    return sum(each.used for each in explained.limits if each.limit.resource == resource)


# -- what is sent again, and what not ------------------------------------------------------------


def test_what_was_sent_and_not_answered_is_the_clients_affair(package: Any) -> None:
    def say(number: int, path: str, body: bytes) -> Answer:
        time.sleep(0.3)
        return said(200, CHAT)

    with Server(say) as server, make(max_retries=3) as scheduler:
        transport = Transport(scheduler)
        with package.Client(transport=transport, timeout=0.1) as client:
            for path, body in (("/payments", {"amount": 1}), ("/chat", {"model": "m"})):
                with pytest.raises(package.ReadTimeout):
                    client.post(server.url + path, json=body)
        assert server.asked == ["/payments", "/chat"]
        assert scheduler._under_way == 0


def test_of_a_host_without_models_no_failed_post_is_sent_again(package: Any) -> None:
    def say(number: int, path: str, body: bytes) -> Answer:
        return said(500 if number % 3 else 200, {})

    with Server(say) as server, make(max_retries=3) as scheduler:
        with package.Client(transport=Transport(scheduler), base_url=server.url) as client:
            assert client.post("/payments", json={}).status_code == 500
            assert server.asked == ["/payments"]
            assert client.get("/list").status_code == 200  # that may be asked again
        assert server.asked == ["/payments", "/list", "/list"]


@pytest.mark.parametrize(("status", "ours"), [(409, False), (520, False), (503, True)])
def test_what_the_scheduler_does_not_try_again_the_sdk_may(status: int, ours: bool) -> None:
    def say(number: int, path: str, body: bytes) -> Answer:
        return said(status if number == 1 else 200, CHAT)

    with Server(say) as server, make(max_retries=1 if ours else 0) as scheduler:
        http = openai.DefaultHttpxClient(transport=Transport(scheduler, provider="openai"))
        client = openai.OpenAI(api_key="k", base_url=server.url, http_client=http, max_retries=1)
        assert client.chat.completions.create(model="m", messages=SAYS).id == "c"
        assert len(server.asked) == 2
        client.close()


def test_a_failure_is_given_as_it_came(package: Any) -> None:
    broken = b"no gzip at all"

    def say(number: int, path: str, body: bytes) -> Answer:
        if path == "/broken":
            return 400, {"content-encoding": "gzip"}, broken
        content = gzip.compress(json.dumps({"error": {"code": "insufficient_quota"}}).encode())
        return 429, {"content-encoding": "gzip", "content-type": "application/json"}, content

    with (
        Server(say) as server,
        make(max_retries=3) as scheduler,
        package.Client(transport=Transport(scheduler), base_url=server.url) as client,
    ):
        spent = client.post("/chat", json={"model": "m"})
        assert spent.json() == {"error": {"code": "insufficient_quota"}}
        assert spent.elapsed.total_seconds() > 0
        assert len(server.asked) == 1  # which no other attempt helps
        with client.stream("POST", "/broken", json={"model": "n"}) as response:
            assert response.status_code == 400
            assert b"".join(response.iter_raw()) == broken


# -- what is asked -------------------------------------------------------------------------------


def test_an_estimate_makes_nothing_impossible() -> None:
    def say(number: int, path: str, body: bytes) -> Answer:
        return said(
            200,
            MESSAGE,
            anthropic_ratelimit_input_tokens_limit="30000",
            anthropic_ratelimit_input_tokens_remaining="29000",
        )

    picture = {"type": "base64", "media_type": "image/png", "data": "x" * 400_000}
    content: list[Any] = [{"type": "image", "source": picture}, {"type": "text", "text": "what?"}]
    cached: list[Any] = [
        {"type": "text", "text": "word " * 40_000, "cache_control": {"type": "ephemeral"}}
    ]

    async def run(url: str) -> None:
        async with make() as scheduler:
            transport = AsyncTransport(scheduler, provider="anthropic")
            http = anthropic.DefaultAsyncHttpxClient(transport=transport)
            client = anthropic.AsyncAnthropic(api_key="k", base_url=url, http_client=http)

            async def ask(said: list[Any], system: list[Any]) -> None:
                await client.messages.create(
                    model="c",
                    max_tokens=9,
                    messages=[{"role": "user", "content": said}],
                    system=system,
                )

            # The second is queued before anything is known.
            await asyncio.gather(ask([{"type": "text", "text": "hi"}], []), ask(SAYS_TEXT, cached))
            await ask(content, [])
            assert used_of(scheduler, "c", "input_tokens") < 2000  # but for the text, nothing
            await ask(SAYS_TEXT, cached)
            await client.close()

    with Server(say) as server:
        asyncio.run(asyncio.wait_for(run(server.url), 20))
        assert len(server.asked) == 4


SAYS_TEXT: list[Any] = [{"type": "text", "text": "hi"}]


def test_a_form_and_a_path_may_name_the_model() -> None:
    with (
        Server(lambda *_: said(200, {"text": "hi"})) as server,
        make(limits={"whisper-1": ["2 requests/hour"]}) as scheduler,
    ):
        http = openai.DefaultHttpxClient(transport=Transport(scheduler, provider="openai"))
        client = openai.OpenAI(api_key="k", base_url=server.url, http_client=http)
        for _ in range(2):
            client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF" * 99))
        assert used_of(scheduler, "whisper-1", "requests") == 2
        http.post(f"{server.url}/model/claude/invoke", json={"messages": []})
        http.post(f"{server.url}/openai/deployments/mine/chat/completions", json={})
        http.post(f"{server.url}/v1beta/models/gemini-2:generateContent", json={})
        # Which has limits of its own.
        http.post(f"{server.url}/v1/messages/count_tokens", json={"model": "claude"})
        buckets = scheduler.get_metrics()["buckets"]
        assert {name: each["succeeded"] for name, each in buckets.items()} == {
            "whisper-1": 2,
            "claude": 1,
            "mine": 1,
            "gemini-2": 1,
        }
        client.close()


def test_an_upload_is_passed_on_as_it_comes(package: Any) -> None:
    made = 0

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(64):
            made += 1
            yield b"x" * 65536

    sizes: list[int] = []

    class Way:
        def handle_request(self, request: Any) -> Any:
            assert made == 0  # nothing of it has been taken
            sizes.extend(len(part) for part in request.stream)
            return package.Response(200, json={})

        def close(self) -> None:
            pass

    with (
        make() as scheduler,
        package.Client(transport=Transport(scheduler, Way(), provider="openai")) as client,
    ):
        headers = {"content-type": "application/octet-stream"}
        client.post("https://api.openai.com/v1/files", content=parts(), headers=headers)
    assert sum(sizes) == 64 * 65536


def test_what_cannot_be_sent_again_is_not(package: Any) -> None:
    with (
        Server(lambda *_: said(429, {}, retry_after="0")) as server,
        make(max_retries=3) as scheduler,
        package.Client(transport=Transport(scheduler), base_url=server.url) as client,
    ):
        # Whole, as the server here cannot read it in pieces.
        headers = {"content-type": "application/octet-stream", "content-length": "6"}
        assert (
            client.post("/up", content=iter([b"abc", b"def"]), headers=headers).status_code == 429
        )
        assert server.asked == ["/up"]
        assert client.post("/up", content=b"abcdef").status_code == 429
        assert server.asked == ["/up"] * 5  # what can be is


# -- what was used -------------------------------------------------------------------------------


def test_a_stream_that_is_closed_at_its_last_event_has_come_to_its_end() -> None:
    def say(number: int, path: str, body: bytes) -> Answer:
        piece = {**CHAT, "object": "chat.completion.chunk", "usage": None, "choices": []}
        events = [piece, {**piece, "usage": CHAT["usage"]}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return 200, {"content-type": "text/event-stream"}, text.encode()

    with Server(say) as server, make(limits=["90_000 tokens/31day bucket"]) as scheduler:
        http = openai.DefaultHttpxClient(transport=Transport(scheduler, provider="generic"))
        client = openai.OpenAI(api_key="k", base_url=server.url, http_client=http)
        options: Any = {"include_usage": True}
        for _ in client.chat.completions.create(
            model="m", messages=SAYS, max_tokens=8000, stream=True, stream_options=options
        ):
            pass
        assert used_of(scheduler, "m", "tokens") == 15
        client.close()


def test_what_a_model_writes_is_not_what_it_used() -> None:
    tool = {
        "type": "tool_use",
        "id": "t",
        "name": "f",
        "input": {"usage": {"total_tokens": 5_000_000, "cache_creation_input_tokens": 7_000_000}},
    }

    with (
        Server(lambda *_: said(200, {**MESSAGE, "content": [tool]})) as server,
        make(limits=["90_000 tokens/31day bucket"]) as scheduler,
    ):
        http = anthropic.DefaultHttpxClient(transport=Transport(scheduler, provider="anthropic"))
        client = anthropic.Anthropic(api_key="k", base_url=server.url, http_client=http)
        client.messages.create(model="c", messages=SAYS, max_tokens=99)
        assert used_of(scheduler, "c", "tokens") == 21
        client.close()


# -- while nothing is known ----------------------------------------------------------------------


@pytest.mark.parametrize("first", [500, 404, 429])
def test_a_first_answer_that_says_nothing_lets_the_next_find_out(first: int) -> None:
    lock = threading.Lock()
    counted = 0

    def say(number: int, path: str, body: bytes) -> Answer:
        nonlocal counted
        if number == 1:
            return said(first, {})
        with lock:
            counted += 1
            return said(
                200 if counted <= 8 else 429,
                CHAT,
                x_ratelimit_limit_requests="8",
                x_ratelimit_remaining_requests=str(max(0, 8 - counted)),
                x_ratelimit_reset_requests="60s",
            )

    async def run(url: str) -> None:
        async with make(max_retries=0) as scheduler:
            transport = AsyncTransport(scheduler, provider="openai")
            async with httpx2.AsyncClient(transport=transport, base_url=url) as client:

                async def ask() -> int:
                    return int((await client.post("/chat", json={"model": "m"})).status_code)

                tasks = [asyncio.ensure_future(ask()) for _ in range(20)]
                done, waiting = await asyncio.wait(tasks, timeout=1.5)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                # The failed one may count, too: providers count failures.
                assert sorted(task.result() for task in done) == [200] * 7 + [first]

    with Server(say) as server:
        asyncio.run(run(server.url))


def test_a_call_within_another_one_does_not_hurry_those_of_a_third() -> None:
    async def run() -> None:
        outer, inner = make(), make()
        inner._hears_transport = True
        out = 0
        goes_on = asyncio.Event()
        metadata = RequestMetadata("r", "m", "text")

        async def post() -> None:
            nonlocal out
            out += 1
            await goes_on.wait()

        async def step() -> None:
            await inner.submit_request(metadata, post)

        async with outer, inner:
            calls = [
                asyncio.ensure_future(outer.submit_request(RequestMetadata("r", "p", "text"), step))
                for _ in range(9)
            ]
            for _ in range(30):
                await asyncio.sleep(0)
            assert out == 1
            goes_on.set()
            await asyncio.gather(*calls)

    asyncio.run(asyncio.wait_for(run(), 20))


# -- a ready client ------------------------------------------------------------------------------


def test_a_governed_copy_leaves_its_original_alone(package: Any) -> None:
    with Server(lambda *_: said(200, {})) as server:
        plain = package.Client(
            base_url=server.url, max_redirects=3, trust_env=False, default_encoding="latin-1"
        )
        plain.get("/a")
        with govern(plain, limits=["50 requests/min"]) as copy:
            assert copy.get("/b").status_code == 200
            assert (copy.max_redirects, copy.trust_env) == (3, False)
            assert copy._default_encoding == "latin-1"
        assert plain.get("/c").status_code == 200
        plain.close()


def test_proxies_are_chosen_for_each_request(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda *_: said(200, {})) as proxy, Server(lambda *_: said(200, {})) as direct:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with make() as scheduler, package.Client(transport=Transport(scheduler)) as client:
            for _ in range(2):
                assert client.get(f"{direct.url}/own").status_code == 200
                assert client.get("http://api.example.com/far").status_code == 200
        assert direct.asked == ["/own"] * 2
        assert proxy.asked == ["http://api.example.com/far"] * 2


def test_a_forked_child_goes_on(fork: Any) -> None:
    with Server(lambda *_: said(200, {})) as server, httpx.Client(base_url=server.url) as plain:
        client = govern(plain, limits=["50 requests/min"])
        assert client.post("/chat", json={"model": "m"}).status_code == 200

        def child() -> int:
            again = govern(httpx.Client(base_url=server.url), limits=["50 requests/min"])
            own = client.post("/chat", json={"model": "m"}).status_code
            return int((own, again.get("/x").status_code) != (200, 200))

        assert fork(child).status() == 0


def test_a_limiter_that_is_too_small_for_an_estimate_asks_all_the_same(package: Any) -> None:
    with Server(lambda *_: said(200, CHAT)) as server:
        limiter = Limiter(["5 requests/min", "100 tokens/min bucket"])
        with package.Client(transport=Transport(limiter), base_url=server.url) as client:
            body = {"model": "m", "max_tokens": 5000, "messages": SAYS}
            assert client.post("/chat", json=body).json()["usage"]["total_tokens"] == 15
        assert limiter.explain(0, 0).limits[1].used == 15


def test_a_client_of_the_wrong_kind_is_told_what_it_needs(package: Any) -> None:
    with Server(lambda *_: said(200, CHAT)) as server:

        async def main() -> None:
            wrong = package.AsyncClient(transport=Transport(make()))
            with pytest.raises(TypeError, match="needs AsyncTransport"):
                await wrong.post(server.url)
            with (
                package.Client(transport=Transport(make()), base_url=server.url) as blocks,
                pytest.raises(RuntimeError, match=r"use the async one .* or call it in a thread"),
            ):
                blocks.post("/chat", json={"model": "m"})

        asyncio.run(main())
        wrong = package.Client(transport=AsyncTransport(make()))
        with pytest.raises(TypeError, match="needs a Transport"):
            wrong.post(server.url)
        assert server.asked == []


@pytest.mark.parametrize("threads", [False, True])
def test_a_limiter_s_place_comes_back_from_a_body_that_nobody_reads(
    package: Any,
    threads: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bodies = OpenBodies(0.2)
    monkeypatch.setattr("headway.transports._transport.OPEN_BODIES", bodies)

    def waits(url: str) -> None:
        limiter = Limiter(["1 concurrency"])
        transport = Transport(limiter)
        with (
            package.Client(transport=transport, base_url=url, timeout=20) as client,
            client.stream("POST", "/chat", json=asked) as left,
        ):
            assert client.post("/chat", json=asked).json() == CHAT
            assert json.loads(left.read()) == CHAT
        assert limiter.explain(1).limits[0].used == 0
        over.append(True)

    async def awaits(url: str) -> None:
        limiter = Limiter(["1 concurrency"])
        transport = AsyncTransport(limiter)
        async with (
            package.AsyncClient(transport=transport, base_url=url, timeout=20) as client,
            client.stream("POST", "/chat", json=asked) as left,
        ):
            other = await asyncio.wait_for(client.post("/chat", json=asked), 20)
            assert other.json() == CHAT
            assert json.loads(await left.aread()) == CHAT
        assert limiter.explain(1).limits[0].used == 0
        over.append(True)

    over: list[bool] = []
    asked = {"model": "m", "messages": SAYS}
    with Server(lambda *_: said(200, CHAT)) as server:
        if threads:
            worker = threading.Thread(target=waits, args=(server.url,), daemon=True)
            worker.start()
            worker.join(20)
        else:
            asyncio.run(awaits(server.url))
        assert over
        assert len(server.asked) == 2
    assert [each.levelname for each in caplog.records if "nobody has read" in each.message] == [
        "WARNING"
    ]


@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (429, {"retry_after": "30"}, 20, 33),
        (429, {"retry_after": "1", "retry_after_ms": "90000"}, 80, 91),
        (429, {"retry_after": "86400"}, 110, 121),
        (429, {}, 0, 0),
        (200, {"retry_after": "30"}, 0, 0),
    ],
)
def test_a_limiter_is_held_up_for_as_long_as_a_refusal_asks(
    package: Any, status: int, headers: dict[str, str], least: float, most: float
) -> None:
    limiter = Limiter(["500 requests/min bucket"])
    with (
        Server(lambda *_: said(status, CHAT, **headers)) as server,
        package.Client(transport=Transport(limiter), base_url=server.url, timeout=20) as client,
    ):
        assert client.post("/chat", json={"model": "m"}).status_code == status
        held = limiter.explain(1).ready_in
    assert held is not None
    assert least <= held <= most
