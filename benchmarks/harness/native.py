"""Builds the floors that are written in C, with the compiler that this Python names."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Protocol, cast

from harness.options import Options

_SOURCE = Path(__file__).parent.parent / "native" / "floor.c"


class Word(Protocol):
    """One atomic word with the body of `try_acquire`."""

    def try_acquire(self, amount: int, /) -> bool: ...


class Ticker(Protocol):
    """A thread that writes to a descriptor at given instants."""

    def join(self) -> None: ...


class Floor(Protocol):
    """The built module."""

    def Word(self, step: int, tolerance: int, /) -> Word: ...
    def Ticker(self, fd: int, start: int, step: int, count: int, /) -> Ticker: ...


def build_floor(options: Options) -> Path:
    """The built module's file, made if it is missing or older than its source."""
    target = options.build / f"headway_floor{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not target.exists() or target.stat().st_mtime < _SOURCE.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or "cc"
        subprocess.run(
            [
                *shlex.split(compiler),
                *("-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra"),
                f"-I{sysconfig.get_path('include')}",
                f"-I{sysconfig.get_path('platinclude')}",
                *(str(_SOURCE), "-o", str(target)),
            ],
            check=True,
        )
    return target


def load_floor(path: Path) -> Floor:
    """The module in that file."""
    spec = importlib.util.spec_from_file_location("headway_floor", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Floor", module)
