"""`headway run` against a real simulated provider: what it sends, writes and says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import COMMAND, KEY, environment, request, run, write_requests

from headway.simulate import SimulatorProcess

PLENTY = ("--limits", "100_000 requests/s bucket")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "requests.jsonl", 20)


# 600 at once; then 2 400 at 300 a second, or four times 600 after two seconds each.
@pytest.mark.long
@pytest.mark.parametrize("limit", ["300 requests/s bucket burst 600", "600 requests/2s window"])
def test_three_thousand_lines_are_sent_as_fast_as_the_limits_allow_and_none_is_refused(
    tmp_path: Path, limit: str
) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 3000)
    limits = ("--limits", limit, "--limits", "60_000 tokens/min bucket")
    with SimulatorProcess(*limits, "--latency", "0.05", "--jitter", "0.02") as simulator:
        ended = run(requests, simulator.url + "/v1", *limits)
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert set(ended.by_id) == {f"r-{i}" for i in range(3000)}
    assert (stats["admitted"], stats["refused"], stats["invalid"]) == (3000, 0, 0)
    summary = ended.summary
    assert (summary["requests"], summary["succeeded"], summary["failed"]) == (3000, 3000, 0)
    assert (summary["refusals"], summary["retries"]) == (0, 0)
    # With the median latency, which grows where the machine has other work.
    assert summary["ideal_s"] == pytest.approx(8.05, abs=0.5)
    assert summary["use"] == pytest.approx(summary["ideal_s"] / summary["elapsed_s"], rel=1e-4)
    assert 0.5 < summary["use"] < 1.02
    assert 0.3 * summary["elapsed_s"] < summary["wait_p50_s"] < 0.6 * summary["elapsed_s"]
    assert summary["wait_p50_s"] < summary["wait_p99_s"] <= summary["elapsed_s"]


def test_results_have_the_shape_of_openais_batch_output(requests: Path) -> None:
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url + "/v1", *PLENTY)
    assert len({result["id"] for result in ended.results}) == 20
    for result in ended.results:
        assert list(result) == ["id", "custom_id", "response", "error"]
        assert result["error"] is None
        response = result["response"]
        assert list(response) == ["status_code", "request_id", "body"]
        assert response["status_code"] == 200
        assert response["request_id"].startswith("req_")
        assert response["body"]["object"] == "chat.completion"
    used = sum(result["response"]["body"]["usage"]["total_tokens"] for result in ended.results)
    assert ended.summary["tokens"] == used > 0


def test_the_run_ends_with_a_table_and_a_summary(requests: Path) -> None:
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url + "/v1", *PLENTY)
    promised = "requests succeeded failed refusals retries tokens elapsed_s ideal_s use "
    assert " ".join(ended.summary) == promised + "wait_p50_s wait_p99_s"
    rows = dict(line.split("  ", 1) for line in ended.stdout.splitlines())
    assert rows["requests"].strip() == rows["succeeded"].strip() == "20"
    assert rows["bound by"].strip() == "100000 requests/s bucket"
    assert rows["results"].strip() == str(ended.out)


def test_each_result_is_written_as_soon_as_it_is_there(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 2)
    out = tmp_path / "out.jsonl"
    # The end of this file that is read here tells when a line is written.
    os.mkfifo(out)
    limits = ("--limits", "1 requests/2s bucket burst 1")
    with SimulatorProcess(*limits, "--latency", "0") as simulator:
        command = [*COMMAND, str(requests), "--base-url", simulator.url, *limits]
        process = subprocess.Popen(
            [*command, "--out", str(out), "--overwrite"], env=environment(), stdout=subprocess.PIPE
        )
        with out.open() as written:
            first = json.loads(written.readline())
            assert process.poll() is None
            assert simulator.stats()["admitted"] == 1
            second = json.loads(written.readline())
        process.communicate(timeout=30)
    assert [first["custom_id"], second["custom_id"]] == ["r-0", "r-1"]
    assert process.returncode == 0


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_a_version_in_the_base_url_is_not_doubled(requests: Path, path: str) -> None:
    with SimulatorProcess("--latency", "0") as simulator:
        assert run(requests, simulator.url + path, *PLENTY).status == 0
        assert simulator.stats()["admitted"] == 20


def test_the_key_is_sent_and_shown_nowhere(requests: Path) -> None:
    with SimulatorProcess("--latency", "0", "--key", KEY) as simulator:
        ended = run(requests, simulator.url + "/v1", *PLENTY)
        assert ended.status == 0
        other = environment(OPENAI_API_KEY="another-secret")
        refused = run(requests, simulator.url + "/v1", *PLENTY, "--overwrite", env=other)
    for each, secret in ((ended, KEY), (refused, "another-secret")):
        written = each.out.read_text() + each.summary_path.read_text()
        assert secret not in each.stdout + each.stderr + written
    assert refused.status == 1
    assert refused.summary["retries"] == 0
    assert {result["response"]["status_code"] for result in refused.results} == {401}


def test_no_key_is_said_and_none_is_sent(requests: Path) -> None:
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url, *PLENTY, env=environment(OPENAI_API_KEY=""))
    assert ended.status == 0
    assert ended.stderr == "headway run: OPENAI_API_KEY is not set: no key is sent\n"


@pytest.mark.long
def test_as_many_are_in_flight_as_the_limits_need_and_no_more_than_concurrency_allows(
    tmp_path: Path,
) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 400)
    # The provider's own limit only counts here.
    with SimulatorProcess("--limits", "1000 concurrency", "--latency", "3") as simulator:
        assert run(requests, simulator.url, *PLENTY).status == 0
        assert simulator.stats()["by_rule"][0]["used"] == 400
    requests = write_requests(tmp_path / "requests.jsonl", 40)
    with SimulatorProcess("--limits", "1000 concurrency", "--latency", "0.05") as simulator:
        ended = run(requests, simulator.url, *PLENTY, "--concurrency", "4", "--overwrite")
        assert ended.status == 0
        assert simulator.stats()["by_rule"][0]["used"] == 4
    assert "bound by        4 concurrency" in ended.stdout
    assert ended.summary["ideal_s"] == pytest.approx(0.5, rel=0.3)


def test_a_provider_that_counts_concurrency_refuses_nothing(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 100)
    limits = ("--limits", "7 concurrency")
    with SimulatorProcess(*limits, "--latency", "0.02") as simulator:
        assert run(requests, simulator.url, *limits, "--concurrency", "50").status == 0
        stats = simulator.stats()
    assert (stats["refused"], stats["by_rule"][0]["used"]) == (0, 7)


def test_tokens_are_counted_as_the_provider_counts_them(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    sizes = [7, 300, 40, 1, 999, 250] * 10
    lines = [request(f"r-{i}", max_tokens=size) for i, size in enumerate(sizes)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    limits = ("--limits", "10_000 tokens/2s window")
    with SimulatorProcess(*limits, "--latency", "0.05", "--arrival-jitter", "0.005") as simulator:
        ended = run(requests, simulator.url, *limits)
        stats = simulator.stats()
    assert (ended.status, stats["refused"]) == (0, 0)
    assert stats["by_rule"][0]["used"] == sum(max(size, 2) for size in sizes)


def test_broken_lines_are_told_by_number_and_the_rest_is_sent(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    good = [json.dumps(request(f"r-{i}")) for i in range(3)]
    broken = ["no JSON", json.dumps({**request("x"), "method": "GET"}), good[0]]
    requests.write_text("\n".join([good[0], broken[0], good[1], "", *broken[1:], good[2]]) + "\n")
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
    assert ended.status == 1
    assert set(ended.by_id) == {"r-0", "r-1", "r-2"}
    assert ended.stderr.splitlines() == [
        "headway run: broken line 2: not JSON: Expecting value at character 1",
        "headway run: broken line 5: method 'GET': must be 'POST'",
        "headway run: broken line 6: custom_id 'r-0' is that of line 1; not sent",
    ]
    assert "broken lines    3" in ended.stdout
    assert ended.summary["requests"] == ended.summary["succeeded"] == 3


def test_a_line_that_can_never_fit_fails_at_once_with_both_numbers(tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    lines = [request("big", max_tokens=4800), request("small")]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    limits = ("--limits", "4500 tokens/hour bucket")
    with SimulatorProcess(*limits, "--latency", "0") as simulator:
        ended = run(requests, simulator.url, *limits)
        assert simulator.stats()["admitted"] == 1
    assert ended.status == 1
    assert ended.by_id["small"]["response"]["status_code"] == 200
    big = ended.by_id["big"]
    assert big["response"] is None
    assert big["error"]["code"] == "capacity_exceeded"
    assert "4800" in big["error"]["message"]
    assert "4500" in big["error"]["message"]


def test_an_empty_file_is_done_at_once(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 0)
    ended = run(requests, "http://127.0.0.1:1", *PLENTY)
    assert (ended.status, ended.results) == (0, [])
    assert ended.summary["use"] is None


def test_results_that_exist_are_kept_unless_overwrite_is_said(requests: Path) -> None:
    out = requests.with_name("out.jsonl")
    out.write_text("precious\n")
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
        assert ended.status == 2
        assert ended.stderr.endswith("exists already; --overwrite replaces it\n")
        assert out.read_text() == "precious\n"
        assert simulator.stats()["admitted"] == 0
        assert run(requests, simulator.url, *PLENTY, "--overwrite").status == 0
    assert len(out.read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mode", "basic"), "--mode basic: finds out no limits"),
        (("--limits", "many"), "limit 'many': must read"),
        (("--limits", "5 images/min"), "must be one of requests, tokens, concurrency"),
        ((*PLENTY, "--concurrency", "0"), "'0': must be a whole number of at least 1"),
        ((*PLENTY, "--max-retries", "-1"), "'-1': must be a whole number of at least 0"),
        ((*PLENTY, "--timeout", "nan"), "'nan': must be seconds"),
        ((*PLENTY, "--base-url", "nowhere"), "base URL 'nowhere': must begin with http"),
        ((*PLENTY, "--summary", "out.jsonl"), "is the file of results"),
        ((*PLENTY, "--out", "requests.jsonl", "--overwrite"), "is the file of requests"),
        ((*PLENTY, "--out", "no/where.jsonl"), "No such file or directory"),
        ((*PLENTY, "--surprise"), "unrecognized arguments: --surprise"),
    ],
)
def test_wrong_usage_is_told_and_creates_no_results(
    requests: Path, options: tuple[str, ...], said: str
) -> None:
    command = [*COMMAND, "requests.jsonl", "--base-url", "http://127.0.0.1:1"]
    ended = subprocess.run(
        [*command, "--out", "out.jsonl", *options],
        capture_output=True,
        text=True,
        cwd=requests.parent,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not requests.with_name("out.jsonl").exists()
    assert len(requests.read_text().splitlines()) == 20


@pytest.mark.parametrize(("name", "said"), [("none.jsonl", "none.jsonl"), (".", "regular file")])
def test_a_file_of_requests_that_cannot_be_read_is_wrong_usage(
    tmp_path: Path, name: str, said: str
) -> None:
    ended = run(tmp_path / name, "http://127.0.0.1:1", *PLENTY)
    assert ended.status == 2
    assert said in ended.stderr


def test_without_httpx_the_extra_is_named_and_the_simulator_works(requests: Path) -> None:
    def without_httpx(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = (
            "import sys; sys.modules['httpx'] = None; "
            "from headway.cli.main import main; sys.exit(main())"
        )
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            cwd=requests.parent,
            timeout=60,
            check=False,
        )

    told = ("--out", "out.jsonl", "--base-url", "http://127.0.0.1:1", *PLENTY)
    ended = without_httpx("run", "requests.jsonl", *told)
    assert ended.returncode == 2
    assert ended.stderr == "headway run: httpx is not installed: pip install 'headway[cli]'\n"
    assert not requests.with_name("out.jsonl").exists()
    assert without_httpx("simulate", "--help").returncode == 0


def test_the_command_says_its_version_and_what_it_can_do() -> None:
    def headway(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND[:-1], *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    said = headway("--version")
    assert (said.returncode, said.stdout.split()[0]) == (0, "headway")
    assert len(said.stdout.split()[1].split(".")) == 3
    assert "simulate" in headway("--help").stdout
    nothing = headway()
    assert nothing.returncode == 2
    assert "COMMAND" in nothing.stderr
