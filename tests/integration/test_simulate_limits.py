"""Limits of a simulated provider that change, that are hidden, that are anchored; who refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from headway.simulate import SimulatorProcess

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "Say hello."}],
}
HOUR = 3600


@pytest.fixture
def client() -> Any:
    with httpx.Client(trust_env=False, timeout=30.0) as client:
        yield client


def told(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if "ratelimit" in name}


def test_a_hidden_limit_refuses_beside_the_others_and_no_answer_tells_of_it(
    client: httpx.Client,
) -> None:
    limits = ("--limits", "10 requests/h bucket", "--hidden", "2 requests/h window")
    with SimulatorProcess(*limits, "--latency", "0", "--decisions") as simulator:
        answers = [client.post(simulator.url + CHAT, json=HELLO) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        left = [told(answer.headers)["x-ratelimit-remaining-requests"] for answer in answers]
        assert left == ["9", "8", "8", "8"]
        refusal = answers[-1]
        assert {told(answer.headers)["x-ratelimit-limit-requests"] for answer in answers} == {"10"}
        # When to try again is no limit; which one refused, and how large it is, is not said.
        assert HOUR - 60 < int(refusal.headers["retry-after"]) <= HOUR
        assert refusal.json()["error"]["message"] == "Rate limit reached for gpt-4o-mini."
        stats = simulator.stats(decisions=True)
        hidden = "2 requests/3600s window hidden"
        assert stats["refused_by"] == {hidden: 2}
        assert [(each["rule"], each["hidden"]) for each in stats["by_rule"]] == [
            ("10 requests/3600s bucket", False),
            (hidden, True),
        ]
        assert [reasons for _, _, reasons in stats["refusals"]] == [[hidden]] * 2


def test_each_refusal_is_put_down_to_the_limit_that_bound(client: httpx.Client) -> None:
    limits = ("--limits", "2 requests/h window", "--limits", "10 tokens/min window")
    with SimulatorProcess(*limits, "--latency", "0", "--decisions") as simulator:
        for tokens in (8, 8, 1, 1, 9):
            client.post(simulator.url + CHAT, json={**HELLO, "max_tokens": tokens, "messages": []})
        stats = simulator.stats(decisions=True)
        day, minute = "2 requests/3600s window", "10 tokens/60s window"
        # 8 of 10 tokens are used, so 8 more do not fit; then both requests are.
        assert stats["refused_by"] == {minute: 1, day: 2}
        assert [reasons for *_, reasons in stats["refusals"]] == [[minute], [day], [day, minute]]
        assert [name for _, name, _ in stats["refusals"]] == [CHAT] * 3
        refused = [at for at, status, *_ in stats["decisions"] if status == 429]
        assert [at for at, *_ in stats["refusals"]] == refused


def test_a_timetable_changes_limits_at_its_times_and_keeps_what_was_counted(
    client: httpx.Client,
) -> None:
    with SimulatorProcess(
        *("--limits", "3 requests/h window", "--limits", "1000 tokens/h window"),
        *("--at", "3s", "5 requests/h window", "--at", "4000ms", "14400 requests/day fixed"),
        *("--latency", "0"),
    ) as simulator:

        def ask() -> httpx.Response:
            return client.post(simulator.url + CHAT, json=HELLO)

        assert [ask().status_code for _ in range(4)] == [200, 200, 200, 429]
        until(lambda: len(simulator.stats()["ended"]) == 1)
        answers = [ask() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert told(answers[0].headers)["x-ratelimit-limit-requests"] == "5"
        assert told(answers[0].headers)["x-ratelimit-remaining-requests"] == "1"
        until(lambda: len(simulator.stats()["ended"]) == 2)
        answer = ask()
        assert answer.status_code == 200
        assert told(answer.headers)["x-ratelimit-limit-requests"] == "14400"
        # Unless midnight was just now, the five are among those of this day.
        if int(time.time()) % 86_400 > 60:
            assert told(answer.headers)["x-ratelimit-remaining-requests"] == "14394"
        # The tokens went on under their own limit: 8 for each of six.
        assert told(answer.headers)["x-ratelimit-remaining-tokens"] == str(1000 - 6 * 8)
        stats = simulator.stats()
        assert [each["refused"] for each in [*stats["ended"], stats]] == [1, 1, 0]
        assert [each["rule"] for each in stats["by_rule"]] == [
            "14400 requests/86400s fixed",
            "1000 tokens/3600s window",
        ]
        assert stats["total"] == {"admitted": 6, "refused": 2, "failed": 0, "invalid": 0}


def test_a_change_comes_whoever_looks_first(client: httpx.Client) -> None:
    limits = ("--limits", "0 requests/h", "--at", "0.5s", "5 requests/h", "--latency", "0")
    with SimulatorProcess(*limits) as simulator:
        # Nobody asks for statistics, so it is a request that finds the change due.
        until(lambda: client.post(simulator.url + CHAT, json=HELLO).status_code == 200)
        stats = simulator.stats()
        assert [each["admitted"] for each in [*stats["ended"], stats]] == [0, 1]


def test_limits_set_from_outside_end_the_timetable_and_may_be_hidden(client: httpx.Client) -> None:
    limits = ("--limits", "1 requests/h", "--at", "1h", "9 requests/h", "--latency", "0")
    with SimulatorProcess(*limits) as simulator:
        rule = {"resource": "requests", "amount": 2, "per_seconds": 3600, "hidden": True}
        simulator.set_limits([rule, "8 tokens/h window"])
        answer = client.post(simulator.url + CHAT, json=HELLO)
        assert sorted(told(answer.headers)) == [
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ]
        stats = simulator.stats()
        assert [each["hidden"] for each in stats["by_rule"]] == [True, False]
        assert len(stats["ended"]) == 1


def test_the_windows_of_a_fixed_limit_begin_at_its_anchor(client: httpx.Client) -> None:
    # Windows of an hour that begin two minutes ago, wherever in an hour it is now.
    anchor = int(time.time()) - 120
    limit = f"2 requests/h fixed anchor {anchor}"
    with SimulatorProcess("--limits", limit, "--latency", "0") as simulator:
        answers = [client.post(simulator.url + CHAT, json=HELLO) for _ in range(3)]
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses == {200: 2, 429: 1}
        assert HOUR - 180 < int(answers[-1].headers["retry-after"]) <= HOUR - 120


def until(condition: Callable[[], bool]) -> None:
    """Waits, twenty seconds at most, for what another process's own clock brings about."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
