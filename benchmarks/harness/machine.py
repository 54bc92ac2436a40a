"""The machine that measured, and how busy it was."""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import final

PACKAGES = (
    "headway",
    "httpx",
    "openai",
    "adaptive-rate-limiter",
    "aiolimiter",
    "asynciolimiter",
    "chat-limiter",
    "limits",
    "pyrate-limiter",
    "tenacity",
    "throttled-py",
    "token-throttle",
)


def describe() -> dict[str, object]:
    """What one has to know beside the figures."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": sys.version,
        "load_before": os.getloadavg(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


@final
class CpuWatch:
    """How busy all processors are while entered, and how long somebody waited for one."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._began = (0.0, 0.0)
        self._pressure = 0.0

    def report(self) -> dict[str, float]:
        """Shares of one: busy on average, in the busiest second; with somebody waiting."""
        busy = self._shares or [0.0]
        return {
            "cpu_busy": sum(busy) / len(busy),
            "cpu_busy_worst_second": max(busy),
            "cpu_waited_for": self._pressure,
        }

    def __enter__(self) -> CpuWatch:
        self._began = (time.monotonic(), _stalled())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        began, stalled = self._began
        self._pressure = (_stalled() - stalled) / (time.monotonic() - began)

    def _watch(self) -> None:
        before = _ticks()
        while not self._stop.wait(1.0):
            now = _ticks()
            total = sum(now) - sum(before)
            # The fourth and fifth are idle time, alone and with a disk at work.
            idle = sum(now[3:5]) - sum(before[3:5])
            self._shares.append(1 - idle / total if total else 0.0)
            before = now


def _ticks() -> list[int]:
    return [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _stalled() -> float:
    """Seconds in which some task has waited for a processor, where the kernel counts them."""
    try:
        found = re.search(r"some .*total=(\d+)", Path("/proc/pressure/cpu").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1e6 if found else 0.0


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return platform.processor()
    return found[1] if found else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
