"""`headway run` where the provider, the network or this machine fails."""

from __future__ import annotations

import resource
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import COMMAND, environment, request, run, write_lines, write_requests

from headway.simulate import SimulatorProcess

PLENTY = ("--limits", "100_000 requests/s bucket")


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "requests.jsonl", 100)


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes requests and never answers."""

    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                pass

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("failure", ["500", "503", "529", "408", "409", "drop", "429"])
def test_a_failure_that_may_pass_is_tried_again_and_counted(requests: Path, failure: str) -> None:
    with SimulatorProcess("--latency", "0.01", "--fail", f"{failure}:0.1") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
        stats = simulator.stats()
    summary = ended.summary
    assert (ended.status, summary["succeeded"]) == (0, 100)
    assert summary["retries"] == stats["failed"] > 0
    assert stats["admitted"] == 100 + stats["failed"]
    assert summary["refusals"] == (stats["failed"] if failure == "429" else 0)


@pytest.mark.parametrize("failure", ["400", "401", "404", "422"])
def test_a_failure_that_will_not_pass_is_final(requests: Path, failure: str) -> None:
    with SimulatorProcess("--latency", "0", "--fail", f"{failure}:0.2") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
        stats = simulator.stats()
    assert ended.status == 1
    assert (ended.summary["failed"], ended.summary["retries"]) == (stats["failed"], 0)
    failed = [each for each in ended.results if each["response"]["status_code"] == int(failure)]
    assert len(failed) == stats["failed"] > 0
    assert all("error" in each["response"]["body"] for each in failed)


@pytest.mark.slow
def test_a_provider_that_only_fails_is_not_asked_for_ever(requests: Path) -> None:
    with SimulatorProcess("--latency", "0", "--fail", "500:1") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
        stats = simulator.stats()
    # The budget: ten retries, and one for every five requests.
    assert (ended.status, ended.summary["failed"], ended.summary["retries"]) == (1, 100, 30)
    assert stats["admitted"] == 130
    assert {each["response"]["status_code"] for each in ended.results} == {500}
    assert ended.stderr.count("the budget for retries is used up") == 1


def test_max_retries_of_nought_tries_nothing_again(requests: Path) -> None:
    with SimulatorProcess("--latency", "0", "--fail", "500:0.5") as simulator:
        ended = run(requests, simulator.url, *PLENTY, "--max-retries", "0")
        assert simulator.stats()["admitted"] == 100
    assert ended.status == 1
    assert ended.summary["retries"] == 0


def test_refusals_by_limits_that_were_not_told_are_sat_out(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 12)
    with SimulatorProcess("--limits", "10 requests/s window", "--latency", "0") as simulator:
        ended = run(requests, simulator.url, *PLENTY)
        stats = simulator.stats()
    assert ended.status == 0
    assert ended.summary["refusals"] == stats["refused"] >= 2
    assert ended.summary["elapsed_s"] >= 1.0


@pytest.mark.slow
def test_refusals_that_name_their_wait_fail_nothing_however_many_they_are(tmp_path: Path) -> None:
    """Two models that one limit counts together, and nobody has said so: each sends all of it."""
    lines = [request(f"r-{i}", model="ab"[i % 2]) for i in range(100)]
    requests = write_lines(tmp_path / "requests.jsonl", lines)
    with SimulatorProcess("--limits", "60 requests/2s window", "--latency", "0.05") as simulator:
        ended = run(requests, simulator.url)
        stats = simulator.stats()
    assert stats["refused"] > 10 + 100 // 5, "or the budget for retries would have done"
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    assert {each["response"]["status_code"] for each in ended.results} == {200}


def test_an_answer_that_does_not_come_in_time_is_a_failure_that_says_so(
    tmp_path: Path, silent: str
) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 3)
    ended = run(requests, silent, *PLENTY, "--timeout", "0.2", "--max-retries", "1")
    assert ended.status == 1
    assert ended.summary["retries"] == 3
    for each in ended.results:
        assert each["response"] is None
        assert each["error"] == {"code": "timeout", "message": "no answer within 0.2 s"}


def test_a_provider_that_is_not_there_is_a_failure_that_says_so(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 3)
    ended = run(requests, "http://127.0.0.1:1", *PLENTY, "--max-retries", "1")
    assert ended.status == 1
    assert "bound by        -" in ended.stdout
    assert {each["error"]["code"] for each in ended.results} == {"connection_error"}
    assert all("ConnectError" in each["error"]["message"] for each in ended.results)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file is always full here")
def test_results_that_cannot_be_written_end_the_run(requests: Path) -> None:
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(requests, simulator.url, *PLENTY, "--out", "/dev/full", "--overwrite")
    assert ended.status == 1
    assert "headway run: stopped: [Errno 28] No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_few_open_files_mean_few_requests_at_once_and_no_failure(requests: Path) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))

    out = requests.with_name("out.jsonl")
    with SimulatorProcess("--limits", "100 concurrency", "--latency", "0.1") as simulator:
        command = [*COMMAND, str(requests), "--out", str(out), "--base-url", simulator.url]
        ended = subprocess.run(
            [*command, *PLENTY],
            capture_output=True,
            text=True,
            env=environment(),
            preexec_fn=few_files,
            timeout=60,
            check=False,
        )
        stats = simulator.stats()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("no more than 16 requests at once") == 1
    assert stats["by_rule"][0]["used"] == 16
