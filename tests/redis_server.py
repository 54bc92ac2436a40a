"""A real redis-server of a test's own: on a socket in its folder, or a port of loopback."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path


class RedisServer:
    """Started when made; `stop` ends it, `start` begins it anew with what it had saved."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.folder = folder
        self.port = port
        self.socket = folder / "redis.sock"
        self._options: Sequence[str] = options
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "redis-server is missing: apt-get install redis-server"
        command = [
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--dir", str(self.folder)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self._options,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # What it says differs by version, and with a port there are two of them.
        where = r"(?: tcp)?\s*$" if self.port else r" (?:at |unix)"
        ready = re.compile(f"ready to accept connections{where}", re.IGNORECASE)
        said = []
        for line in process.stdout:
            said.append(line)
            if ready.search(line):
                break
        else:
            raise RuntimeError(f"redis-server has ended: {''.join(said)}")
        self._process = process

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None

    def kill(self) -> None:
        """As if its machine had lost its power."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
