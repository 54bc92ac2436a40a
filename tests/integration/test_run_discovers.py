"""`headway run` without limits finds them out from the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import environment, request, run, write_lines, write_requests
from servers import Answer, Server, said

from headway.simulate.process import SimulatorProcess


def test_limits_that_nobody_gave_are_found_out_and_kept_to(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 70)
    with SimulatorProcess("--limits", "60 requests/min bucket", "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url)
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert (stats["admitted"], stats["refused"]) == (70, 0)
    # Of a bucket, which is recognised as one: the last ten, one a second.
    assert 9.0 <= ended.summary["elapsed_s"] < 14.0
    assert "60 requests/min bucket of m" in ended.stdout


def test_each_model_has_its_own_and_given_ones_stay(tmp_path: Path) -> None:
    lines = [request(f"r-{i}", model=f"m-{i % 3}") for i in range(30)]
    requests = write_lines(tmp_path / "requests.jsonl", lines)
    limits = [
        part for n in range(3) for part in ("--model-limits", f"m-{n}", "10 requests/min window")
    ]
    with SimulatorProcess(*limits, "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url, "--model-limits", "m-1", "10 requests/min window")
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert {name: each["admitted"] for name, each in stats["models"].items()} == {
        "m-0": 10,
        "m-1": 10,
        "m-2": 10,
    }
    assert sum(each["refused"] for each in stats["models"].values()) == 0


def test_tokens_are_found_out_too(tmp_path: Path) -> None:
    lines = [request(f"r-{i}", max_tokens=100) for i in range(70)]
    requests = write_lines(tmp_path / "requests.jsonl", lines)
    limits = ("--limits", "900 requests/min", "--limits", "6_000 tokens/min bucket")
    with SimulatorProcess(*limits, "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url)
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert (stats["admitted"], stats["refused"]) == (70, 0)
    # The last ten, one a second.
    assert 9.0 <= ended.summary["elapsed_s"] < 14.0
    assert "6000 tokens/min bucket of m" in ended.stdout


def test_what_an_answer_did_not_need_is_there_for_the_next(tmp_path: Path) -> None:
    usage = {"input_tokens": 5, "output_tokens": 10}
    # What the limit is, and not how much of it is left.
    limit = {"anthropic_ratelimit_output_tokens_limit": "3000"}
    answer = said(200, {"model": "m", "content": [], "usage": usage}, **limit)
    lines = [{**request(f"r-{i}", max_tokens=1_400), "url": "/v1/messages"} for i in range(40)]
    requests = write_lines(tmp_path / "requests.jsonl", lines)
    with Server(lambda *_: answer) as server:
        way = environment(http_proxy=server.url, HTTP_PROXY=server.url)
        ended = run(requests, "http://api.anthropic.com/v1", env=way)
    assert ended.status == 0, ended.stderr
    assert "3000 output_tokens/min bucket of m" in ended.stdout
    # Of what they may need eleven fit, and one more in five seconds.
    assert ended.summary["elapsed_s"] < 20


def through(simulator: SimulatorProcess) -> dict[str, str]:
    """An environment in which every host's requests get to the simulator."""
    return environment(http_proxy=simulator.url, HTTP_PROXY=simulator.url)


def test_input_and_output_tokens_are_kept_to_where_they_are_counted_apart(tmp_path: Path) -> None:
    lines = [request(f"r-{i}", max_tokens=48) for i in range(145)]
    requests = write_lines(
        tmp_path / "requests.jsonl", [{**line, "url": "/v1/messages"} for line in lines]
    )
    limits = ("--limits", "3_000 output_tokens/min", "--limits", "90_000 requests/min")
    with SimulatorProcess("--dialect", "anthropic", *limits, "--latency", "0.02") as simulator:
        ended = run(requests, "http://api.anthropic.com/v1", env=through(simulator))
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert (stats["admitted"], stats["refused"]) == (145, 0)
    (rule,) = (each for each in stats["by_rule"] if each["resource"] == "output_tokens")
    # What is reserved for a request, and not used, is used by others: half, if it were not. The
    # rest of what could have been used is of the seconds before it began.
    assert rule["used"] > max(0.8 * rule["most"], 3_200)
    assert "3000 output_tokens/min bucket of m" in ended.stdout
    assert 0.8 < ended.summary["use"] < 1.05


@pytest.mark.parametrize(
    ("dialect", "base_url", "path"),
    [
        ("openrouter", "http://openrouter.ai/api/v1", "/v1/chat/completions"),
        (
            "gemini",
            "http://generativelanguage.googleapis.com",
            "/v1beta/models/m:generateContent",
        ),
    ],
)
def test_a_want_of_capacity_is_no_limit(
    tmp_path: Path, dialect: str, base_url: str, path: str
) -> None:
    requests = write_lines(
        tmp_path / "requests.jsonl", [{**request(f"r-{i}"), "url": path} for i in range(70)]
    )
    learnt = tmp_path / "learnt.json"
    learnt.write_text('{"m": ["600 requests/min window"]}')
    # Of which it says nothing, but that it had no more just then.
    limits = ("--hidden", "66 requests/s window", "--latency", "0.02")
    with SimulatorProcess("--dialect", dialect, *limits) as simulator:
        options = ("--learnt", str(learnt), "--max-retries", "30")
        ended = run(requests, base_url, *options, env=through(simulator))
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert (stats["admitted"], ended.summary["refusals"]) == (70, stats["refused"])
    assert stats["refused"] >= 2
    assert json.loads(learnt.read_text()) == {"m": ["600 requests/min window"]}
    assert "600 requests/min window of m" in ended.stdout


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (said(200, {"data": {"limit_remaining": 2.5}}), "the key has a credit of 2.5 left"),
        (said(200, {"data": {"limit_remaining": 0}}), "the key has no credit left"),
        (said(200, {"data": {"limit_remaining": None}}), None),
        (said(200, {"data": {"limit_remaining": "much"}}), None),
        (said(200, ["nonsense"]), None),
        (said(401, {"error": {"message": "no such key"}}), None),
    ],
)
def test_what_credit_a_key_has_left_is_told_where_a_provider_tells_it(
    tmp_path: Path, answer: Answer, says: str | None
) -> None:
    chat = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    def say(number: int, path: str, body: bytes) -> Answer:
        return answer if path.endswith("/key") else said(200, chat)

    requests = write_requests(tmp_path / "requests.jsonl", 3)
    with Server(say) as server:
        way = environment(http_proxy=server.url, HTTP_PROXY=server.url)
        ended = run(requests, "http://openrouter.ai/api/v1", env=way)
    assert ended.status == 0, ended.stderr
    assert server.asked[0] == "http://openrouter.ai/api/v1/key"
    assert len(server.asked) == 4
    lines = [line for line in ended.stderr.splitlines() if "credit" in line]
    assert lines == ([] if says is None else [f"headway run: {says}"])


def test_a_server_that_says_nothing_is_sent_everything(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 20)
    with SimulatorProcess("--no-headers", "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url)
        assert simulator.stats()["admitted"] == 20
    assert ended.status == 0, ended.stderr


@pytest.mark.parametrize("options", [(), ("--model-limits", "known", "10 requests/s")])
def test_basic_mode_finds_out_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 1)
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url, "--mode", "basic", *options)
        assert simulator.stats()["admitted"] == 0
    if not options:
        assert ended.status == 2
        assert "--mode basic: finds out no limits" in ended.stderr
        return
    assert ended.status == 1
    assert ended.by_id["r-0"]["error"]["code"] == "no_limits"


def test_what_was_found_out_is_kept_for_the_next_run(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 30)
    learnt = tmp_path / "learnt.json"
    learnt.write_text('{"another": ["7 requests/min window"]}')
    with SimulatorProcess("--limits", "20 requests/2s window", "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url, "--learnt", str(learnt))
    assert ended.status == 0, ended.stderr
    found = json.loads(learnt.read_text())
    # What nobody asked for this time is still there.
    assert found == {"another": ["7 requests/min window"], "m": ["20 requests/2s window"]}
    assert list(tmp_path.glob(".headway-*")) == []


def test_a_run_begins_with_what_another_has_found_out(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 12)
    learnt = tmp_path / "learnt.json"
    learnt.write_text('{"m": ["5 requests/2s window"]}')
    # Of a server that says nothing, the file is all that is known.
    with SimulatorProcess("--no-headers", "--latency", "0.02") as simulator:
        ended = run(requests, simulator.url, "--learnt", str(learnt))
    assert ended.status == 0, ended.stderr
    assert ended.summary["elapsed_s"] >= 4.0
    assert json.loads(learnt.read_text()) == {"m": ["5 requests/2s window"]}


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        ("{", (), "Expecting property name"),
        ("[]", (), "must be a dict of lists of limits by bucket id"),
        ('{"m": ["5 requests/fortnight"]}', (), "5 requests/fortnight"),
        ("{}", ("--limits", "5 requests/s"), "with --limits nothing is found out"),
        ("{}", ("--mode", "basic", "--concurrency", "1"), "with --mode basic nothing is found out"),
    ],
)
def test_a_wrong_file_of_what_was_found_out(
    tmp_path: Path, text: str, options: tuple[str, ...], complaint: str
) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 1)
    learnt = tmp_path / "learnt.json"
    learnt.write_text(text)
    ended = run(requests, "http://127.0.0.1:9", "--learnt", str(learnt), *options)
    assert ended.status == 2
    assert f"--learnt {learnt}: " in ended.stderr
    assert complaint in ended.stderr
    assert learnt.read_text() == text


@pytest.mark.parametrize("learnt", ["", "/dev/null", "missing/learnt.json"])
def test_what_was_found_out_goes_into_a_file_or_nowhere(tmp_path: Path, learnt: str) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 1)
    ended = run(requests, "http://127.0.0.1:9", "--learnt", learnt)
    assert ended.status == 2
    assert "--learnt" in ended.stderr
    assert not Path("/dev/null").is_file()
