"""What every backend over words of the core answers when it is asked itself, not by a scheduler."""

from __future__ import annotations

import uuid
from typing import Any

from headway._core import ManualClock, Reservation
from headway.backends import _view
from headway.backends._fading import Fading
from headway.backends._remembered import MOST_MODELS
from headway.backends._reservations import LIFE, Held
from headway.backends._shared import RESOURCES, Shared
from headway.backends._words import UNLIMITED, KeyWords
from headway.backends.base import validate_safety_margin


class Verbs(Shared):
    """The methods that BaseBackend promises, by the words of this process."""

    def __init__(
        self, namespace: str, key_ttl: float, released_ttl: float, clock: ManualClock | None = None
    ) -> None:
        super().__init__(namespace, key_ttl, released_ttl, clock)
        self._told_limits: Fading[str, dict[str, Any]] = Fading(key_ttl, MOST_MODELS)
        self._recorded = {"requests": 0, "tokens": 0}

    # State by key.

    async def get_state(self, key: str) -> dict[str, Any] | None:
        """What `set_state` wrote, and with it what the words say by now; None for neither.

        request_limit, token_limit: what is kept of the limits, after the safety margin; what
        remains is of these. remaining_requests, remaining_tokens: None where unlimited, as the
        limits then are. reset_at: when one request fits again, ISO 8601 in UTC; None for never.
        """
        with self._lock:
            return self._state(key, self._now())

    async def set_state(self, key: str, state: dict[str, Any]) -> None:
        """Replaces the state; what it says of limits and of what remains moves the words.

        request_limit, token_limit: change the limit per minute, unless one was given to
        `make_words`. remaining_requests, remaining_tokens: less than is left takes the difference,
        as used by somebody else at this instant, until 60 s later. More gives back what was taken
        so, the latest first, and no more than that: what reservations took is not raised. Beyond
        the limit means the limit, below zero zero, None nothing.
        """
        with self._lock:
            now = self._now()
            self._sweep(now)
            limits = {"requests": state.get("request_limit"), "tokens": state.get("token_limit")}
            remaining = {name: state.get(f"remaining_{name}") for name in RESOURCES}
            if any(each is not None for each in (*limits.values(), *remaining.values())):
                words = self._make(key, now)
                for name, value in limits.items():
                    amount = _view.whole(value)
                    if amount is not None:
                        words.learn(name, amount, now)
                for name, value in remaining.items():
                    amount = _view.whole(value)
                    if amount is not None:
                        words.move(name, amount, now)
            elif (known := self._words.get(key, now)) is not None:
                known.hidden = False
            self._states.put(key, dict(state), now)

    async def get_all_states(self) -> dict[str, dict[str, Any]]:
        """Copies of all states."""
        with self._lock:
            now = self._now()
            keys = dict.fromkeys(
                [*self._states.keys(now), *(key for key, _ in self._words.items())]
            )
            found = {key: self._state(key, now) for key in keys}
            return {key: state for key, state in found.items() if state is not None}

    async def clear(self) -> None:
        """Forgets all states; what is used stays counted until `cleanup`."""
        with self._lock:
            self._states.clear()
            for _, words in self._words.items():
                words.hidden = True

    # Capacity.

    async def check_and_reserve_capacity(  # noqa: PLR0917 - the order is promised
        self,
        key: str,
        requests: int,
        tokens: int,
        bucket_limits: dict[str, int] | None = None,
        safety_margin: float = 1.0,
        request_id: str | None = None,
    ) -> tuple[bool, str | None]:
        """Takes both amounts or nothing; whether it did, and the reservation's id.

        bucket_limits: `rpm_limit` and `tpm_limit`, of which max(1, floor(safety_margin * limit)) is
        kept; 0 admits nothing, None or absent is not known. Others than last time change the
        limits per minute. A key without limits is counted and refuses nothing. request_id: another
        name for the reservation. Refuses also while a `Retry-After` of this key or a forced break
        lasts.
        """
        validate_safety_margin(safety_margin)
        with self._lock:
            words = self._asked(key, bucket_limits, safety_margin)
            if words is None:
                return False, None
            reservation = words.try_reserve(requests, tokens)
            if not isinstance(reservation, Reservation):
                return False, None
            return True, self._hold(key, words, reservation, (requests, tokens), request_id)

    async def release_reservation(self, key: str, reservation_id: str) -> bool:
        """Gives back all of it; True also for one released already, which gives back nothing.

        One whose response `update_rate_limits` was told has been counted: it is ended, no more.
        False for an id that this key does not have, or that is forgotten.
        """
        return self._release(key, reservation_id, None)

    async def release_streaming_reservation(
        self, key: str, reservation_id: str, reserved_tokens: int, actual_tokens: int
    ) -> bool:
        """Ends a reservation with the tokens that were used; its requests stay spent.

        What was reserved is known here, so `reserved_tokens` is not looked at. More than that is
        charged whether it fits or not. The result is as that of `release_reservation`.
        """
        return self._release(key, reservation_id, min(max(0, actual_tokens), UNLIMITED))

    async def check_capacity(self, model: str, request_type: str = "default") -> tuple[bool, float]:
        """Whether one request of this key would fit now, and the seconds until it would.

        inf: never. 0.1 where only the end of reservations that are out can tell.
        """
        with self._lock:
            now = self._now()
            self._sweep(now)
            wait = self._failures.broken_for(now)
            words = self._words.get(model, now)
            if words is not None:
                ready = words.ready_in()
                wait = max(wait, words.refused_until - now, 0.1 if ready is None else ready)
            return wait <= 0, wait

    async def reserve_capacity(
        self, model: str, request_id: str, tokens_estimated: int = 0
    ) -> bool:
        """Reserves one request and so many tokens under the request's own id; whether it did."""
        took, _ = await self.check_and_reserve_capacity(
            model, 1, tokens_estimated, request_id=request_id
        )
        return took

    async def release_reservation_by_id(self, request_id: str) -> None:
        """Gives back all reservations of this request that are out."""
        with self._lock:
            now = self._now()
            self._sweep(now)
            for held in self._held.named(request_id):
                held.give_back()
                self._held.release(held, now)

    # Observations.

    async def record_request(
        self, model: str, request_type: str = "default", tokens_used: int | None = None
    ) -> None:
        """For the statistics alone: it is a reservation that takes capacity."""
        with self._lock:
            self._recorded["requests"] += 1
            self._recorded["tokens"] += tokens_used or 0

    async def update_rate_limits(
        self,
        model: str,
        headers: dict[str, str],
        bucket_id: str | None = None,
        request_id: str | None = None,
        status_code: int | None = None,
    ) -> int:
        """Takes in what a response said; 1 if something was, else 0.

        Of the key `bucket_id`, else the one in which the request has a reservation, else `model`.
        A limit changes the limit per minute, scaled by the last safety margin; a limit of 0 counts
        only where the status is an error. `remaining` can only lower what is left, to so much less
        what is out by reservations made after this request's; by all, where that is not known.
        `Retry-After` of a 429 makes the key refuse for so long. What is absent changes nothing.

        request_id: also by the reservation's own id. A response to it shows that it was counted.
        """
        parsed = self._parse_rate_limit_headers(headers)
        if status_code is None or status_code < 400:
            for short in RESOURCES.values():
                if parsed.get(f"{short}_limit") == 0:
                    del parsed[f"{short}_limit"]
        with self._lock:
            now = self._now()
            self._sweep(now)
            key = bucket_id or self._key_of(request_id) or model
            held = None if request_id is None else self._held.find(key, request_id)
            if held is not None and not held.answered:
                held.answered = True
                held.reservation.answered(refused=status_code == 429)
            if len(parsed) == 1:  # the timestamp
                return 0
            self._told_limits.put(model, parsed, now)
            words = self._make(key, now)
            words.model = model
            words.verified = True
            order = None if request_id is None else self._held.order_of(key, request_id, now)
            self._observe(words, parsed, self._held.younger(key, order or 0), now)
            if status_code == 429 and "retry_after" in parsed:
                words.refused_until = max(words.refused_until, now + parsed["retry_after"])
            self._changed(key, words, now, verified=True)
            return 1

    async def get_rate_limits(self, model: str) -> dict[str, Any]:
        """What the last response for this model said that said anything; {} for none."""
        with self._lock:
            return dict(self._told_limits.get(model, self._now()) or {})

    # Itself.

    async def get_all_stats(self) -> dict[str, Any]:
        """Counts of what it holds. request_tracking: what `record_request` was told."""
        states = await self.get_all_states()
        with self._lock:
            now = self._now()
            self._purge(now)
            return {
                "states_count": len(states),
                "rate_limits_count": len(self._told_limits),
                "reservations_count": len(self._held),
                "model_cache_count": len(self._models),
                "bucket_cache_exists": len(self._buckets) > 0,
                "total_failures": self._failures.total,
                "recent_failures_30s": self._failures.count(now, 30.0),
                "circuit_broken": self._failures.broken_for(now) > 0,
                "request_tracking": dict(self._recorded),
            }

    async def cleanup(self) -> None:
        """Forgets everything, what is used and reserved, too, and ends what `start` began."""
        await self.stop()
        with self._lock:
            self._held.clear()
            self._words.clear()
            self._states.clear()
            self._told_limits.clear()
            self._forget_all()
            self._recorded = {"requests": 0, "tokens": 0}

    # With the lock held.

    def _asked(
        self, key: str, bucket_limits: dict[str, int] | None, safety_margin: float
    ) -> KeyWords | None:
        """The words of a key, by these limits; None where nothing of it is to go for now."""
        now = self._now()
        self._sweep(now)
        words = self._make(key, now)
        if bucket_limits is not None:
            self._give_limits(words, bucket_limits, safety_margin, now)
        refused = words.refused_until > now or self._failures.forced_until > now
        return None if refused else words

    def _hold(
        self,
        key: str,
        words: KeyWords,
        reservation: Reservation,
        amounts: tuple[int, int],
        request_id: str | None,
    ) -> str:
        """Keeps it until it is released; its id."""
        now = self._now()
        if words.marks:
            # Nobody will say when it goes out, only when it is over; and this at the latest.
            reservation.sent(LIFE)
        self._changed(key, words, now)
        identity = str(uuid.uuid4())
        self._held.add(Held(identity, key, request_id, reservation, *amounts, now + LIFE))
        return identity

    def _key_of(self, request_id: str | None) -> str | None:
        """The key in which this request has its reservations, if it is one."""
        keys = {held.key for held in self._held.named(request_id)} if request_id else set()
        return keys.pop() if len(keys) == 1 else None

    def _release(self, key: str, identity: str, tokens: int | None) -> bool:
        with self._lock:
            now = self._now()
            self._sweep(now)
            held: Held | None = self._held.find(key, identity)
            if held is None:
                return self._held.was_released(key, identity, now)
            if tokens is None:
                held.give_back()
            else:
                held.settle(tokens)
            self._held.release(held, now)
            words = self._words.get(key, now)
            if words is not None:
                self._changed(key, words, now)
            return True

    def _purge(self, now: float) -> None:
        self._held.purge(now)
        self._words.expire(now, self._held.is_open, len(self._words))
        self._states.purge(now)
        self._told_limits.purge(now)
        self._purge_remembered(now)
