"""What holds of every test: whatever the package logs in it, programs can tell what it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator

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
