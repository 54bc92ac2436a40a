"""A redis-server of the run's own, as the tests start it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))


@contextmanager
def redis_url() -> Iterator[str]:
    """Where it is, while it is: on a port of loopback."""
    from redis_server import RedisServer, free_port

    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), port=free_port())
        try:
            yield server.url
        finally:
            server.stop()
