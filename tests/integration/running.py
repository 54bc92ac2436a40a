"""`headway run` in a process of its own, for the tests of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "sk-a-secret-that-nobody-may-see"
COMMAND = [sys.executable, "-m", "headway.cli.main", "run"]
CHAT = "/v1/chat/completions"


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    """A request of two tokens, unless `body` says otherwise."""
    message = {"role": "user", "content": "hello"}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "max_tokens": 2, "messages": [message], **body},
    }


def write_requests(path: Path, number: int) -> Path:
    """A file of that many requests, named r-0, r-1, …"""
    return write_lines(path, [request(f"r-{i}") for i in range(number)])


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """A file of these requests."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def environment(**changed: str) -> dict[str, str]:
    """This process's environment, with a key and without proxies."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, "OPENAI_API_KEY": KEY, **changed}


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    status: int
    stdout: str
    stderr: str
    out: Path
    summary_path: Path

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results, in the order in which they were written."""
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    @property
    def by_id(self) -> dict[str, dict[str, Any]]:
        """The results by custom_id, each of which is there once."""
        results = self.results
        found = {result["custom_id"]: result for result in results}
        assert len(found) == len(results)
        return found

    @property
    def summary(self) -> dict[str, Any]:
        """What --summary wrote."""
        found: dict[str, Any] = json.loads(self.summary_path.read_text())
        return found


def run(requests: Path, base_url: str, *options: str, env: dict[str, str] | None = None) -> Ended:
    """Runs it to its end; results and summary go beside `requests`."""
    out = requests.with_name("out.jsonl")
    summary = requests.with_name("summary.json")
    files = ["--out", str(out), "--summary", str(summary)]
    ended = subprocess.run(
        [*COMMAND, str(requests), "--base-url", base_url, *files, *options],
        capture_output=True,
        text=True,
        env=environment() if env is None else env,
        timeout=110,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr, out, summary)
