"""The words of a backend in memory: what schedulers share, and how limits and headers move them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headway._core import Limit, LimiterCore, ManualClock
from headway.backends import _view
from headway.backends._fading import Fading, copied
from headway.backends._remembered import Remembered
from headway.backends._reservations import Reservations
from headway.backends._words import KeyWords, WordsByKey
from headway.errors import ConfigurationError

if TYPE_CHECKING:
    from headway.limiter import Explanation

RESOURCES = {"requests": "rpm", "tokens": "tpm"}


class Shared(Remembered):
    """What a scheduler and the backend's own methods have in common, where words are the core's."""

    _shares = False
    """Whether limits that are given are counted elsewhere, for several processes."""

    def __init__(
        self, namespace: str, key_ttl: float, released_ttl: float, clock: ManualClock | None
    ) -> None:
        super().__init__(namespace, clock)
        self._words = WordsByKey(clock, key_ttl)
        self._held = Reservations(released_ttl)
        self._states: Fading[str, dict[str, Any]] = Fading(key_ttl)

    # The words. Schedulers use these five: what they admit and what is reserved here is one count.

    @property
    def resources(self) -> tuple[str, ...]:
        """The numbering of resources, which only grows: requests, tokens, and what was added."""
        with self._lock:
            return self._words.resources

    @property
    def clock(self) -> ManualClock | None:
        """What its words count by; None is the real clock."""
        return self._words.clock

    def after_fork(self) -> None:
        """For schedulers, in a forked child: what was in use was the parent's."""
        with self._lock:
            self._words.clear()

    def number(self, *resources: str) -> None:
        """Appends those that have no number yet; words made before do not know of them."""
        with self._lock:
            self._words.number(resources)

    def words(self, key: str) -> LimiterCore | None:
        """The words of a key, if there are some."""
        with self._lock:
            return self._words.get(key, self._now())

    def make_words(
        self,
        key: str,
        limits: Sequence[Limit],
        learns: float = 0.0,
        cold: float = 0.0,
        *,
        proportional: bool = False,
    ) -> LimiterCore:
        """The words of a key; made with these limits if there are none yet.

        For requests and tokens, where `limits` has none, a limit per minute is added at the end
        that is unlimited until one is learnt. learns: what part of a limit is used that answers
        tell of; 0: they are not listened to. cold: where nothing is known, one goes alone
        until its answer has come, or for so many seconds. proportional: whether what is owed is
        scaled when an answer tells of another limit.
        """
        with self._lock:
            return self._make(key, self._now(), limits, learns, cold, proportional=proportional)

    def set_limits(self, key: str, rpm: int | None, tpm: int | None) -> None:
        """Changes the limits per minute of a key, but none that was given to `make_words`.

        None changes nothing, and nor does a key that is not known.
        """
        with self._lock:
            now = self._now()
            words = self._words.get(key, now)
            for resource, amount in (("requests", rpm), ("tokens", tpm)):
                if words is not None and amount is not None:
                    words.learn(resource, amount, now)

    def forget_idle(self, keep: int) -> list[str]:
        """Of more than `keep` keys, drops idle ones, least recently used first; their names.

        Idle: nothing used, nobody waiting, no reservation of this backend's out.
        """
        with self._lock:
            self._held.expire(self._now())
            gone = self._words.forget_idle(keep, self._held.is_open)
            for key in gone:
                self._states.drop(key)
            return gone

    def _explained(self, words: LimiterCore, said: Explanation) -> Explanation:
        """With what is known elsewhere of limits that are shared with other processes."""
        return said

    # With the lock held.

    def _make(
        self,
        key: str,
        now: float,
        limits: Sequence[Limit] = (),
        learns: float = 0.0,
        cold: float = 0.0,
        *,
        proportional: bool = False,
    ) -> KeyWords:
        words = self._words.make(
            key, limits, now, learns, cold, proportional=proportional, shares=self._shares
        )
        if words.shared and words.tells is None:
            self._share(words, key)
        words.hidden = False
        words.updated = words.updated or self._wall()
        return words

    def _share(self, words: KeyWords, key: str) -> None:
        """New words, some of whose limits are counted elsewhere, are made known there."""

    def _give_limits(
        self, words: KeyWords, limits: Mapping[str, int | None], margin: float, now: float
    ) -> None:
        scaled = limits_of(limits, margin)
        given = (limits.get("rpm_limit"), limits.get("tpm_limit"), margin)
        if given == words.given:
            return  # what was learnt since stays
        words.given, words.margin = given, margin
        for amount, name in scaled:
            words.learn(name, amount, now)

    def _observe(
        self, words: KeyWords, parsed: Mapping[str, Any], out: tuple[int, int], now: float
    ) -> None:
        for (name, short), younger in zip(RESOURCES.items(), out, strict=True):
            limit, remaining = parsed.get(f"{short}_limit"), parsed.get(f"{short}_remaining")
            if limit is not None:
                words.learn(name, _view.scaled(limit, words.margin), now)
            if remaining is None or name in words.shared:
                continue  # what other processes have used is counted already
            ours = words.limit(name)
            if limit and ours is not None and ours < limit:
                remaining = remaining * ours // limit  # a share of theirs is as much of ours
            elif not limit:
                remaining = math.floor(remaining * words.margin)
            left = max(0, remaining - younger)
            if left < words.room(name):
                words.move(name, left, now)

    def _changed(self, key: str, words: KeyWords, now: float, verified: bool = False) -> None:
        """What a state said about times is out of date; what it said besides is not."""
        words.updated = self._wall()
        stored = self._states.get(key, now)
        if stored is not None:
            kept = {name: each for name, each in stored.items() if name not in _view.OF_AN_INSTANT}
            self._states.put(key, kept | {"is_verified": True} if verified else kept, now)

    def _state(self, key: str, now: float) -> dict[str, Any] | None:
        self._held.expire(now)
        stored = self._states.get(key, now)
        words = self._words.peek(key, now, self._held.is_open)
        if words is None or (words.hidden and stored is None):
            return copied(stored)
        return _view.state_of(key, words, stored or {}, now, self._wall())

    def _sweep(self, now: float) -> None:
        self._held.expire(now)
        self._words.expire(now, self._held.is_open)


def limits_of(limits: Mapping[str, int | None], margin: float) -> list[tuple[int, str]]:
    """The share of each limit per minute that is known, with its resource.

    ConfigurationError for what is no limit: one that is not known would limit nothing.
    """
    _check_limits(limits)
    told = ((limits.get(f"{short}_limit"), name) for name, short in RESOURCES.items())
    return [(_view.scaled(int(each), margin), name) for each, name in told if each is not None]


def _check_limits(limits: object) -> None:
    if not isinstance(limits, Mapping):
        raise ConfigurationError(
            f"bucket_limits must be a dict of rpm_limit and tpm_limit, got {limits!r}"
        )
    for name, amount in limits.items():
        if name not in ("rpm_limit", "tpm_limit"):
            raise ConfigurationError(
                f"bucket_limits must have no names but rpm_limit and tpm_limit, got {name!r}"
            )
        if amount is None:
            continue
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise ConfigurationError(f"{name} must be a whole number or None, got {amount!r}")
        if not amount >= 0:
            raise ConfigurationError(f"{name} must be non-negative, got {amount}")
