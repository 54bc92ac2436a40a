"""What answers say of limits, on its way to the core, which learns from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, final

from headway import _core
from headway._log import fields
from headway.providers import RateLimitInfo
from headway.providers.table import ProviderTable, table_for
from headway.retry import LONGEST_TOLD, odd_words
from headway.scheduler.answers import Answer, look
from headway.scheduler.config import SchedulerMode
from headway.scheduler.failures import is_refused, wait_told_by

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headway._core import Reservation
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")


@final
class Observations:
    """Reads answers by the provider's table. For one scheduler.

    table: None goes by the client's base URL.
    Where the scheduler has a provider of the user's own, that reads them, and is believed.
    """

    def __init__(self, scheduler: Scheduler, table: ProviderTable | None) -> None:
        self._scheduler = scheduler
        self.table = table or table_for(look(scheduler.client, "base_url"))
        self._learns = scheduler.mode is not SchedulerMode.BASIC and scheduler.provider is None

    def table_of(self, answer: Answer) -> ProviderTable:
        """By which an answer is read."""
        return answer.table or self.table

    def read(self, call: Any, answer: Answer, *, failed: bool) -> None:
        """What an attempt's answer says, before its reservation ends. failed: no good one."""
        bucket = call.bucket
        bucket.note_odd(answer.oddities)
        if not self._learns:
            self._look(bucket, answer)
            return
        refused = is_refused(answer)
        if not (answer.headers or answer.body or refused or bucket.searches):
            return
        self._learn(
            bucket,
            call.record,
            self.table_of(answer),
            answer.headers,
            answer.body,
            refused=refused,
            wait=wait_told_by(answer) if refused else None,
            failed=failed,
        )

    def _look(self, bucket: Bucket, answer: Answer) -> None:
        """Counts what cannot be read, where nobody learns from it."""
        headers = answer.headers
        odd = odd_words(headers)
        # What is a limit's, in which words, nobody knows but the user's own provider.
        if self._scheduler.provider is None and (headers or answer.body):
            odd += self.table_of(answer).read(headers, body=answer.body).oddities
        bucket.note_odd(odd)

    def back_in(self, bucket: Bucket, answer: Answer) -> float | None:
        """Seconds until there is more of what a refusal says that nothing is left of.

        None where it does not say; of a limit that is kept to, which knows more; and of a `bucket`,
        which is full again by then, and has something to give long before.
        """
        if self._scheduler.provider is not None:  # which is asked when others have gone on: below
            return None
        table = self.table_of(answer)
        return self._back_in(bucket, table.read(answer.headers, body=answer.body).as_list())

    def back_by(self, bucket: Bucket, info: RateLimitInfo) -> float | None:
        """The same, by what the user's own provider makes of a refusal."""
        return self._back_in(bucket, _readings_of(info))

    def _back_in(self, bucket: Bucket, readings: list[dict[str, Any]]) -> float | None:
        kept = {
            (found["resource"], found["limit"])
            for found in _core.findings(bucket)
            if found["meter"] >= 0
        }
        resets = [
            float(reading["reset"])
            for reading in readings
            if reading.get("remaining") == 0
            and "reset" in reading
            and reading.get("shape") != "bucket"
            and (reading["resource"], reading.get("limit")) not in kept
        ]
        return min(max(resets), LONGEST_TOLD) if resets else None

    def hear(self, bucket: Bucket, reservation: Reservation, headers: Mapping[str, str]) -> None:
        """What a good answer's headers say, of which `reservation` is; before that ends."""
        by_name = {name.lower(): value for name, value in headers.items()}
        self._learn(bucket, reservation._record, self.table, by_name)

    def _learn(
        self,
        bucket: Bucket,
        record_of: Callable[[], Any],
        table: ProviderTable,
        headers: Mapping[str, str],
        body: object = None,
        *,
        refused: bool = False,
        wait: float | None = None,
        failed: bool = False,
    ) -> None:
        readings = table.read(headers, body=body)
        bucket.note_odd(readings.oddities + odd_words(headers))
        record = record_of() if len(readings) or refused or bucket.searches else None
        if record is not None:
            self._tell(bucket, record, readings, refused, wait, failed=failed)

    def told(self, bucket: Bucket, record: Any, info: RateLimitInfo) -> None:
        """What the user's own provider has made of an answer."""
        readings = _readings_of(info)
        if readings:
            self._tell(bucket, record, _core.Readings(readings))

    def _tell(
        self,
        bucket: Bucket,
        record: Any,
        readings: Any,
        refused: bool = False,
        wait: float | None = None,
        *,
        failed: bool = False,
    ) -> None:
        changed = _core.observe(bucket, record, readings, refused, wait, failed)
        bucket.searches = _core.searches(bucket)
        if not changed:
            return
        bucket._learnt()
        before = dict(bucket.stated)
        for found in _core.findings(bucket):
            if not found["given"] and not found["searched"] and found["meter"] >= 0:
                bucket.stated[found["meter"]] = found["limit"]
        if bucket.stated != before:
            bucket.restated(self._scheduler._now(), before)
        limits = [str(each) for each in bucket.limits()]
        _logger.info(
            "bucket %r: its provider's limits are %s",
            bucket.name,
            ", ".join(limits) or "none",
            extra=fields("limits_learnt", bucket=bucket.name, limits=limits),
        )


def _readings_of(info: RateLimitInfo) -> list[dict[str, Any]]:
    """As a table gives them; each field makes sense or is None."""
    readings: list[dict[str, Any]] = []
    for short, resource in (("rpm", "requests"), ("tpm", "tokens")):
        reading: dict[str, Any] = {"resource": resource}
        for name in ("limit", "remaining"):
            value = getattr(info, f"{short}_{name}")
            if value is not None:
                reading[name] = int(value)
        reset = getattr(info, f"{short}_reset")
        if reset is not None and 0 <= reset - info.timestamp <= 1e8:
            reading["reset"] = reset - info.timestamp
        if len(reading) > 1:
            readings.append(reading)
    return readings
