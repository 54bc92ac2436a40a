"""What each dialect says over a real socket: names and values of headers, bodies, paths, events."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from headway.simulate import SimulatorProcess
from headway.simulate.dialects import DIALECTS

SAYS: list[Any] = [{"role": "user", "content": "x" * 40}]
CHAT: dict[str, Any] = {"model": "m", "max_tokens": 30, "messages": SAYS}
GEMINI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "x" * 40}]}]}
GEMINI_PATH = "/v1beta/models/gemini-x:generateContent"
PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "azure": "/openai/deployments/m/chat/completions?api-version=2024-10-21",
    "gemini": GEMINI_PATH,
    "groq": "/openai/v1/chat/completions",
    "openrouter": "/api/v1/chat/completions",
    "together": "/v1/chat/completions",
    "venice": "/api/v1/chat/completions",
    "generic": "/v1/chat/completions",
    "ietf": "/v1/chat/completions",
}
HOUR = 3600
DAY = 86_400


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    dialect, *options = request.param
    with SimulatorProcess("--dialect", dialect, "--latency", "0", *options) as running:
        yield running


def serve(dialect: str, *limits: str, also: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    options = [text for limit in limits for text in ("--limits", limit)]
    return pytest.mark.parametrize(
        "simulator", [(dialect, *options, *also)], indirect=True, ids=[dialect]
    )


def post(simulator: SimulatorProcess, path: str, body: dict[str, Any], **more: Any) -> Any:
    return httpx.post(simulator.url + path, json=body, trust_env=False, timeout=30.0, **more)


def refusal_of(simulator: SimulatorProcess, path: str, **more: Any) -> openai.RateLimitError:
    """What OpenAI's SDK raises when it has asked so often that a limit refuses."""
    base = simulator.url + path.partition("/chat/")[0]
    with (
        openai.OpenAI(base_url=base, api_key="k", max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        for _ in range(9):
            client.chat.completions.create(model="m", messages=SAYS, **more)
    return caught.value


def told(answer: Any) -> dict[str, str]:
    """Whatever headers tell of limits and of waiting."""
    words = ("limit", "retry", "reset", "remaining", "balance")
    return {name: text for name, text in answer.headers.items() if any(w in name for w in words)}


def refused(answer: Any, status: int = 429) -> Any:
    assert answer.status_code == status
    return answer.json()


def test_every_dialect_is_tried_here() -> None:
    assert set(PATHS) == set(DIALECTS)


# -- headers and refusals --------------------------------------------------------------------


@serve("azure", "2 requests/h window", "200 tokens/h window")
def test_azure_s_resets_are_whole_seconds_and_its_tokens_are_a_sum(
    simulator: SimulatorProcess,
) -> None:
    # 10 tokens go in, and of two answers the better is to be had.
    answer = post(simulator, PATHS["azure"], {**CHAT, "best_of": 2})
    assert told(answer) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "3600",
        "x-ratelimit-limit-tokens": "200",
        "x-ratelimit-remaining-tokens": str(200 - 10 - 2 * 30),
        "x-ratelimit-reset-tokens": "3600",
    }
    with openai.AzureOpenAI(
        azure_endpoint=simulator.url, api_key="k", api_version="2024-10-21", max_retries=0
    ) as client:
        client.chat.completions.create(model="m", messages=SAYS)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=SAYS)
    headers = caught.value.response.headers
    assert caught.value.code == "429"
    wait, exact = int(headers["retry-after"]), int(headers["retry-after-ms"])
    assert HOUR - 60 < wait <= HOUR
    assert wait == -(-exact // 1000)
    assert caught.value.body == {
        "code": "429",
        "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API "
        "version 2024-10-21 have exceeded call rate limit of your current OpenAI S0 pricing "
        f"tier. Please retry after {wait} seconds. Please go here: "
        "https://aka.ms/oai/quotaincrease if you would like to further increase the default "
        "rate limit.",
    }
    fault = refusal_of(simulator, "/openai/v1/chat/completions")
    assert "Azure OpenAI API version v1 have exceeded call rate" in fault.message


@serve("azure", "5 requests/h window", "50 tokens/h window", also=("--key", "secret"))
def test_azure_s_responses_api_says_that_it_knows_no_numbers(simulator: SimulatorProcess) -> None:
    body = {"model": "m", "input": "x" * 40}
    path = "/openai/v1/responses"
    rejected = post(simulator, path, body)
    assert rejected.status_code == 401
    assert rejected.json()["error"]["code"] == "invalid_api_key"
    for header in ({"api-key": "secret"}, {"authorization": "Bearer secret"}):
        assert told(post(simulator, path, body, headers=header)) == {
            "x-ratelimit-remaining-requests": "-1",
            "x-ratelimit-remaining-tokens": "-1",
            "x-ratelimit-reset-requests": "0",
            "x-ratelimit-reset-tokens": "0",
        }
    tokens = {**CHAT, "max_tokens": 40}
    refusal = post(simulator, PATHS["azure"], tokens, headers={"api-key": "secret"})
    assert "exceeded token rate limit" in refused(refusal)["error"]["message"]


@serve("venice", "2 requests/h window", "100 tokens/h window")
def test_venice_s_resets_are_an_instant_of_requests_and_a_wait_of_tokens(
    simulator: SimulatorProcess,
) -> None:
    before = time.time()
    answer = post(simulator, PATHS["venice"], CHAT)
    headers = told(answer)
    assert before + HOUR <= int(headers.pop("x-ratelimit-reset-requests")) <= time.time() + HOUR + 1
    assert headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-tokens": "3600",
        "x-venice-balance-diem": "0",
        "x-venice-balance-usd": "10.00",
    }
    response = refusal_of(simulator, PATHS["venice"]).response
    assert response.json() == {"error": "Rate limit exceeded"}
    assert told(response)["x-ratelimit-remaining-requests"] == "0"
    assert "retry-after" not in response.headers


@serve("venice", "1 requests/h window")
def test_venice_loses_its_patience_after_more_than_twenty_failures(
    simulator: SimulatorProcess,
) -> None:
    bodies = [post(simulator, PATHS["venice"], CHAT).text for _ in range(24)]
    plain = json.dumps({"error": "Rate limit exceeded"})
    assert bodies[1:22] == [plain] * 21
    assert "Too many failed attempts (> 20)" in bodies[22]
    assert "Please wait 30s" in bodies[23]
    limit, guard = "1 requests/3600s window", "more than 20 failures in 30s"
    assert simulator.stats()["refused_by"] == {limit: 21, guard: 2}


@serve("groq", "2 requests/min window", "3 requests/day bucket", "90 tokens/min window")
def test_groq_tells_requests_of_a_day_and_tokens_of_a_minute(simulator: SimulatorProcess) -> None:
    answer = post(simulator, PATHS["groq"], CHAT)
    assert told(answer) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "8h0m0s",
        "x-ratelimit-limit-tokens": "90",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "1m0s",
    }
    large = refused(post(simulator, PATHS["groq"], {**CHAT, "max_tokens": 91}), 413)
    assert large["error"]["message"].startswith(
        "Request too large for model `m` in organization `org_simulated` service tier "
        "`on_demand` on tokens per minute (TPM): Limit 90, Requested 91, please reduce your "
        "message size and try again."
    )
    response = refusal_of(simulator, PATHS["groq"], max_tokens=30).response
    # That of a minute refuses, and no header says how large it is.
    headers = told(response)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert 0 < int(headers["retry-after"]) <= 60
    fault = response.json()["error"]
    assert (fault["type"], fault["code"]) == ("requests", "rate_limit_exceeded")
    assert re.fullmatch(
        r"Rate limit reached for model `m` in organization `org_simulated` service tier "
        r"`on_demand` on requests per minute \(RPM\): Limit 2, Used 2, Requested 1\. Please try "
        r"again in [\dm.]+s\. Need more tokens\? Upgrade to Dev Tier today at "
        r"https://console\.groq\.com/settings/billing",
        fault["message"],
    )


@serve("together", "2 requests/s window", "100 tokens/s window", "3 requests/h window")
def test_together_tells_what_may_be_sent_in_a_second(simulator: SimulatorProcess) -> None:
    answer = post(simulator, PATHS["together"], CHAT)
    assert told(answer) == {
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-reset": "1",
        "x-ratelimit-limit-dynamic": "2",
        "x-ratelimit-remaining-dynamic": "1",
        "x-tokenlimit-limit": "100",
        "x-tokenlimit-remaining": "70",
        "x-tokenlimit-limit-dynamic": "100",
        "x-tokenlimit-remaining-dynamic": "70",
    }
    body = refused(post(simulator, PATHS["together"], {**CHAT, "max_tokens": 101}))
    assert body["error_type"] == body["error"]["type"] == "dynamic_token_limited"
    error = refusal_of(simulator, PATHS["together"])
    assert error.type == "dynamic_request_limited"
    assert "retry-after" not in error.response.headers


@pytest.mark.parametrize(
    ("simulator", "name"),
    [
        (("openrouter", "--limits", "2 requests/min fixed"), "limit_rpm/m"),
        (("openrouter", "--limits", "2 requests/day fixed"), "limit_rpd/m"),
    ],
    indirect=["simulator"],
    ids=["minute", "day"],
)
def test_openrouter_tells_a_limit_in_the_body_of_a_refusal_alone(
    simulator: SimulatorProcess, name: str
) -> None:
    period = 60 if "rpm" in name else DAY
    answers = []
    # Where a minute ends among them, one more is let through.
    while not answers or answers[-1].status_code == 200:
        answers.append(post(simulator, PATHS["openrouter"], CHAT))
    assert [told(answer) for answer in answers] == [{}] * len(answers)
    fault = refused(answers[-1])["error"]
    reset = int(fault["metadata"]["headers"].pop("X-RateLimit-Reset"))
    assert fault == {
        "message": f"Rate limit exceeded: {name}. Please retry shortly.",
        "code": 429,
        "metadata": {
            "headers": {"X-RateLimit-Limit": "2", "X-RateLimit-Remaining": "0"},
            "provider_name": None,
        },
    }
    # The end of its minute or of its day, in milliseconds; two clocks are read for it.
    off = (reset + 500) % (period * 1000) - 500
    assert abs(off) <= 500
    assert 0 <= reset / 1000 - time.time() + 1 <= period + 2


@serve("openrouter", also=("--hidden", "1 requests/h window"))
def test_a_hidden_limit_of_openrouter_is_that_of_somebody_upstream(
    simulator: SimulatorProcess,
) -> None:
    fault = refusal_of(simulator, PATHS["openrouter"]).response.json()["error"]
    assert fault["message"] == "Provider returned error"
    assert fault["metadata"]["raw"].startswith("m is temporarily rate-limited upstream.")


@serve("gemini", "3 requests/day window", "2 requests/min window", "25 input_tokens/min window")
def test_gemini_tells_in_a_refusal_s_body_which_quotas_are_spent(
    simulator: SimulatorProcess,
) -> None:
    answers = [post(simulator, GEMINI_PATH, GEMINI) for _ in range(3)]
    assert [told(answer) for answer in answers] == [{}] * 3
    fault = refused(answers[2])["error"]
    assert (fault["code"], fault["status"]) == (429, "RESOURCE_EXHAUSTED")
    failure, retry = fault["details"]
    assert failure["@type"] == "type.googleapis.com/google.rpc.QuotaFailure"
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_"
    dimensions = {"location": "global", "model": "gemini-x"}
    assert failure["violations"] == [
        {
            "quotaMetric": f"{metric}{name}",
            "quotaId": quota,
            "quotaDimensions": dimensions,
            "quotaValue": value,
        }
        for name, quota, value in (
            ("requests", "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "2"),
            ("input_token_count", "GenerateContentInputTokensPerModelPerMinute-FreeTier", "25"),
        )
    ]
    assert retry["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
    assert 0 < int(retry["retryDelay"].removesuffix("s")) <= 60
    assert (
        f"\n* Quota exceeded for metric: {metric}requests, limit: 2, model: gemini-x"
        in (fault["message"])
    )
    assert re.search(r"\nPlease retry in [\d.]+s\.$", fault["message"])


@serve("gemini", "1 requests/day window", also=("--key", "secret"))
def test_gemini_s_wait_is_short_though_the_quota_of_a_day_is_spent(
    simulator: SimulatorProcess,
) -> None:
    wrong = post(simulator, GEMINI_PATH, GEMINI)
    assert (wrong.status_code, wrong.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert post(simulator, f"{GEMINI_PATH}?key=secret", GEMINI).status_code == 200
    again = post(simulator, GEMINI_PATH, GEMINI, headers={"x-goog-api-key": "secret"})
    failure, retry = refused(again)["error"]["details"]
    quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
    assert [each["quotaId"] for each in failure["violations"]] == [quota]
    assert int(retry["retryDelay"].removesuffix("s")) <= 60


@serve("gemini", also=("--hidden", "1 requests/h window"))
def test_gemini_names_no_quota_that_is_hidden(simulator: SimulatorProcess) -> None:
    assert post(simulator, GEMINI_PATH, GEMINI).status_code == 200
    fault = refused(post(simulator, GEMINI_PATH, GEMINI))["error"]
    assert fault == {
        "code": 429,
        "message": "Resource has been exhausted (e.g. check quota).",
        "status": "RESOURCE_EXHAUSTED",
    }


@serve("generic", "2 requests/h window")
def test_generic_headers_tell_an_instant_in_seconds(simulator: SimulatorProcess) -> None:
    before = time.time()
    headers = told(post(simulator, PATHS["generic"], CHAT))
    assert before + HOUR <= int(headers.pop("x-ratelimit-reset")) <= time.time() + HOUR + 1
    assert headers == {
        "x-ratelimit-limit": "2",
        "x-ratelimit-remaining": "1",
        "x-ratelimit-used": "1",
    }
    post(simulator, PATHS["generic"], CHAT)
    assert refused(post(simulator, PATHS["generic"], CHAT)) == {
        "message": "API rate limit exceeded"
    }


@serve("ietf", "2 requests/h window", "9 requests/day bucket", "99 tokens/min")
def test_ietf_s_fields_tell_of_all_policies_at_once(simulator: SimulatorProcess) -> None:
    answer = post(simulator, PATHS["ietf"], CHAT)
    assert told(answer) == {
        "ratelimit-policy": '"window-3600s";q=2;w=3600, "bucket-86400s";q=9;w=86400',
        "ratelimit": '"window-3600s";r=1;t=3600, "bucket-86400s";r=8;t=9600',
    }
    post(simulator, PATHS["ietf"], CHAT)
    refusal = post(simulator, PATHS["ietf"], CHAT)
    assert refusal.headers["content-type"] == "application/problem+json"
    assert HOUR - 60 < int(refusal.headers["retry-after"]) <= HOUR
    assert refused(refusal) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Request cannot be satisfied as assigned quota has been exceeded",
        "status": 429,
        "violated-policies": ["window-3600s"],
    }


@serve("anthropic", "1 requests/h window", "5_000 input_tokens/h window", "99 output_tokens/h")
def test_anthropic_s_resets_are_instants_and_its_tokens_are_thousands(
    simulator: SimulatorProcess,
) -> None:
    with anthropic.Anthropic(api_key="k", base_url=simulator.url, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(
            model="c", max_tokens=9, system="y" * 800, messages=[*SAYS]
        )
        headers = told(raw)
        for name in ("requests", "input-tokens", "output-tokens"):
            reset = headers.pop(f"anthropic-ratelimit-{name}-reset")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reset)
        assert headers == {
            "anthropic-ratelimit-requests-limit": "1",
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-input-tokens-limit": "5000",
            # 210 are used, the system's text among them; told is the nearest thousand.
            "anthropic-ratelimit-input-tokens-remaining": "5000",
            "anthropic-ratelimit-output-tokens-limit": "99",
            "anthropic-ratelimit-output-tokens-remaining": "0",
        }
        used = {each["resource"]: each["used"] for each in simulator.stats()["by_rule"]}
        assert used["input_tokens"] == 210
        with pytest.raises(anthropic.RateLimitError, match="rate limit of 1 requests"):
            client.messages.create(model="c", max_tokens=9, messages=[*SAYS])


# -- what all have in common -----------------------------------------------------------------


@pytest.mark.parametrize("dialect", sorted(PATHS))
def test_a_silent_dialect_tells_no_limit_in_headers_or_bodies(dialect: str) -> None:
    body = GEMINI if dialect == "gemini" else CHAT
    options = ("--dialect", dialect, "--limits", "1 requests/h", "--no-headers", "--latency", "0")
    with SimulatorProcess(*options) as simulator:
        answers = [post(simulator, PATHS[dialect], body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        for answer in answers:
            assert [name for name in told(answer) if "balance" not in name] == []
        assert "3600" not in answers[1].text


@pytest.mark.parametrize("dialect", sorted(PATHS))
def test_every_dialect_has_its_paths_its_errors_and_its_failures(dialect: str) -> None:
    body = GEMINI if dialect == "gemini" else CHAT
    options = ("--dialect", dialect, "--fail", "503:1", "--latency", "0")
    with SimulatorProcess(*options) as simulator:
        assert post(simulator, PATHS[dialect], body).status_code == 503
        assert post(simulator, "/elsewhere", body).status_code == 404
        failed = post(simulator, PATHS[dialect], body)
        assert isinstance(failed.json(), dict)
        prefix = DIALECTS[dialect].prefixes[0]
        listed = httpx.get(f"{simulator.url}{prefix}models", trust_env=False)
        assert listed.status_code == 200
        assert simulator.stats()["failed"] == 2
        assert simulator.stats()["invalid"] == 1


@pytest.mark.parametrize("dialect", ["azure", "groq", "openrouter", "together", "venice", "ietf"])
def test_streams_of_who_is_compatible_are_read_by_openai_s_sdk(dialect: str) -> None:
    with SimulatorProcess("--dialect", dialect, "--latency", "0.05") as simulator:
        base = simulator.url + PATHS[dialect].partition("/chat/")[0]
        query = {"api-version": "2024-10-21"} if dialect == "azure" else None
        with openai.OpenAI(base_url=base, api_key="k", default_query=query) as client:
            stream = client.chat.completions.create(
                model="m",
                messages=SAYS,
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(words.split()) > 0


def test_gemini_streams_events_if_asked_and_else_one_array() -> None:
    path = "/v1beta/models/gemini-x:streamGenerateContent"
    body = {**GEMINI, "generationConfig": {"maxOutputTokens": 5}}
    with SimulatorProcess("--dialect", "gemini", "--latency", "0.05") as simulator:
        events = post(simulator, f"{path}?alt=sse", body)
        assert events.headers["content-type"] == "text/event-stream"
        whole = post(simulator, path, body)
        assert whole.headers["content-type"].startswith("application/json")
        once = post(simulator, GEMINI_PATH, body).json()
    read = [json.loads(line[6:]) for line in events.text.splitlines() if line.startswith("data: ")]
    for parts in (read, whole.json(), [once]):
        text = "".join(part["candidates"][0]["content"]["parts"][0]["text"] for part in parts)
        assert parts[-1]["candidates"][0]["finishReason"] in ("STOP", "MAX_TOKENS")
        assert parts[-1]["modelVersion"] == "gemini-x"
        count = len(text.split())
        assert parts[-1]["usageMetadata"] == {
            "promptTokenCount": 10,
            "candidatesTokenCount": count,
            "totalTokenCount": 10 + count,
        }


def test_a_model_that_the_path_names_has_its_own_limits() -> None:
    for dialect, path, body in (
        ("azure", "/openai/deployments/small/chat/completions", {"messages": SAYS}),
        ("gemini", "/v1beta/models/small:generateContent", GEMINI),
    ):
        limits = ("--model-limits", "small", "1 requests/h window", "--latency", "0")
        with SimulatorProcess("--dialect", dialect, *limits) as simulator:
            statuses = [post(simulator, path, body).status_code for _ in range(2)]
            other = post(simulator, path.replace("small", "large"), body)
            assert [*statuses, other.status_code] == [200, 429, 200]
            assert simulator.stats()["models"]["small"]["refused"] == 1
