"""What holds of every test: whatever the package logs, programs can tell what it is; and forks."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator

import pytest


class _Unnamed(logging.Handler):
    """Keeps the messages of records that bear no event."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "headway_event", None):
            self.found.append(record.getMessage())


@pytest.fixture(autouse=True)
def _whatever_is_logged_bears_its_event() -> Iterator[None]:
    logger, unnamed = logging.getLogger("headway"), _Unnamed()
    logger.addHandler(unnamed)
    yield
    logger.removeHandler(unnamed)
    assert unnamed.found == []


class Child:
    """A fork of this process that does `work`, ends with what that gives, and cannot hang."""

    def __init__(self, work: Callable[[], int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
            self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                faulthandler.register(signal.SIGALRM, chain=True)
                signal.alarm(60)
                status = work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def status(self) -> int:
        """Waits for its end. 70: it has raised; -14: it hung, and where is in the output."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def fork() -> type[Child]:
    """A function that forks: `fork(work).status()`."""
    return Child
