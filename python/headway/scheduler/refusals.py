"""Why a provider has refused: a receipt of each answer 429, kept, counted and logged."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway._core import Limit
from headway._log import fields
from headway._secrets import redact
from headway.limiter import UNLIMITED
from headway.receipts import (
    ANOTHER_CONSUMER,
    CAPACITY,
    CHANGED,
    OURS,
    UNKNOWN,
    LimitUse,
    Receipt,
)
from headway.scheduler.answers import Answer
from headway.scheduler.failures import wait_told_by

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")

_MINUTE = 60.0
# Of an error's type or code: words, and no text that somebody has written.
_WORD = re.compile(r"[\w.-]{1,64}")
_OVERLOAD = re.compile(r"(?i)overload|capacity")
_OVERLOADED = re.compile(r"(?i)\boverloaded\b|\b(?:over|at|no|of) capacity\b")


@final
class Refusals:
    """Makes the receipts of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def note(self, call: Any, answer: Answer) -> None:
        """The attempt was refused; while its reservation is still there."""
        bucket: Bucket = call.bucket
        findings = _core.findings(bucket)
        uses = self._uses(call, answer, findings)
        verdict = _verdict(uses, answer, heard=bool(findings))
        receipt = Receipt(
            bucket=bucket.name,
            at=time(),
            verdict=verdict,
            uses=uses,
            retry_after=wait_told_by(answer),
            error=_error(answer),
        )
        bucket.receipts.append(receipt)
        bucket._explained(verdict)
        self._scheduler._verdict_counts[verdict] += 1
        first = verdict not in bucket.verdicts_logged
        bucket.verdicts_logged.add(verdict)
        _logger.log(
            logging.WARNING if first else logging.DEBUG,
            "bucket %r: %s%s",
            bucket.name,
            receipt,
            "; more of the same are logged at level debug" if first else "",
            extra=fields("refused", bucket=bucket.name, verdict=verdict),
        )

    def _uses(
        self, call: Any, answer: Answer, findings: Sequence[Mapping[str, Any]]
    ) -> tuple[LimitUse, ...]:
        bucket: Bucket = call.bucket
        began, sent = _core.own_use(bucket, call.record())
        limits = _core.limits(bucket)
        asked = dict(zip(_core.resources(bucket), call.amounts, strict=False))
        said: dict[int, Mapping[str, Any]] = {}
        others: list[LimitUse] = []
        for reading in self._readings(answer):
            meter = _meter_of(reading, limits, findings)
            if meter is not None:
                said.setdefault(meter, reading)
                continue
            name = reading["resource"]
            others.append(LimitUse(name, None, None, None, asked.get(name, 0), *_of(reading)))
        known = tuple(
            LimitUse(
                limit.resource,
                limit,
                bucket.kept_at(meter, limit, began),
                sent[meter],
                asked.get(limit.resource, 0),
                *_of(said.get(meter, {})),
            )
            for meter, limit in enumerate(limits)
            if limit.amount < UNLIMITED
        )
        return known + tuple(others)

    def _readings(self, answer: Answer) -> list[dict[str, Any]]:
        """What the answer says of limits, also where nobody learns from it."""
        table = self._scheduler._observations.table_of(answer)
        found: list[dict[str, Any]] = table.read(answer.headers, body=answer.body).as_list()
        return found


def _of(reading: Mapping[str, Any]) -> tuple[int | None, int | None, float | None]:
    return reading.get("limit"), reading.get("remaining"), reading.get("reset")


def _meter_of(
    reading: Mapping[str, Any], limits: Sequence[Limit], findings: Sequence[Mapping[str, Any]]
) -> int | None:
    """Which of the limits it tells of; None: of none of them."""
    resource, stated = reading["resource"], reading.get("limit")
    for found in findings:
        meter: int = found["meter"]
        if (found["resource"], found["limit"]) == (resource, stated) and meter >= 0:
            return meter if limits[meter].amount < UNLIMITED else None
    # A given limit that it contradicts, say. As in learning, what tells no period is of a minute.
    period = reading.get("period", _MINUTE)
    same = [
        meter
        for meter, limit in enumerate(limits)
        if limit.resource == resource and limit.per == period and limit.amount < UNLIMITED
    ]
    return same[0] if len(same) == 1 else None


def _verdict(uses: Sequence[LimitUse], answer: Answer, heard: bool) -> str:
    """heard: whether any answer has told of limits so far."""
    if answer.kind in ("spent", "not_on_plan"):
        return UNKNOWN
    if answer.kind == "capacity" or _is_overload(answer):
        return CAPACITY
    full = [use for use in uses if not use.has_room]
    for use in full:
        if use.stated is not None and use.kept is not None and use.stated < use.kept:
            return CHANGED
    for use in full:
        most = use.kept if use.stated is None else use.stated
        if use.sent is not None and most is not None and use.sent > most:
            return OURS
    told = [use for use in uses if use.remaining is not None]
    # What refuses for a limit tells of it, where anything does.
    if all(use.has_room for use in told) if told else heard:
        return CAPACITY
    return ANOTHER_CONSUMER if uses else UNKNOWN


def _fault(answer: Answer) -> Mapping[str, Any]:
    body = answer.body
    fault = body.get("error", body) if isinstance(body, Mapping) else None
    return fault if isinstance(fault, Mapping) else {}


def _error(answer: Answer) -> str | None:
    fault = _fault(answer)
    for name in ("type", "code", "status"):
        said = fault.get(name)
        if isinstance(said, str) and _WORD.fullmatch(said):
            return redact(said)
    return None


def _is_overload(answer: Answer) -> bool:
    fault = _fault(answer)
    words = (fault.get("type"), fault.get("code"), fault.get("status"))
    message = fault.get("message")
    return any(isinstance(each, str) and _OVERLOAD.search(each) for each in words) or (
        isinstance(message, str) and _OVERLOADED.search(message) is not None
    )
