"""A simulated provider in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from types import TracebackType
from typing import Any, cast, final

_ANNOUNCEMENT = "listening on "


@final
class SimulatorProcess:
    """`headway simulate` with `options`, running while entered.

    Example:

        with SimulatorProcess("--limits", "500 requests/min", "--latency", "2") as simulator:
            ...  # requests to simulator.url + "/v1/chat/completions"
            assert simulator.stats()["refused"] == 0
    """

    def __init__(self, *options: str, timeout: float = 30.0) -> None:
        self._options = options
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Starts it and waits until it listens, at most `timeout` seconds."""
        command = [sys.executable, "-m", "headway.simulate", *self._options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        # A process that never says its line ends the wait by being killed.
        watchdog = threading.Timer(self._timeout, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        if not line.startswith(_ANNOUNCEMENT):
            process.kill()
            _, errors = process.communicate()
            raise RuntimeError(f"{' '.join(command)} did not start: {line}{errors}")
        self._process = process
        self.url = line[len(_ANNOUNCEMENT) :].strip()

    def stats(self, decisions: bool = False) -> dict[str, Any]:
        """What `GET /_stats` answers."""
        return cast("dict[str, Any]", self._fetch(f"/_stats?decisions={int(decisions)}", None))

    def set_limits(self, limits: list[str | dict[str, object]]) -> dict[str, Any]:
        """Changes the limits; the statistics of the stretch that ends with this."""
        return cast("dict[str, Any]", self._fetch("/_limits", json.dumps(limits).encode()))

    def stop(self) -> int:
        """Ends it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("this simulator is not running")
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=self._timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return process.returncode

    def _fetch(self, path: str, body: bytes | None) -> object:
        # Not through a proxy that the environment may name.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, body, timeout=self._timeout) as answer:
            return json.load(answer)

    def __enter__(self) -> SimulatorProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self.stop()
