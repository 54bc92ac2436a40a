"""`headway run` on a terminal, and where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from pathlib import Path

from running import COMMAND, environment, write_requests

from headway.simulate import SimulatorProcess

LIMITS = ("--limits", "20 requests/s bucket burst 1")


def run_on_terminal(requests: Path, url: str, columns: int) -> tuple[int, str, str]:
    """The exit code, what the terminal showed as stderr, and stdout."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    out = requests.with_name("out.jsonl")
    process = subprocess.Popen(
        [*COMMAND, str(requests), "--out", str(out), "--base-url", url, *LIMITS],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment(),
    )
    os.close(follower)
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # how Linux says that nobody has the other end open any more
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    stdout, _ = process.communicate(timeout=60)
    reader.join()
    os.close(leader)
    return process.returncode, shown.decode(), stdout.decode()


def test_a_terminal_sees_a_bar_that_grows_and_is_gone_at_the_end(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 40)
    with requests.open("a") as file:
        file.write("broken\n")
    with SimulatorProcess("--latency", "0.01") as simulator:
        status, shown, stdout = run_on_terminal(requests, simulator.url, 100)
    assert status == 1
    pictures = shown.split("\r\x1b[K")
    bars = [re.match(r"\[(#*)(\.*)\] +(\d+)%  (\d+) of 41, \d+ in flight", p) for p in pictures]
    found = [bar for bar in bars if bar is not None]
    # Five a second, for two seconds.
    assert 5 <= len(found) <= 20
    assert all(len(bar[1]) + len(bar[2]) == 24 for bar in found)
    shares = [int(bar[3]) for bar in found]
    assert shares == sorted(shares)
    assert shares[-1] > 50
    assert re.search(r"about \d:\d\d left", shown)
    # What is said is not torn by the bar, and the bar is wiped at the end.
    assert "headway run: broken line 41: not JSON: Expecting value at character 1\r\n" in pictures
    assert pictures[-1] == ""
    assert "requests" in stdout
    assert "\x1b" not in stdout


def test_a_narrow_terminal_sees_no_line_that_would_wrap(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 10)
    with SimulatorProcess("--latency", "0.01") as simulator:
        status, shown, _ = run_on_terminal(requests, simulator.url, 30)
    assert status == 0
    assert all(len(picture) < 30 for picture in shown.split("\r\x1b[K"))


def test_where_there_is_no_terminal_a_short_run_is_silent(tmp_path: Path) -> None:
    requests = write_requests(tmp_path / "requests.jsonl", 10)
    out = tmp_path / "out.jsonl"
    with SimulatorProcess("--latency", "0.01") as simulator:
        ended = subprocess.run(
            [*COMMAND, str(requests), "--out", str(out), "--base-url", simulator.url, *LIMITS],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\r" not in ended.stdout
