"""Log records: each bears an event and fields for programs, all of them documented."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headway
from headway import RateLimiterConfig, RequestMetadata, create_scheduler
from headway._log import fields
from headway.scheduler.user_code import UserCode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def calls_of_loggers() -> Iterator[tuple[str, ast.Call]]:
    """Where each is, and the call."""
    root = Path(headway.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) == "_logger" and node.func.attr in LEVELS:
                yield f"{path.relative_to(root)}:{node.lineno}", node


def in_code() -> dict[str, set[str]]:
    """By event, the other fields that records of it have."""
    found: dict[str, set[str]] = {}
    for where, call in calls_of_loggers():
        extra = next((each.value for each in call.keywords if each.arg == "extra"), None)
        assert isinstance(extra, ast.Call), f"{where} says nothing to programs"
        assert ast.unparse(extra.func) == "fields", where
        (event,) = extra.args
        assert isinstance(event, ast.Constant), where
        assert event.value not in found, f"{where}: an event has one meaning"
        found[event.value] = {each.arg for each in extra.keywords if each.arg is not None}
    return found


def on_the_page() -> dict[str, set[str]]:
    section = PAGE.read_text().partition("\n## Logs\n")[2]
    rows = re.findall(r"^\|(?:[^|]*\|){3} `(\w+)` \|([^|]*)\|$", section, re.MULTILINE)
    # What a cell says behind a colon are a field's values.
    return {event: set(re.findall(r"`(\w+)`", names.partition(":")[0])) for event, names in rows}


def test_every_event_and_its_fields_are_on_the_page_of_logs() -> None:
    assert len(in_code()) > 15
    assert in_code() == on_the_page()


def test_no_field_is_an_attribute_that_records_have_anyway() -> None:
    logger = logging.getLogger("headway")
    for event, names in in_code().items():
        extra = fields(event, **dict.fromkeys(names, 1))
        assert set(extra) == {"headway_event", *(f"headway_{name}" for name in names)}
        # KeyError where a name is taken.
        record = logger.makeRecord("headway", logging.WARNING, "", 0, "", (), None, extra=extra)
        assert vars(record)["headway_event"] == event


def of(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name.removeprefix("headway_"): value
        for name, value in vars(record).items()
        if name.startswith("headway_")
    }


def test_of_code_that_raised_they_tell_whose_and_what_but_not_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    UserCode(lambda whose: None).note("ask of provider 'p'", ValueError("key k"))
    (record,) = caplog.records
    assert of(record) == {
        "event": "user_code_raised",
        "origin": "ask of provider 'p'",
        "error": "ValueError",
    }


def test_of_a_bucket_in_trouble_they_tell_which_and_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failed(Exception):
        def __init__(self, status: int) -> None:
            self.status_code = status
            self.headers = {"Retry-After": "0"}

    async def run() -> None:
        statuses = [429, 429, 503, 200]

        async def call() -> None:
            if (status := statuses.pop(0)) != 200:
                raise Failed(status)

        config = RateLimiterConfig(max_failures=1, max_backoff=0.001)
        async with create_scheduler(None, config=config) as scheduler:
            with pytest.raises(Failed):
                await scheduler.submit_request(RequestMetadata("r", "m", "text"), call)

    with caplog.at_level(logging.DEBUG, "headway"):
        asyncio.run(run())
    refused = {"event": "refused", "bucket": "m", "verdict": "unknown"}
    told = [(each.levelname, of(each)) for each in caplog.records if each.name != "asyncio"]
    assert told == [
        ("WARNING", refused),
        ("DEBUG", refused),
        ("WARNING", {"event": "breaker_opened", "bucket": "m"}),
    ]
