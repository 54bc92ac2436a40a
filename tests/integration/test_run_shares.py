"""`headway run` where models have limits of their own, and where accounts and priorities share."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from running import COMMAND, environment, request, run

from headway.simulate import SimulatorProcess

USER = ("--account-key", "/body/metadata/user")


def write(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def of(user: str, number: int, **body: Any) -> list[dict[str, Any]]:
    """So many requests of that user."""
    return [request(f"{user}-{i}", metadata={"user": user}, **body) for i in range(number)]


def places(ended: Any, prefix: str) -> list[int]:
    """Where the results of those stand whose custom_id begins so."""
    return [i for i, each in enumerate(ended.results) if each["custom_id"].startswith(prefix)]


@pytest.mark.long
def test_two_models_with_limits_of_their_own_are_both_used_wholly_wherever_their_lines_stand(
    tmp_path: Path,
) -> None:
    # All of one first, and more than are read ahead: one after the other they would take nearly
    # twice as long. (Half of what one client and one simulator manage on a slow machine.)
    fast = [request(f"fast-{i}", model="fast") for i in range(1500)]
    slow = [request(f"slow-{i}", model="slow") for i in range(300)]
    requests = write(tmp_path / "requests.jsonl", fast + slow)
    limits = (
        *("--model-limits", "fast", "250 requests/s bucket burst 100"),
        *("--model-limits", "slow", "100 requests/2s window"),
        *("--model-limits", "slow", "150 tokens/s bucket burst 150"),
    )
    with SimulatorProcess(*limits, "--latency", "0.05") as simulator:
        ended = run(requests, simulator.url, *limits)
        models = simulator.stats()["models"]
    assert ended.status == 0, ended.stderr
    assert [(models[name]["admitted"], models[name]["refused"]) for name in ("fast", "slow")] == [
        (1500, 0),
        (300, 0),
    ]
    # 5.6 s for the fast one, and 4 s by requests or 3 s by tokens for the slow one.
    assert ended.summary["ideal_s"] == pytest.approx(5.65, abs=0.3)
    assert ended.summary["use"] > 0.8
    assert models["slow"]["last"] - models["slow"]["first"] < 5.0
    assert "bound by        250 requests/s bucket burst 100 of fast" in ended.stdout
    assert re.search(r"^fast +1,500 +0 +\d\.\d\d s +\d\.\d\d s$", ended.stdout, re.MULTILINE)
    assert re.search(r"^slow +300 +0 ", ended.stdout, re.MULTILINE)


def test_models_without_limits_of_their_own_share_those_of_all(tmp_path: Path) -> None:
    models = ["own", "a", "b"] * 10
    lines = [request(f"r-{i}", model=model) for i, model in enumerate(models)]
    requests = write(tmp_path / "requests.jsonl", lines)
    limits = ("--limits", "10 requests/s window", "--model-limits", "own", "5 requests/s window")
    with SimulatorProcess(*limits, "--latency", "0") as simulator:
        ended = run(requests, simulator.url, *limits)
        stats = simulator.stats()
    assert ended.status == 0, ended.stderr
    assert (stats["admitted"], stats["refused"]) == (20, 0)
    assert (stats["models"]["own"]["admitted"], stats["models"]["own"]["refused"]) == (10, 0)
    assert 1.0 <= ended.summary["elapsed_s"] < 2.0


def test_a_model_that_no_limit_holds_for_fails_without_being_sent(tmp_path: Path) -> None:
    lines = [request("a", model="known"), request("b", model="other")]
    requests = write(tmp_path / "requests.jsonl", lines)
    with SimulatorProcess("--latency", "0") as simulator:
        ended = run(
            requests, simulator.url, "--mode", "basic", "--model-limits", "known", "10 requests/s"
        )
        assert simulator.stats()["admitted"] == 1
    assert ended.status == 1
    assert ended.by_id["b"]["error"]["code"] == "no_limits"
    assert "'other'" in ended.by_id["b"]["error"]["message"]
    assert "failed because  1 no_limits" in ended.stdout


def test_accounts_and_priorities_hold_from_the_first_burst_on(tmp_path: Path) -> None:
    lines = of("heavy", 300) + of("light", 40)
    lines += [{**each, "urgent": 5} for each in of("soon", 10)]
    requests = write(tmp_path / "requests.jsonl", lines)
    limits = ("--limits", "400 requests/s bucket burst 100")
    with SimulatorProcess(*limits, "--latency", "0") as simulator:
        ended = run(requests, simulator.url, *limits, *USER, "--priority-key", "/urgent")
    assert ended.status == 0, ended.stderr
    # Results are written as requests end, which is almost in the order in which they went out.
    assert max(places(ended, "soon")) < 40
    burst = [each["custom_id"].partition("-")[0] for each in ended.results[:90]]
    assert abs(burst.count("light") - burst.count("heavy")) <= 16, burst


@pytest.mark.long
def test_an_account_that_floods_costs_the_others_only_their_share(tmp_path: Path) -> None:
    # The light one stands behind all that the other has, twice as much as is read ahead.
    lines = of("heavy", 2000) + of("light", 200)
    requests = write(tmp_path / "requests.jsonl", lines)
    limits = ("--limits", "500 requests/s bucket burst 100")

    def send(*options: str) -> tuple[list[int], str]:
        """Where the light one's results stand, and the table."""
        with SimulatorProcess(*limits, "--latency", "0.02") as simulator:
            ended = run(requests, simulator.url, *limits, *options, "--overwrite")
            assert (ended.status, simulator.stats()["refused"]) == (0, 0)
        return places(ended, "light"), ended.stdout

    # Taking turns it is through after 400, or after 250 where its turns are four; else it is last.
    # Until its lines have been found, the other has the limit for itself.
    shared, table = send(*USER)
    assert max(shared) < 900
    rows = dict(re.findall(r"^(heavy|light) .* (\d\.\d\d) s +\d\.\d\d s$", table, re.MULTILINE))
    assert float(rows["light"]) < 0.6 * float(rows["heavy"])
    weighted, _ = send(*USER, "--account-weight", "light=4")
    assert max(weighted) < max(shared) - 100
    alone, table = send()
    assert min(alone) > 1900
    assert not re.search(r"^light ", table, re.MULTILINE)


@pytest.mark.long
def test_what_is_urgent_goes_first_wherever_it_stands(tmp_path: Path) -> None:
    lines = [request(f"slow-{i}") for i in range(1500)]
    lines += [{**request(f"soon-{i}"), "urgent": 5} for i in range(20)]
    lines += [{**request(f"last-{i}"), "urgent": "-5"} for i in range(20)]
    requests = write(tmp_path / "requests.jsonl", lines)
    limits = ("--limits", "500 requests/s bucket burst 100")
    with SimulatorProcess(*limits, "--latency", "0") as simulator:
        ended = run(requests, simulator.url, *limits, "--priority-key", "/urgent")
        assert simulator.stats()["refused"] == 0
    assert ended.status == 0, ended.stderr
    # As soon as the lines before them have been read.
    assert max(places(ended, "soon")) < 700
    assert min(places(ended, "last")) > 1450


def test_a_line_whose_account_or_priority_is_none_fails_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    lines = [*of("a", 1), request("b", metadata={"user": 7}), request("c", metadata=None)]
    lines.append({**request("d"), "urgent": "soon"})
    requests = write(tmp_path / "requests.jsonl", lines)
    with SimulatorProcess("--latency", "0") as simulator:
        options = ("--limits", "100 requests/s", *USER, "--priority-key", "/urgent")
        ended = run(requests, simulator.url, *options)
        assert simulator.stats()["admitted"] == 2
    assert ended.status == 1
    assert ended.by_id["b"]["error"] == {
        "code": "invalid_account",
        "message": "line 2: --account-key /body/metadata/user: 7 must be a string that is not "
        "empty (missing: no account)",
    }
    assert ended.by_id["d"]["error"] == {
        "code": "invalid_priority",
        "message": "line 4: --priority-key /urgent: 'soon' must be a whole number from -10**9 to "
        "10**9, or one as a string (missing: 0)",
    }
    assert "failed because  1 invalid_account, 1 invalid_priority" in ended.stdout


@pytest.mark.long
@pytest.mark.parametrize("options", [(), USER])
def test_a_file_of_100_000_lines_is_read_as_it_is_needed(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    requests = tmp_path / "requests.jsonl"
    text = "x" * 1000
    with requests.open("w") as file:
        for i in range(100_000):
            line = request(f"r-{i}", messages=[{"role": "user", "content": text}])
            line["body"]["metadata"] = {"user": "heavy"}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps(*of("light", 1)) + "\n")
    out = tmp_path / "out.jsonl"
    os.mkfifo(out)
    wanted = "light-0" if options else "r-40"
    with SimulatorProcess("--latency", "0") as simulator:
        command = [*COMMAND, str(requests), "--base-url", simulator.url, *options, "--overwrite"]
        process = subprocess.Popen(
            [*command, "--out", str(out), "--limits", "20 requests/s bucket burst 1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        with out.open() as results:
            while json.loads(results.readline())["custom_id"] != wanted:
                pass
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGINT)
            rest = results.read()
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(rest.splitlines()) < 5
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024
    # The file is 115 MB; held as requests it would be several times that. With accounts, the
    # names of all lines that were looked at are kept.
    assert peak < (110 if options else 80), f"{peak} MB"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model-limits", "m", "many"), "limit 'many': must read"),
        (("--model-limits", "m", "5 images/min"), "--model-limits m '5 images/min': the resource"),
        (("--model-limits", "", "5 requests/min"), "--model-limits '': must be the name"),
        (("--model-limits", "m"), "expected 2 arguments"),
        (("--mode", "hurry"), "invalid choice: 'hurry'"),
        (("--account-key", "user"), "'user': must be a JSON pointer into the line"),
        (("--priority-key", "/a~b"), "'/a~b': must be a JSON pointer into the line"),
        (
            ("--account-key", "/user", "--mode", "intelligent"),
            "--mode intelligent: --account-key needs --mode account",
        ),
        (("--priority-key", "/p", "--mode", "basic"), "--priority-key needs another mode"),
        (("--account-weight", "a=1"), "needs --account-key"),
        ((*USER, "--account-weight", "a"), "'a': must be NAME=WEIGHT"),
        ((*USER, "--account-weight", "=2"), "'=2': must be NAME=WEIGHT"),
        ((*USER, "--account-weight", "a=0"), "'a=0': must be NAME=WEIGHT"),
        ((*USER, "--account-weight", "a=inf"), "'a=inf': must be NAME=WEIGHT"),
        ((*USER, "--account-weight", "a=1", "--account-weight", "a=2"), "is named twice"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    requests = write(tmp_path / "requests.jsonl", of("a", 1))
    limits = ("--limits", "10 requests/s")
    ended = run(requests, "http://127.0.0.1:1", *limits, *options)
    assert ended.status == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ended.out.exists()


@pytest.mark.parametrize("mode", ["basic", "intelligent", "account"])
def test_every_mode_sends_all_and_is_refused_nothing(tmp_path: Path, mode: str) -> None:
    requests = write(tmp_path / "requests.jsonl", of("a", 30) + of("b", 30))
    limits = ("--limits", "30 requests/s window", "--limits", "4 concurrency")
    with SimulatorProcess(*limits, "--latency", "0.01", "--arrival-jitter", "0.005") as simulator:
        ended = run(requests, simulator.url, *limits, "--mode", mode)
        stats = simulator.stats()
    assert (ended.status, stats["admitted"], stats["refused"]) == (0, 60, 0)
