"""A real HTTP server on loopback, for answers that the simulator does not give."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import Self

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A real server on loopback, that answers as `say(number, path, body)` says."""

    def __init__(self, say: Callable[[int, str, bytes], Answer]) -> None:
        self.asked: list[str] = []
        outer = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                with lock:
                    outer.asked.append(self.path)
                    number = len(outer.asked)
                status, headers, content = say(number, self.path, body)
                with contextlib.suppress(OSError):  # who does not wait for it has gone
                    self.send_response(status)
                    for name, value in {"content-length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(status: int, body: object = None, **headers: str) -> Answer:
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json", **found}, json.dumps(body).encode()
