"""What one run has learnt of limits, for the next one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress

from headway.scheduler.buckets import read_learnt


def read(path: str) -> dict[str, list[str]]:
    """The texts of limits in the file, by bucket; none where there is no file.

    ValueError where it holds anything else, OSError where it cannot be read.
    """
    if not os.path.exists(path):
        return {}
    try:
        if not os.path.isfile(path):  # what writes replaces it
            raise ValueError("must be a regular file")
        with open(path, encoding="utf-8") as file:
            found = read_learnt(json.loads(file.read() or "{}"))
    except (ValueError, RecursionError) as error:  # of UTF-8, JSON, limits
        raise ValueError(f"--learnt {path}: {error}") from error
    return {str(bucket): [str(limit) for limit in limits] for bucket, limits in found.items()}


def write(path: str, limits: Mapping[str, Sequence[str]]) -> None:
    """Replaces the file, whole or not at all. OSError where it cannot."""
    path = os.path.realpath(path)
    mode = os.stat(path).st_mode if os.path.exists(path) else None
    handle, beside = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".headway-")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(limits, file, indent=2)
            file.write("\n")
        if mode is not None:
            os.chmod(beside, mode & 0o777)
        os.replace(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise
