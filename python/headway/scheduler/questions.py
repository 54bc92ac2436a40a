"""What a scheduler asks of its users' objects: its provider, its classifier, its breaker."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

from headway._log import fields
from headway.errors import ProviderError, RateLimiterError, TooManyFailedRequestsError
from headway.providers import DiscoveredBucket, ProviderInterface, RateLimitInfo
from headway.scheduler import _rules as rules
from headway.scheduler.answers import Answer, look
from headway.scheduler.config import SchedulerMode
from headway.scheduler.user_code import UserCode, method_of, told

if TYPE_CHECKING:
    from headway.scheduler.buckets import Bucket
    from headway.scheduler.scheduler import Scheduler

_logger = logging.getLogger("headway.scheduler")


_MOST_READINGS = 64
"""Answers that the provider is reading at once."""


@final
class Questions:
    """Asks them, and looks whether the answers make sense. For one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._failed_refreshes = 0
        self._named: tuple[object, str] | None = None

    def provider_name(self) -> str:
        """What the provider calls itself, or what it is. Asked once: its name may be a property."""
        provider = self._scheduler.provider
        if provider is None:
            return "none"
        if self._named is None or self._named[0] is not provider:
            self._named = (provider, name_of(provider, self._scheduler._user_code))
        return self._named[1]

    async def classify(self, request: dict[str, Any]) -> Any:
        """What the classifier makes of a request that is a dict."""
        if self._scheduler.classifier is None:
            raise TypeError("metadata is a dict, and the scheduler has no classifier")
        classify = method_of(self._scheduler.classifier, "classify")
        metadata = await self._scheduler._user_code.call(self._classify, classify, request)
        for name in ("model_id", "resource_type"):
            if not isinstance(look(metadata, name), str):
                rule = "must be a RequestMetadata"
                raise self._scheduler._user_code.nonsense(self._classify, metadata, rule)
        return metadata

    def check_classified(self, bucket: Bucket, metadata: Any) -> None:
        """ProviderError where the rest of what the classifier has made makes no sense either."""
        try:
            self._scheduler._estimate(bucket, metadata, None)
        except Exception as error:  # contained: it says what is wrong
            user_code = self._scheduler._user_code
            raise user_code.nonsense(self._classify, metadata, told(error)) from error

    @property
    def _classify(self) -> str:
        return f"classify of classifier {type(self._scheduler.classifier).__name__!r}"

    async def ask_breaker(self, breaker: Any, metadata: Any) -> None:
        """Raises TooManyFailedRequestsError where the user's own breaker does not let it go."""
        origin = f"can_execute of callback {type(breaker).__name__!r}"
        try:
            can_execute = method_of(breaker, "can_execute")
            allowed = await self._scheduler._user_code.call(origin, can_execute, metadata.model_id)
        except TooManyFailedRequestsError:  # its own way to say no
            self._scheduler._events["circuit_breaker_rejections"] += 1
            raise
        except RateLimiterError:
            return  # one that does not work protects from nothing
        if not allowed:
            self._scheduler._events["circuit_breaker_rejections"] += 1
            raise TooManyFailedRequestsError("Circuit breaker active")

    def reads(self, answer: Answer) -> bool:
        """Whether the provider is asked what it makes of it."""
        if self._scheduler.provider is None or self._scheduler.mode is SchedulerMode.BASIC:
            return False
        return answer.status is not None or bool(answer.headers)

    async def read(self, answer: Answer, later: bool = False) -> RateLimitInfo | None:
        """What the provider makes of an answer; None where there is none, or it makes nothing.

        later: nothing waits on it, and so it keeps no thread from those that something waits on.
        """
        if not self.reads(answer):
            return None
        provider = self._scheduler.provider
        origin = f"parse_rate_limit_response of provider {self.provider_name()!r}"
        body = answer.body if isinstance(answer.body, dict) else None
        try:
            info = await self._scheduler._user_code.call(
                origin,
                method_of(provider, "parse_rate_limit_response"),
                dict(answer.headers),
                body,
                answer.status,
                patience=5.0,
                apart=" later" if later else "",
            )
            if not isinstance(info, RateLimitInfo):
                raise self._scheduler._user_code.nonsense(origin, info, "must be a RateLimitInfo")
        except RateLimiterError:  # logged and counted
            return None
        info = _sound(info, origin, self._scheduler._user_code)
        if answer.call is not None:
            call, record = answer.call
            if record is not None:
                self._scheduler._observations.told(call.bucket, record, info)
            self._scheduler._verdicts.hold_up(call, answer, info)
        return info

    def read_later(self, answer: Answer) -> None:
        """The same among the chores, for an answer that nothing waits on.

        Where the provider is slower than its answers come, those in between are left out.
        """
        if not self.reads(answer):
            return
        if self._scheduler._chores.count >= _MOST_READINGS:
            self._scheduler._events["answers_not_read"] += 1
            return
        self._scheduler._chores.start(lambda: self.read(answer, later=True), ends=True)

    async def refresh(self, force: bool) -> bool:
        """Asks the provider for its limits; whether it gave any that make sense.

        Without force, which is at start, ProviderError where any make none and there is to be no
        going on with what is known.
        """
        provider = self._scheduler.provider
        assert provider is not None
        origin = f"discover_limits of provider {self.provider_name()!r}"
        good: dict[str, DiscoveredBucket] | None = None
        wrong: RateLimiterError | None
        try:
            good, wrong = await ask_limits(
                self._scheduler._user_code,
                provider,
                self.provider_name(),
                self._scheduler._buckets.listed(),
                force=force,
            )
        except RateLimiterError as error:  # logged and counted where it came from
            wrong = error
        if (
            wrong is not None
            and not force
            and not self._scheduler.config.enable_graceful_degradation
        ):
            raise ProviderError(
                f"{origin} failed at start, and enable_graceful_degradation is off: {told(wrong)}"
            ) from (wrong.__cause__ or wrong)
        if good is None:
            self._refresh_failed(origin)
            return False
        self._scheduler._buckets.discovered(good)
        self._failed_refreshes = 0
        return True

    def _refresh_failed(self, origin: str) -> None:
        self._failed_refreshes += 1
        if self._failed_refreshes == self._scheduler.config.max_consecutive_failures:
            _logger.error(
                "provider %r has failed %d times in a row; requests go on with what is known",
                self.provider_name(),
                self._failed_refreshes,
                extra=fields(
                    "provider_keeps_failing", origin=origin, failures=self._failed_refreshes
                ),
            )

    async def keep_refreshing(self) -> None:
        """Asks it anew now and then; after a failure soon, then ever later."""
        while True:
            interval = self._scheduler.config.health_check_interval
            if self._failed_refreshes:
                interval = min(interval, self._scheduler._verdicts.pause(self._failed_refreshes))
            await asyncio.sleep(interval)
            try:
                await self.refresh(force=True)
            except Exception as error:  # contained: else nobody would ask any more
                origin = f"refresh of provider {self.provider_name()!r}"
                self._scheduler._user_code.note(origin, error)
                self._refresh_failed(origin)


def name_of(provider: ProviderInterface, user_code: UserCode) -> str:
    """What it calls itself, or what it is."""
    name = user_code.call_here("name of provider", lambda: provider.name)
    return name if isinstance(name, str) else type(provider).__name__


async def ask_limits(
    user_code: UserCode,
    provider: ProviderInterface,
    name: str,
    earlier: Mapping[str, DiscoveredBucket],
    *,
    force: bool,
    patience: float | None = None,
) -> tuple[dict[str, DiscoveredBucket], ProviderError | None]:
    """The buckets that it lists; and what is wrong with the first of them that makes no sense.

    Such a one has the limits that `earlier` has for it, or none.

    RateLimiterError where it fails, or gives none at all, which has been logged and counted.
    """
    origin = f"discover_limits of provider {name!r}"
    call = user_code.call if patience is None else partial(user_code.call, patience=patience)
    given = await call(origin, method_of(provider, "discover_limits"), force, 30.0)
    return _checked(given, origin, user_code, earlier)


def _sound(info: RateLimitInfo, origin: str, user_code: UserCode) -> RateLimitInfo:
    """A copy with what of it makes sense; what does not is named and left out."""
    good: dict[str, Any] = {}
    wrong: dict[str, Any] = {}
    for each in dataclasses.fields(RateLimitInfo):
        try:
            value = getattr(info, each.name)
        except Exception as error:  # a property of a subclass
            user_code.note(origin, error)
            continue
        rule, least, most = _FIELDS[each.name]
        if value is None or (rule(value) and least <= value <= most):
            good[each.name] = value
        else:
            wrong[each.name] = value
    if wrong:
        user_code.nonsense(
            origin,
            wrong,
            "limits and what remains must be None or from 0 to 2**53, times None or seconds, "
            "is_rate_limited a bool",
        )
    if good.get("timestamp") is None:
        good.pop("timestamp", None)
    good["is_rate_limited"] = good.get("is_rate_limited") or False
    return RateLimitInfo(**good)


_FIELDS: dict[str, tuple[Callable[[object], bool], float, float]] = {
    **{
        f"{short}_{name}": (rules.is_number, 0, rules.MOST_WHOLE)
        for short in ("rpm", "tpm")
        for name in ("limit", "remaining")
    },
    **dict.fromkeys(("rpm_reset", "tpm_reset", "timestamp"), (rules.is_number, 0, 1e12)),
    "retry_after": (rules.is_number, 0, rules.MOST),
    "is_rate_limited": (lambda value: isinstance(value, bool), 0, 1),
}

_UNLIMITED = "until it gives good ones, requests go by given and earlier limits, or without any"
_NO_BUCKETS = f"must be a dict of DiscoveredBucket by bucket id; {_UNLIMITED}"
_NO_LIMITS = f"limits must be None or whole numbers from 0 to 2**53; {_UNLIMITED}"
_MISSING = object()


def _checked(
    given: Any, origin: str, user_code: UserCode, earlier: Mapping[str, DiscoveredBucket]
) -> tuple[dict[str, DiscoveredBucket], ProviderError | None]:
    if not isinstance(given, Mapping):
        raise user_code.nonsense(origin, given, _NO_BUCKETS)
    good: dict[str, DiscoveredBucket] = {}
    left_out: dict[str, DiscoveredBucket] = {}
    wrong: ProviderError | None = None
    try:
        items = list(given.items())
    except Exception as error:  # it is a dict in name only
        user_code.note(origin, error)
        raise ProviderError(f"{origin} gave what cannot be read") from error
    for name, bucket in items:
        limits = (_limit_of(bucket, "rpm_limit"), _limit_of(bucket, "tpm_limit"))
        if not isinstance(name, str) or not all(_is_limit(limit) for limit in limits):
            shaped = isinstance(name, str) and all(limit is not _MISSING for limit in limits)
            rule = _NO_LIMITS if shaped else _NO_BUCKETS
            nonsense = user_code.nonsense(origin, {name: bucket}, rule)
            wrong = wrong or nonsense
            if isinstance(name, str):
                left_out[name] = earlier.get(name, DiscoveredBucket(name))
            continue
        left = (_limit_of(bucket, "rpm_remaining"), _limit_of(bucket, "tpm_remaining"))
        # Copied: what is read again must be what was looked at.
        good[name] = DiscoveredBucket(
            name, *limits, *(each if _is_limit(each) else None for each in left)
        )
    # Listed all the same, where anything is.
    return {**left_out, **good} if good else good, wrong


def _limit_of(bucket: object, name: str) -> Any:
    try:
        return getattr(bucket, name, _MISSING)
    except Exception:  # a property of somebody else's object
        return _MISSING


def _is_limit(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53
