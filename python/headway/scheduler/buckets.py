"""The buckets of one scheduler: which limits each has, and who counts for what."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any, TypeVar, final

from headway import _core
from headway._core import Limit
from headway._log import fields
from headway.backends._words import LEARNT_BESIDE
from headway.errors import BucketNotFoundError, ConfigurationError
from headway.limiter import UNLIMITED
from headway.providers import DiscoveredBucket
from headway.receipts import Receipt
from headway.scheduler.accounts import as_limit
from headway.scheduler.breaker import Breaker
from headway.scheduler.watch import Watch

if TYPE_CHECKING:
    from headway.backends._shared import Shared
    from headway.scheduler.remote import RemoteBucket, Supply
    from headway.scheduler.scheduler import Scheduler

_T = TypeVar("_T")
_logger = logging.getLogger("headway.scheduler")

MOST_BUCKETS = 10_000
"""Beyond so many, buckets that nobody uses at the moment are forgotten: names come from outside."""

MOST_RECEIPTS = 16
"""Of each bucket, so many refusals are remembered."""

_SEARCHED = " by refusals"
"""Behind the text of a learnt limit that no answer has stated."""

LearntLimits = Mapping[str, Iterable["Limit | str"]]
GivenLimits = Mapping[str, "Iterable[Limit | str] | Limit | str"] | Iterable["Limit | str"]


class Bucket(_core.BucketCore):
    """A bucket as its scheduler sees it, with what is decided in Python.

    breaker: opens it after many failures. remote: where its words are a user's own backend's.
    stated: what a limit was before the buffer ratio, by its place in `_core.limits(bucket)`.
    searches: whether a limit is being found out that is never stated; then every answer tells.
    receipts: of the last refusals. verdicts_logged: those of them that were logged aloud. watch:
    what was only watched. jitter: of the latest cool-down, from 0 to 1.
    """

    breaker: Breaker
    stated: dict[int, int]
    receipts: deque[Receipt]
    verdicts_logged: set[str]
    watch: Watch
    remote: RemoteBucket | None = None
    searches = False
    jitter = 0.0
    # When answers have changed what is stated, as of Scheduler._now, and what it was before.
    _changes: deque[tuple[int, dict[int, int]]]

    def _ended(self) -> None:
        """An attempt has ended; where the words are a remote backend's, that is to be told."""
        if self.remote is not None:
            self.remote.ended()

    def restated(self, now: int, before: dict[int, int]) -> None:
        """Answers have changed what is stated."""
        self._changes.append((now, before))

    def kept_at(self, meter: int, limit: Limit, began: int | None) -> int | None:
        """What a limit was before the buffer ratio, for a call that began then; None: not known."""
        for at, before in tuple(self._changes):
            if began is not None and at > began:
                return before.get(meter)
        return self.stated.get(meter, limit.amount)

    def theirs(self) -> list[Limit]:
        """The limits that a user's own backend was told; none where that is not who counts."""
        told = {} if self.remote is None else self.remote.limits
        return [
            Limit(told[name], resource, 60.0) for resource, name in _THEIRS.items() if name in told
        ]

    def limits(self) -> list[Limit]:
        """The limits that it has now, those left out that are unlimited."""
        return [limit for limit in _core.limits(self) if limit.amount < UNLIMITED]

    def totals(self) -> Counter[str]:
        """What it has done so far, by name."""
        done: Counter[str] = Counter({name: getattr(self, name) for name in _DONE})
        seen = self.watch.seen
        if seen is not None:
            done.update(dataclasses.asdict(seen))
        return done

    @property
    def in_use(self) -> bool:
        """Whether a request of it has not ended: one that pauses before a retry is in no queue."""
        done = self.succeeded + self.failed + self.cancelled
        return bool(self.queued or self.in_flight or self.submitted != done)

    def note_odd(self, times: int) -> None:
        """So many values of an answer cannot be read."""
        for _ in range(times):
            self._odd()

    def learnt(self) -> list[str]:
        """Those that answers have told of, as the provider states them, or refusals."""
        present = _core.limits(self)
        found = []
        for each in _core.findings(self):
            if each["given"] or each["meter"] < 0 or not each["limit"]:
                continue
            limit = present[each["meter"]]
            stated = Limit(
                each["limit"], limit.resource, limit.per, limit.shape, None, limit.anchor
            )
            found.append(f"{stated}{_SEARCHED if each['searched'] else ''}")
        return found


_DONE = ("submitted", "succeeded", "failed", "cancelled", "attempts", "oddities")
_THEIRS = {"requests": "rpm_limit", "tokens": "tpm_limit"}


def _share(amount: int, ratio: float) -> int:
    if amount == 0:
        return 0
    return min(UNLIMITED - 1, max(1, floor(amount * ratio + 1e-9)))


def _is_a_backends(limit: Limit) -> bool:
    """Whether it is one of the two that backends know: requests and tokens a minute."""
    return limit.resource in _THEIRS and limit.per == 60.0


def read_limits(given: GivenLimits | None) -> dict[str | None, list[Limit]]:
    """The given limits by bucket id; under None those for every bucket that has none of its own."""
    if given is None:
        return {}
    if isinstance(given, (str, Limit)):
        return {None: [as_limit(given, "limits")]}
    if isinstance(given, Mapping):
        return _by_bucket(given, "limits", as_limit)
    return {None: _list(given, "limits", as_limit)}


@dataclass(frozen=True)
class Learnt:
    """A limit that was learnt before. searched: refusals have shown it, and no answer stated it."""

    limit: Limit
    searched: bool

    def __str__(self) -> str:
        return f"{self.limit}{_SEARCHED if self.searched else ''}"


def read_learnt(learnt: LearntLimits | None) -> dict[str | None, list[Learnt]]:
    """What Scheduler.learnt_limits gave, perhaps by way of a JSON file."""
    if learnt is None:
        return {}
    if not isinstance(learnt, Mapping):
        raise ConfigurationError(
            f"learnt_limits {learnt!r}: must be a dict of lists of limits by bucket id"
        )
    return _by_bucket(learnt, "learnt_limits", _as_learnt)


def _as_learnt(limit: Limit | str, what: str) -> Learnt:
    searched = isinstance(limit, str) and limit.endswith(_SEARCHED)
    text = limit[: -len(_SEARCHED)] if isinstance(limit, str) and searched else limit
    return Learnt(as_limit(text, what), searched)


def _by_bucket(
    given: Mapping[str, Any], what: str, read: Callable[[Any, str], _T]
) -> dict[str | None, list[_T]]:
    return {
        _name(name, what): _list(each, f"{what} {name!r}", read) for name, each in given.items()
    }


def _name(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"{what} {name!r}: a bucket id must be a str")
    return name


def _list(
    limits: Iterable[Limit | str] | Limit | str, what: str, read: Callable[[Any, str], _T]
) -> list[_T]:
    if isinstance(limits, (str, Limit)):
        return [read(limits, what)]
    try:
        return [read(each, what) for each in limits]
    except TypeError:
        raise ConfigurationError(f"{what} {limits!r}: must be a list of limits") from None


@final
class Buckets:
    """Makes and finds them. Guarded by the GIL: each verb is a few dictionary steps.

    ratio: what part of every rate limit is used. multiplier: of every rate limit, for tests.
    learns: whether answers tell of limits. learnt: what they had told another, by bucket id.
    label: of the scheduler in metrics; None: none are kept.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: Shared,
        given: Mapping[str | None, Sequence[Limit]],
        *,
        ratio: float,
        multiplier: float,
        limited: bool,
        learns: bool,
        learnt: Mapping[str | None, Sequence[Learnt]],
        label: str | None,
        most_failures: int,
        failure_window: float,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._given = given
        self._ratio = ratio
        self._multiplier = multiplier
        self._limited = limited
        self._learns = min(1.0, ratio * multiplier) if learns else 0.0
        self._learnt = learnt
        self._label = label
        self._breaker = (most_failures, failure_window)
        self._buckets: dict[str, Bucket] = {}
        self._discovered: dict[str, DiscoveredBucket] = {}
        # What the forgotten have done. Under the lock, it goes there as they go: garbage
        # that is collected meanwhile may ask for it.
        self._gone: Counter[str] = Counter()
        self._going = threading.RLock()
        self._forget_at = MOST_BUCKETS
        self._told_unlimited = False
        self._told_unestimated = False
        for limits in given.values():
            backend.number(*(limit.resource for limit in limits))
        if learns:
            backend.number(*LEARNT_BESIDE)

    def __iter__(self) -> Any:
        return iter(list(self._buckets.values()))

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def recalls_nothing(self) -> bool:
        """Whether what was learnt before was given in vain."""
        return bool(self._learnt) and (not self._learns or self._scheduler._remote is not None)

    def get(self, bucket_id: str) -> Bucket | None:
        """The bucket, if it has been made."""
        return self._buckets.get(bucket_id)

    def find(self, bucket_id: str, provider: str, model: str) -> Bucket:
        """The bucket that the provider names for a model, made if need be.

        BucketNotFoundError where it lists others only.
        """
        bucket = self._buckets.get(bucket_id)
        if bucket is not None:
            return bucket
        if self._discovered and not (bucket_id in self._discovered or bucket_id in self._given):
            raise BucketNotFoundError(bucket_id, provider, model)
        return self.make_unlisted(bucket_id)

    def make_unlisted(self, bucket_id: str) -> Bucket:
        """The bucket, whatever the provider lists."""
        bucket = self._buckets.get(bucket_id)
        if bucket is not None:
            return bucket
        if len(self._buckets) >= self._forget_at:
            self._forget()
        bucket = self._make(bucket_id)
        return self._buckets.setdefault(bucket_id, bucket)

    def totals(self) -> Counter[str]:
        """What all have done so far, by name; those that were forgotten, too."""
        with self._going:
            done = self._gone.copy()
            for bucket in self:
                done.update(bucket.totals())
        return done

    def is_given(self, bucket_id: str) -> bool:
        """Whether limits were given for it by name."""
        return bucket_id in self._given

    def discovered(self, buckets: Mapping[str, DiscoveredBucket]) -> None:
        """What the provider says now; what was given wins, resource by resource."""
        self._discovered = dict(buckets)
        for bucket_id, bucket in self._present():
            found = self._discovered.get(bucket_id)
            if found is not None and self._limited:
                self._learn(bucket_id, bucket, found)

    def listed(self) -> dict[str, DiscoveredBucket]:
        """What the provider has said last."""
        return dict(self._discovered)

    def used_part(self, limit: Limit) -> Limit:
        """What of a limit is used: the ratio of a rate, all of a concurrency."""
        if limit.shape == "concurrency":
            return limit
        burst = None
        if limit.shape == "bucket" and limit.burst is not None and limit.burst != limit.amount:
            burst = self._part(limit.burst)
        return Limit(
            self._part(limit.amount), limit.resource, limit.per, limit.shape, burst, limit.anchor
        )

    def too_large(self, bucket: Bucket, amounts: Sequence[int]) -> tuple[Limit, int, int] | None:
        """Of a user's own backend's limits, one that never admits so much; what is wanted; its use.

        A backend is told the limit and the ratio, and keeps that part of it, as this does.
        """
        if bucket.remote is None:
            return None
        wanted = dict(zip(self._backend.resources, amounts, strict=False))
        for limit in bucket.theirs():
            admits = _share(limit.amount, self._ratio)
            if wanted[limit.resource] > admits:
                return limit, wanted[limit.resource], admits
        return None

    def forget_all(self) -> None:
        """After a fork: what was counted was the parent's."""
        self._buckets.clear()
        self._gone = Counter()
        self._going = threading.RLock()  # somebody may have held it

    def _part(self, amount: int) -> int:
        return _share(amount, self._ratio * self._multiplier)

    def _told(self, amount: int) -> int:
        """What a user's own backend is told of a limit; the ratio it is told, too."""
        return _share(amount, self._multiplier)

    def _make(self, bucket_id: str) -> Bucket:
        if not self._limited:
            words = _core.LimiterCore([], self._backend.clock, self._backend.resources)
            return self._dress(Bucket(self._scheduler, words, bucket_id, self._label), {})
        given = self._given.get(bucket_id, self._given.get(None, []))
        self._tell_unlimited(bucket_id)
        if self._scheduler._remote is not None:
            return self._make_remote(bucket_id, given, self._scheduler._remote)
        used = [self.used_part(limit) for limit in given]
        cold = self._scheduler._asks_first() if self._learns and not used else 0.0
        table = self._scheduler._observations.table
        words = self._backend.make_words(
            bucket_id, used, self._learns, cold, proportional=table.proportional
        )
        if self._scheduler.provider is not None:  # which is asked when others have gone on
            _core.read_late(words)
        self._recall(bucket_id, words)
        bucket = Bucket(self._scheduler, words, bucket_id, self._label)
        bucket.searches = _core.searches(words)
        stated = {}
        holding = _core.limits(words)
        for place, limit in enumerate(holding):
            for own, before in zip(used, given, strict=True):
                if limit == own:
                    stated[place] = before.amount
        others = [limit for limit in used if limit not in holding]
        if others:
            _logger.warning(
                "bucket %r of the backend has limits already, which hold for all who share it: %s; "
                "not %s",
                bucket_id,
                ", ".join(str(each) for each in holding if each.amount < UNLIMITED) or "none",
                ", ".join(map(str, others)),
                extra=fields("limits_differ", bucket=bucket_id),
            )
        self._dress(bucket, stated)
        found = self._discovered.get(bucket_id)
        if found is not None:
            self._learn(bucket_id, bucket, found)
        return bucket

    def _recall(self, bucket_id: str, words: Any) -> None:
        """What was learnt before holds at first, unless the words know something already."""
        recalled = self._learnt.get(bucket_id)
        if not recalled or not self._learns or _core.findings(words):
            return
        known = {limit.resource for limit in _core.limits(words) if limit.amount < UNLIMITED}
        limits = [each for each in recalled if each.limit.resource not in known]
        stated = [each.limit for each in limits if not each.searched]
        searched = next((each.limit for each in limits if each.searched), None)
        _core.recall(words, stated, self._scheduler._asks_first(), searched)

    def learnt(self) -> dict[str, list[str]]:
        """By bucket id, the limits that answers have told of; see Bucket.learnt."""
        # What was begun with, and nobody has asked for yet, is known still.
        known = {name: [str(each) for each in limits] for name, limits in self._learnt.items()}
        told = {bucket_id: bucket.learnt() for bucket_id, bucket in self._present()}
        known.update({bucket_id: limits for bucket_id, limits in told.items() if limits})
        return {name: limits for name, limits in known.items() if name is not None}

    def _tell_unlimited(self, bucket_id: str) -> None:
        """Once: a model that is in no dict of limits has none, and may just be misspelt in it."""
        names = [name for name in self._given if name is not None]
        known = bucket_id in self._given or bucket_id in self._discovered
        # A backend of the user's own may have limits for it, and what needs no model has no name.
        if not names or known or self._scheduler._remote is not None or self._told_unlimited:
            return
        if bucket_id.startswith("default_"):
            return
        self._told_unlimited = True
        _logger.warning(
            "bucket %r has no limits: they were given for %s only; more such are not logged",
            bucket_id,
            ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else ""),
            extra=fields("no_limits", bucket=bucket_id),
        )

    def first_seen(self, bucket: Bucket, metadata: Any) -> None:
        """Once: where tokens are limited, and a model's first request does not say how many."""
        said = getattr(metadata, "estimated_tokens", None), getattr(metadata, "cost", None)
        if self._told_unestimated or said != (None, None):
            return
        for limit in (*bucket.limits(), *bucket.theirs()):
            if limit.resource not in ("tokens", "input_tokens"):
                continue
            self._told_unestimated = True
            _logger.warning(
                "bucket %r: a request without estimated_tokens reserves none of '%s', which then "
                "counts only what answers say was used; more such are not logged",
                bucket.name,
                limit,
                extra=fields("no_estimate", bucket=bucket.name, limit=str(limit)),
            )
            return

    def _make_remote(self, bucket_id: str, given: Sequence[Limit], supply: Supply) -> Bucket:
        """What the backend counts, it counts; the other limits are kept here."""
        theirs = [limit for limit in given if _is_a_backends(limit)]
        own = [self.used_part(limit) for limit in given if limit not in theirs]
        backend = self._backend
        words = _core.LimiterCore(
            own, backend.clock, backend.resources, credit=("requests", "tokens")
        )
        bucket = self._dress(Bucket(self._scheduler, words, bucket_id, self._label), {})
        bucket.remote = supply.take_on(bucket, words)
        bucket.guarded = self.guards(bucket)
        for limit in theirs:
            bucket.remote.limits[_THEIRS[limit.resource]] = self._told(limit.amount)
        bucket.remote.given = frozenset(bucket.remote.limits)
        found = self._discovered.get(bucket_id)
        if found is not None:
            self._learn(bucket_id, bucket, found)
        return bucket

    def _dress(self, bucket: Bucket, stated: dict[int, int]) -> Bucket:
        bucket.breaker = Breaker(*self._breaker)
        bucket.stated = stated
        bucket.receipts = deque(maxlen=MOST_RECEIPTS)
        bucket.verdicts_logged = set()
        bucket.watch = Watch()
        bucket._changes = deque(maxlen=MOST_RECEIPTS)
        bucket.guarded = self.guards(bucket)
        return bucket

    def guards(self, bucket: Bucket) -> bool:
        """Whether all that becomes of its calls is looked at, also while its breaker is closed."""
        return bucket.remote is not None or self._scheduler._life.choice.times_calls

    def _learn(self, bucket_id: str, bucket: Bucket, found: DiscoveredBucket) -> None:
        if bucket.remote is not None:
            for name, said in (("rpm_limit", found.rpm_limit), ("tpm_limit", found.tpm_limit)):
                if said is not None and name not in bucket.remote.given:
                    bucket.remote.limits[name] = self._told(said)
            return
        rpm = None if found.rpm_limit is None else self._part(found.rpm_limit)
        tpm = None if found.tpm_limit is None else self._part(found.tpm_limit)
        self._backend.set_limits(bucket_id, rpm, tpm)
        for place, limit in enumerate(_core.limits(bucket)):
            said = {"requests": found.rpm_limit, "tokens": found.tpm_limit}.get(limit.resource)
            if said is not None and place not in bucket.stated and limit.amount == self._part(said):
                bucket.stated[place] = said

    def _present(self) -> list[tuple[str, Bucket]]:
        """Those there are now, by name, while other threads make and forget some.

        By keys: pairs are allocated one by one, which may collect garbage, and let others go on.
        """
        found = ((name, self._buckets.get(name)) for name in list(self._buckets))
        return [(name, bucket) for name, bucket in found if bucket is not None]

    def _forget(self) -> None:
        busy = {name for name, bucket in self._present() if bucket.in_use}
        for name in self._backend.forget_idle(len(busy)):
            if name not in busy:
                self._let_go(name)
        for name in list(self._buckets):
            if name not in busy and self._backend.words(name) is None:
                self._let_go(name)
        self._forget_at = max(MOST_BUCKETS, 2 * len(self._buckets))
        self._scheduler._forget_routes()
        _logger.info(
            "forgot the buckets that nobody uses; %d are left",
            len(self._buckets),
            extra=fields("buckets_forgotten", left=len(self._buckets)),
        )

    def _let_go(self, name: str) -> None:
        with self._going:
            bucket = self._buckets.pop(name, None)
            if bucket is not None:
                self._gone.update(bucket.totals())
