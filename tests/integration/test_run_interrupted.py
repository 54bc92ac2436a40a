"""`headway run` and the key that people press, or a supervisor's signal, once and twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import COMMAND, environment, write_requests

from headway.simulate import SimulatorProcess

LIMITS = ("--limits", "3 requests/hour bucket")


def start(requests: Path, url: str, *options: str) -> subprocess.Popen[str]:
    command = [*COMMAND, str(requests), "--base-url", url, *LIMITS, *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_starts_nothing_new_and_writes_what_is_in_flight(
    tmp_path: Path, number: signal.Signals
) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 2000)
    out, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    # The end of this file that is read here tells when the first result is written.
    os.mkfifo(out)
    # The latencies of one, two and three seconds or so: the first is there, the others are out.
    with SimulatorProcess("--latency", "1.5", "--jitter", "1", "--seed", "4") as simulator:
        process = start(
            requests, simulator.url, "--out", str(out), "--overwrite", "--summary", str(summary)
        )
        with out.open() as written:
            results = [json.loads(written.readline())]
            process.send_signal(number)
            results += [json.loads(line) for line in written]
        stdout, stderr = process.communicate(timeout=30)
        stats = simulator.stats()
    assert process.returncode == 130
    assert stats["admitted"] == 3
    assert {result["custom_id"] for result in results} == {"r-0", "r-1", "r-2"}
    assert all(result["response"]["status_code"] == 200 for result in results)
    assert "interrupted: 2 in flight are finished and written" in stderr
    assert "without result  1,997" in stdout
    assert json.loads(summary.read_text())["requests"] == 3


def test_what_is_told_to_come_later_has_no_result_after_an_interrupt(tmp_path: Path) -> None:
    """Else whoever goes on with what has none would leave it out."""
    requests = write_requests(tmp_path / "requests.jsonl", 10)
    out = tmp_path / "out.jsonl"
    os.mkfifo(out)
    server = ("--limits", "1 requests/min window", "--latency", "0")
    with SimulatorProcess(*server) as simulator:
        process = start(requests, simulator.url, "--out", str(out), "--overwrite")
        with out.open() as written:
            results = [json.loads(written.readline())]
            while simulator.stats()["refused"] < 2:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            results += [json.loads(line) for line in written]
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [each["response"]["status_code"] for each in results] == [200]
    assert "without result  9" in stdout


def test_a_second_interrupt_cancels_what_is_in_flight(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 100)
    out = tmp_path / "out.jsonl"
    os.mkfifo(out)
    with SimulatorProcess("--latency", "lognormal:2:4", "--seed", "1") as simulator:
        process = start(requests, simulator.url, "--out", str(out), "--overwrite")
        with out.open() as written:
            assert written.readline()
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert "interrupted: " in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            rest = written.read()
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert len(rest.splitlines()) < 2
    assert "Traceback" not in stderr
    assert "requests" in stdout


def test_an_interrupt_before_anything_has_begun_ends_it_too(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 10)
    with SimulatorProcess("--latency", "0") as simulator:
        process = start(requests, simulator.url, "--out", str(tmp_path / "out.jsonl"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    # Before the command's own code runs, it is Python that is interrupted.
    assert process.returncode in (130, -signal.SIGINT)
