"""The simulated provider over a real socket: what it answers, counts and says about it."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import struct
import subprocess
import sys
import time
import urllib.error
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from headway.simulate import (
    DROP,
    Behaviour,
    Failure,
    Latency,
    Rule,
    SimulatedProvider,
    SimulatorProcess,
)

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Say hello."}],
}


def serve(
    body: Callable[[httpx.AsyncClient, SimulatedProvider], Awaitable[None]],
    rules: list[Rule] | None = None,
    behaviour: Behaviour | None = None,
) -> None:
    """Runs `body` with a client of a provider with these rules."""

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            SimulatedProvider(rules or [], behaviour) as provider,
            httpx.AsyncClient(
                base_url=provider.url, limits=limits, timeout=30.0, trust_env=False
            ) as client,
        ):
            await body(client, provider)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (CHAT, HELLO, "chat.completion"),
        ("/v1/completions", {"prompt": "Once", "max_tokens": 8}, "text_completion"),
        ("/v1/responses", {"input": "Once", "max_output_tokens": 8}, "response"),
        ("/v1/anything/else", {"max_tokens": 8}, "chat.completion"),
    ],
)
def test_a_completion_has_an_id_a_kind_and_usage_within_its_maximum(
    path: str, body: dict[str, Any], kind: str
) -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        response = await client.post(path, json=body)
        assert response.status_code == 200
        answer = response.json()
        assert answer["id"]
        assert answer["object"] == kind
        usage = answer["usage"]
        output = usage.get("completion_tokens", usage.get("output_tokens"))
        assert 1 <= output <= 8
        assert usage["total_tokens"] == output + usage.get(
            "prompt_tokens", usage.get("input_tokens")
        )
        assert response.headers["x-request-id"].startswith("req_")
        assert abs(parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()) < 5

    serve(test)


def test_embeddings_answer_each_input_in_either_format() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        body = {"model": "e", "input": ["a" * 8, "b"], "dimensions": 4}
        answer = (await client.post("/v1/embeddings", json=body)).json()
        assert [len(entry["embedding"]) for entry in answer["data"]] == [4, 4]
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        body = {"input": [1, 2, 3], "encoding_format": "base64", "dimensions": 4}
        (entry,) = (await client.post("/v1/embeddings", json=body)).json()["data"]
        assert len(struct.unpack("<4f", base64.b64decode(entry["embedding"]))) == 4

    serve(test)


def test_what_is_not_there_or_not_json_is_an_error_and_counts_for_nothing() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        assert (await client.get("/v1/models")).json()["data"][0]["object"] == "model"
        missing = await client.get("/v1/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"] == {
            "message": "Invalid URL (GET /v1/nothing)",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        assert (await client.post("/elsewhere", json={})).status_code == 404
        for content in (b"{", b"[]", b"\xff", b"[" * 100_000, b'{"max_tokens": "8"}'):
            response = await client.post(CHAT, content=content)
            assert response.status_code == 400, content[:20]
            assert response.json()["error"]["type"] == "invalid_request_error"
        head = await client.head("/v1/nothing")
        assert head.status_code == 404
        assert head.content == b""
        stats = provider.stats()
        assert (stats["admitted"], stats["refused"], stats["invalid"]) == (0, 0, 8)

    serve(test, [Rule("requests", 1)])


def test_a_key_is_asked_for_only_where_one_is_set() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        response = await client.post(CHAT, json=HELLO)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        right = {"authorization": "Bearer sk-right"}
        assert (await client.post(CHAT, json=HELLO, headers=right)).status_code == 200
        wrong = {"authorization": "Bearer sk-wrong"}
        assert (await client.post(CHAT, json=HELLO, headers=wrong)).status_code == 401
        assert provider.stats()["admitted"] == 1

    behaviour = Behaviour(key="sk-right")
    assert "sk-right" not in repr(behaviour)
    serve(test, behaviour=behaviour)


def test_headers_say_what_is_left_once_this_request_is_counted() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        headers = (await client.post(CHAT, json={**HELLO, "max_tokens": 100})).headers
        assert headers["x-ratelimit-limit-requests"] == "500"
        assert headers["x-ratelimit-remaining-requests"] == "499"
        assert headers["x-ratelimit-reset-requests"] == "120ms"
        assert headers["x-ratelimit-limit-tokens"] == "6000"
        assert headers["x-ratelimit-remaining-tokens"] == "5900"
        # Counted on receipt, and the window's only stamp leaves a whole period later.
        assert headers["x-ratelimit-reset-tokens"] == "1m0s"
        assert "retry-after" not in headers

    serve(test, [Rule("requests", 500), Rule("tokens", 6000, 60.0, "window")])


def test_a_refusal_says_which_limit_and_when_in_openai_s_words() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        assert (await client.post(CHAT, json=HELLO)).status_code == 200
        refusal = await client.post(CHAT, json=HELLO)
        assert refusal.status_code == 429
        milliseconds = int(refusal.headers["retry-after-ms"])
        assert 50_000 < milliseconds <= 60_000
        assert refusal.headers["retry-after"] == str(-(-milliseconds // 1000))
        assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
        again = "1m0s" if milliseconds == 60_000 else f"{milliseconds / 1000:g}s"
        error = refusal.json()["error"]
        assert error["type"] == "requests"
        assert error["param"] is None
        assert error["code"] == "rate_limit_exceeded"
        assert error["message"] == (
            "Rate limit reached for gpt-4o-mini in organization org-simulated on requests per min "
            f"(RPM): Limit 1, Used 1, Requested 1. Please try again in {again}. "
            "Visit https://platform.openai.com/account/rate-limits to learn more."
        )

    serve(test, [Rule("requests", 1)])


def test_a_refusal_does_not_wait_for_the_model() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        start = time.monotonic()
        tasks = [asyncio.create_task(client.post(CHAT, json=HELLO)) for _ in range(2)]
        first, second = [await task for task in asyncio.as_completed(tasks)]
        assert first.status_code == 429
        assert second.status_code == 200
        assert time.monotonic() - start >= 1.0
        assert first.elapsed.total_seconds() < 0.5

    serve(test, [Rule("requests", 1)], Behaviour(latency=Latency(1.0)))


def test_a_request_that_can_never_fit_is_told_so_and_not_when() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        refusal = await client.post(CHAT, json={**HELLO, "max_tokens": 11})
        assert refusal.status_code == 429
        assert "retry-after" not in refusal.headers
        assert "retry-after-ms" not in refusal.headers
        error = refusal.json()["error"]
        assert error["type"] == "tokens"
        assert "Request too large" in error["message"]
        assert "tokens per 7s: Limit 10, Requested 11." in error["message"]

    serve(test, [Rule("tokens", 10, 7.0)])


def test_a_burst_smaller_than_the_limit_is_not_told() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        assert (await client.post(CHAT, json=HELLO)).status_code == 200
        refusal = await client.post(CHAT, json=HELLO)
        assert refusal.status_code == 429
        assert refusal.headers["x-ratelimit-limit-requests"] == "30"
        assert refusal.headers["x-ratelimit-remaining-requests"] == "29"

    serve(test, [Rule("requests", 30, 60.0, burst=1)])


def test_a_silent_provider_says_nothing_about_its_limits() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        for status in (200, 429):
            response = await client.post(CHAT, json=HELLO)
            assert response.status_code == status
            told = [name for name in response.headers if "ratelimit" in name or "retry" in name]
            assert told == []
        message = "Rate limit reached for gpt-4o-mini."
        assert response.json()["error"]["message"] == message

    serve(test, [Rule("requests", 1)], Behaviour(headers=False))


@pytest.mark.parametrize("shape", ["bucket", "window", "fixed"])
def test_decisions_over_http_are_right_to_the_microsecond(shape: str) -> None:
    amount, period = 20, 0.3
    rule = Rule("requests", amount, period, shape, burst=5 if shape == "bucket" else None)
    # The server has read its two clocks at another instant than this test does, so a fixed
    # window's edge is not known to the microsecond here.
    shift = time.time() - time.monotonic()
    slack = 1e-3 if shape == "fixed" else 1e-6

    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        async def ask_for_a_second() -> None:
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                await client.post(CHAT, json=HELLO)

        await asyncio.gather(*(ask_for_a_second() for _ in range(8)))
        stats = provider.stats(decisions=True)
        decisions = stats["decisions"]
        assert stats["admitted"] + stats["refused"] == len(decisions) > 50
        admitted: list[float] = []
        for instant, status, tokens, name in decisions:
            assert (tokens, name) == (8, CHAT)
            around = [room(admitted, instant + error) for error in (-slack, slack)]
            assert status == 200 if all(around) else any(around) or status == 429
            if status == 200:
                admitted.append(instant)
        assert stats["admitted"] == len(admitted) <= stats["most"]
        assert stats["by_rule"][0]["used"] == len(admitted)
        assert stats["last"] == admitted[-1]

    def room(admitted: list[float], now: float) -> bool:
        if shape == "bucket":
            return all(
                len(admitted) - at + 1 <= 5 + (now - start) * amount / period
                for at, start in enumerate(admitted)
            )
        if shape == "window":
            return sum(start > now - period for start in admitted) < amount
        number = (now + shift) // period
        return sum((start + shift) // period == number for start in admitted) < amount

    # Refusals come at once, so that many fall next to every boundary.
    serve(test, [rule], Behaviour(refusal_latency=(0.0, 0.0), decisions=True))


def test_a_request_is_counted_when_all_of_it_has_arrived_and_not_before() -> None:
    async def test(_: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        reader, writer = await connect(provider)
        body = json.dumps(HELLO).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:-1])
        await asyncio.sleep(0.05)
        assert provider.stats()["admitted"] == 0
        before = time.monotonic()
        writer.write(body[-1:])
        await reader.readuntil(b"\r\n\r\n")
        after = time.monotonic()
        (instant, *_rest), *more = provider.stats(decisions=True)["decisions"]
        assert more == []
        assert before <= instant <= after - 0.2
        await close(writer)

    serve(test, behaviour=Behaviour(latency=Latency(0.2), decisions=True))


def test_uneven_arrival_delays_the_counting_instant() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        sent = time.monotonic()
        await asyncio.gather(*(client.post(CHAT, json=HELLO) for _ in range(50)))
        instants = [entry[0] for entry in provider.stats(decisions=True)["decisions"]]
        assert max(instants) - sent > 0.15
        assert max(instants) - min(instants) > 0.1

    serve(test, behaviour=Behaviour(arrival_jitter=0.3, decisions=True))


def test_a_model_with_limits_of_its_own_is_counted_by_those_alone() -> None:
    async def run() -> None:
        rules = {
            "small": [
                Rule("requests", 1, 3600.0, "window"),
                Rule("concurrency", 5, shape="concurrency"),
            ]
        }
        async with (
            SimulatedProvider([Rule("requests", 2, 3600.0, "window")], by_model=rules) as provider,
            httpx.AsyncClient(base_url=provider.url, trust_env=False) as client,
        ):
            statuses = [
                (await client.post(CHAT, json={**HELLO, "model": model})).status_code
                for model in ("small", "small", "a", "b", "c", "small")
            ]
            assert statuses == [200, 429, 200, 200, 429, 429]
            stats = provider.stats()
            assert (stats["admitted"], stats["refused"]) == (2, 1)
            small = stats["models"]["small"]
            assert (small["admitted"], small["refused"], small["in_flight"]) == (1, 2, 0)
            assert [each["used"] for each in small["by_rule"]] == [1, 1]
            provider.set_rules([])
            assert (await client.post(CHAT, json={**HELLO, "model": "a"})).status_code == 200
            assert (await client.post(CHAT, json={**HELLO, "model": "small"})).status_code == 429

    asyncio.run(run())
    with SimulatorProcess("--model-limits", "m", "0 requests/min") as simulator:
        assert list(simulator.stats()["models"]) == ["m"]


def test_concurrency_is_given_back_by_answers_failures_and_lost_clients() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        held = [asyncio.create_task(client.post(CHAT, json=HELLO)) for _ in range(2)]
        await until(lambda: provider.stats()["in_flight"] == 2)
        refusal = await client.post(CHAT, json=HELLO)
        assert refusal.status_code == 429
        message = refusal.json()["error"]["message"]
        assert (
            "concurrent requests: Limit 2, Used 2, Requested 1. Please try again later" in message
        )
        assert "retry-after" not in refusal.headers
        held[0].cancel()
        left = time.monotonic()
        await until(lambda: provider.stats()["in_flight"] < 2)
        assert time.monotonic() - left < 0.5
        assert (await client.post(CHAT, json={**HELLO, "stream": True})).status_code == 200
        assert (await held[1]).status_code == 200
        assert provider.stats()["in_flight"] == 0
        assert provider.stats()["by_rule"][0]["used"] == 2

    serve(test, [Rule("concurrency", 2, shape="concurrency")], Behaviour(latency=Latency(1.0)))


def test_a_share_of_requests_fails_and_is_counted_all_the_same() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        async def ask() -> int:
            try:
                return (await client.post(CHAT, json=HELLO)).status_code
            except (httpx.ReadError, httpx.RemoteProtocolError):
                return DROP

        statuses = [
            status for _ in range(6) for status in await asyncio.gather(*(ask() for _ in range(50)))
        ]
        stats = provider.stats(decisions=True)
        assert stats["admitted"] == stats["by_rule"][0]["used"] == 300
        assert stats["refused"] == 0
        assert stats["failed"] == 300 - statuses.count(200)
        for status, share in ((500, 0.2), (429, 0.1), (DROP, 0.1)):
            assert abs(statuses.count(status) / 300 - share) < 0.07
        assert sorted(statuses) == sorted(entry[1] for entry in stats["decisions"])
        assert stats["in_flight"] == 0

    failures = (Failure(500, 0.2), Failure(429, 0.1), Failure(DROP, 0.1))
    behaviour = Behaviour(failures=failures, decisions=True)
    serve(test, [Rule("requests", 1000, 60.0, "window")], behaviour)


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_sends_its_words_one_by_one_and_usage_last_if_asked(with_usage: bool) -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        body = {**HELLO, "stream": True, "stream_options": {"include_usage": with_usage}}
        start = time.monotonic()
        arrivals: list[float] = []
        events: list[str] = []
        async with client.stream("POST", CHAT, json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-ratelimit-remaining-requests"] == "9"
            async for line in response.aiter_lines():
                if line:
                    arrivals.append(time.monotonic() - start)
                    events.append(line.removeprefix("data: "))
        assert arrivals[0] >= 0.2
        assert arrivals[-1] >= 0.2 + (arrivals[-1] - arrivals[0])
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        if with_usage:
            last = chunks.pop()
            assert last["choices"] == []
            words = len(chunks) - 1
            assert last["usage"]["completion_tokens"] == words
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")

    serve(test, [Rule("requests", 10)], Behaviour(latency=Latency(0.4)))


def test_a_stream_of_the_responses_api_ends_with_the_whole_response() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        body = {"input": "Say hello.", "max_output_tokens": 5, "stream": True}
        text = (await client.post("/v1/responses", json=body)).text
        events = [
            dict(line.split(": ", 1) for line in block.splitlines())
            for block in text.strip().split("\n\n")
        ]
        assert events[0]["event"] == "response.created"
        last = json.loads(events[-1]["data"])
        assert events[-1]["event"] == last["type"] == "response.completed"
        data = [json.loads(event["data"]) for event in events]
        assert [part["sequence_number"] for part in data] == list(range(len(events)))
        deltas = [part["delta"] for part in data if part["type"] == "response.output_text.delta"]
        assert "".join(deltas) == last["response"]["output"][0]["content"][0]["text"]
        assert last["response"]["usage"]["output_tokens"] == len(deltas)

    serve(test)


def test_a_client_that_leaves_a_stream_ends_it() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        async with client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
            await anext(response.aiter_lines())
            assert provider.stats()["in_flight"] == 1
        left = time.monotonic()
        await until(lambda: provider.stats()["in_flight"] == 0)
        # Its words would have taken a second more.
        assert time.monotonic() - left < 0.5

    serve(test, behaviour=Behaviour(latency=Latency(2.0)))


def test_limits_change_while_requests_come_and_the_numbers_begin_again() -> None:
    async def test(client: httpx.AsyncClient, _: SimulatedProvider) -> None:
        for status in (200, 200, 429):
            assert (await client.post(CHAT, json=HELLO)).status_code == status
        rule = {"resource": "requests", "amount": 3, "per_seconds": 3600}
        ended = (await client.post("/_limits", json=[rule])).json()
        assert (ended["admitted"], ended["refused"], ended["most"]) == (2, 1, 2)
        # The two that were counted stay counted, so one is left of three.
        for status in (200, 429):
            assert (await client.post(CHAT, json=HELLO)).status_code == status
        stats = (await client.get("/_stats?decisions=1")).json()
        assert (stats["admitted"], stats["refused"]) == (1, 1)
        assert [entry[1] for entry in stats["decisions"]] == [200, 200, 429, 200, 429]
        wrongs: list[object] = [{}, [3], ["3 requests/s"], [{"resource": "requests"}]]
        for wrong in wrongs:
            response = await client.post("/_limits", json=wrong)
            assert response.status_code == 400
        assert (await client.post(CHAT, json=HELLO)).status_code == 429

    serve(test, [Rule("requests", 2, 3600.0)], Behaviour(decisions=True))


def test_decisions_carry_the_client_s_own_request_id() -> None:
    async def test(client: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        await client.post(CHAT, json=HELLO, headers={"X-Client-Request-Id": "mine-7"})
        assert "decisions" not in (await client.get("/_stats")).json()
        (decision,) = provider.stats(decisions=True)["decisions"]
        assert decision[1:] == (200, 8, "mine-7")

    serve(test, behaviour=Behaviour(decisions=True))


def test_a_thousand_connections_are_open_and_answered_at_once() -> None:
    async def test(_: httpx.AsyncClient, provider: SimulatedProvider) -> None:
        body = json.dumps(HELLO).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n\r\n"
        peers = await asyncio.gather(*(connect(provider) for _ in range(1000)))
        start = time.monotonic()
        for _reader, writer in peers:
            writer.write(head.encode() + body)

        async def status(reader: asyncio.StreamReader) -> bytes:
            return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]

        statuses = await asyncio.gather(*(status(reader) for reader, _ in peers))
        assert set(statuses) == {b"HTTP/1.1 200 OK"}
        assert provider.connections == 1000
        assert provider.stats()["by_rule"][0]["used"] == 1000
        # Not one after the other: that would take more than an hour.
        assert time.monotonic() - start < 60
        await asyncio.gather(*(close(writer) for _, writer in peers))

    rules = [Rule("concurrency", 1000, shape="concurrency")]
    # Longer than a busy machine needs to read a thousand requests.
    serve(test, rules, Behaviour(latency=Latency(5.0)))


def test_it_can_stop_with_requests_unanswered_and_start_again() -> None:
    async def run() -> None:
        provider = SimulatedProvider([], Behaviour(latency=Latency(60.0)))
        async with provider:
            url = provider.url
            with pytest.raises(RuntimeError, match="already listening"):
                await provider.start()
            async with httpx.AsyncClient(trust_env=False) as client:
                task = asyncio.create_task(client.post(url + CHAT, json=HELLO))
                await until(lambda: provider.stats()["in_flight"] == 1)
                await provider.stop()
                with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                    await task
            assert provider.stats()["in_flight"] == 0
            await provider.stop()
            await provider.start()
            assert provider.url == url

    asyncio.run(run())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_listens_and_ends_cleanly(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "headway.simulate", "--limits", "1 requests/min window"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.split()[-1]
        with httpx.Client(trust_env=False) as client:
            assert client.post(url + CHAT, json=HELLO).status_code == 200
            assert client.post(url + CHAT, json=HELLO).status_code == 429
            stats = client.get(url + "/_stats").json()
            assert (stats["admitted"], stats["refused"], stats["most"]) == (1, 1, 1)
            process.send_signal(number)
            rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, b"", b"")


def test_a_simulator_process_is_asked_and_changed_from_outside() -> None:
    with SimulatorProcess("--limits", "5 requests/h", "--latency", "0", "--decisions") as simulator:
        assert httpx.post(simulator.url + CHAT, json=HELLO, trust_env=False).status_code == 200
        assert simulator.stats()["by_rule"][0]["rule"] == "5 requests/3600s bucket"
        assert len(simulator.stats(decisions=True)["decisions"]) == 1
        assert simulator.set_limits(["7 tokens/min fixed", "3 concurrency"])["admitted"] == 1
        rules = [entry["rule"] for entry in simulator.stats()["by_rule"]]
        assert rules == ["7 tokens/60s fixed", "3 concurrency"]
        with pytest.raises(urllib.error.HTTPError):
            simulator.set_limits(["7 of nothing"])
        assert simulator.stop() == 0
    with pytest.raises(RuntimeError, match="not running"):
        simulator.stop()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--limits", "lots"], 2, "lots"),
        (["--limits", "5 images/min"], 2, "Rule.resource = 'images'"),
        (["--latency", "slow"], 2, "latency 'slow'"),
        (["--jitter", "-1"], 2, "--jitter"),
        (["--fail", "500"], 2, "failure '500'"),
        (["--fail", "500:0.7", "--fail", "503:0.7"], 2, "add up to 1.4"),
        (["--port", "70000"], 2, "port 70000: must be from 0 to 65535"),
        (["--hidden", "lots"], 2, "lots"),
        (["--at", "soon", "5 requests/min"], 2, "--at 'soon' '5 requests/min': time 'soon'"),
        (["--at", "1s", "5 requests/years"], 2, "5 requests/years"),
        (
            [
                "--limits",
                "5 requests/s",
                "--limits",
                "9 requests/h",
                "--at",
                "1s",
                "1 requests/day",
            ],
            2,
            "limit '1 requests/86400s bucket': might take the place of '5 requests/1s bucket' and",
        ),
        (["--dialect", "cohere"], 2, "cohere"),
        (["--host", "192.0.2.1"], 1, "cannot listen on 192.0.2.1:0"),
    ],
)
def test_options_that_make_no_sense_end_with_their_name(
    options: list[str], status: int, message: str
) -> None:
    command = [sys.executable, "-m", "headway.simulate", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == status
    assert message in ended.stderr
    assert ended.stdout == ""
    with pytest.raises(RuntimeError, match="did not start"):
        SimulatorProcess(*options).start()


async def until(condition: Callable[[], bool]) -> None:
    """Waits, ten seconds at most, for what the server's own event loop brings about."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("this did not come true within ten seconds")


async def connect(
    provider: SimulatedProvider,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = provider.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()
