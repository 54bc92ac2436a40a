"""Writes results: one JSON object a line, as OpenAI's batch output has them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, final


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: an answer (`status`, `body`), or else an `error` (code, message).

    latency: seconds from sending the request until its answer's head was there, where there is one.
    may_pass: whether another attempt may do better. headers: of an answer that is a failure.
    """

    status: int | None = None
    request_id: str = ""
    body: object = None
    error: tuple[str, str] | None = None
    latency: float | None = None
    may_pass: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether the provider did what was asked."""
        return self.status is not None and 200 <= self.status <= 299

    @property
    def why(self) -> str:
        """In a word or two, what became of it."""
        return f"status {self.status}" if self.error is None else self.error[0]


@final
class Results:
    """The file of results. Each is there, whole, as soon as `write` returns.

    overwrite: replaces a file that exists, which is FileExistsError otherwise.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = path
        # Without a buffer: what cannot be written is an error now, and not once more when closing.
        mode = "wb" if overwrite else "xb"
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 - closed by close()
        # Unique among runs, whose results may be put together.
        self._prefix = f"batch_req_{secrets.token_hex(8)}"
        self._numbers = count(1)

    def write(self, custom_id: str, outcome: Outcome) -> None:
        """Appends one result. OSError where the file cannot take it."""
        response: dict[str, Any] | None = None
        if outcome.status is not None:
            response = {
                "status_code": outcome.status,
                "request_id": outcome.request_id,
                "body": outcome.body,
            }
        error = None
        if outcome.error is not None:
            error = dict(zip(("code", "message"), outcome.error, strict=True))
        result = {
            "id": f"{self._prefix}{next(self._numbers):08x}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        rest = memoryview(json.dumps(result).encode() + b"\n")
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def same_file(one: str, other: str) -> bool:
    """Whether both paths lead to one file that exists."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
