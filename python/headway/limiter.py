"""Limiter: the limits that a provider counts together, and everything that waits on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headway import _core, _loop
from headway._core import Limit, ManualClock
from headway.receipts import Receipt

if TYPE_CHECKING:
    from headway.backends.redis import RedisBackend

UNLIMITED = 2**53
"""The amount of a limit that is not known, and counted for the day on which it is."""

_MINUTE = 60.0

_SURE = 3
"""Answers that show a kind, at least."""

_SHOWN = 3
"""Receipts in the text of an explanation."""


@dataclass(frozen=True)
class LimitState:
    """One limit at one look.

    used, capacity and available are units of the limit's resource; capacity is what it admits at
    once (the burst of a `bucket`). ready_in: seconds until the cost that was asked about would fit
    into this limit by itself; inf where it never does, None where only answers still out can tell.
    account: the `client_id` whose own limit it is, None for the provider's. learnt: what of it was
    found out, and from what; None for a limit that was given and no answer spoke of.
    """

    limit: Limit
    used: int
    capacity: int
    available: int
    ready_in: float | None
    account: str | None = None
    learnt: str | None = None


@dataclass(frozen=True)
class Observed:
    """What would have become of requests that a transport with `observe_only` has let through.

    Of one bucket. requests: how many have ended. would_have_waited: how many of them would have
    been held back, by the limits that were known then and all that was sent by then; for a first
    answer, too, where none was known. would_have_waited_seconds: for how long these, together; what
    waits behind others that wait is not foreseen. refusals: how many were answered 429.
    refusals_avoided: how many of those would have been held back.
    """

    requests: int
    would_have_waited: int
    would_have_waited_seconds: float
    refusals: int
    refusals_avoided: int

    def __str__(self) -> str:
        return (
            f"observed only: {self.requests} requests, of which {self.would_have_waited} would "
            f"have waited, {self.would_have_waited_seconds:.3f} s in all; {self.refusals} refused, "
            f"of which {self.refusals_avoided} would have been held back"
        )


@dataclass(frozen=True)
class Explanation:
    """What a limiter would do with a cost now, and why; str() reads well.

    amounts: the cost asked about, in the order of resources. binds: the limit that admits it last,
    or None where it fits now. ready_in: seconds until its turn behind all that wait. waiting: how
    many do. elsewhere: limits that a user's own backend counts: how full they are, only that knows.
    receipts: of a scheduler's bucket, its last 16 refusals, the latest last.
    observed: of a scheduler's bucket, what was only watched; None where nothing was.
    """

    resources: tuple[str, ...]
    amounts: tuple[int, ...]
    limits: tuple[LimitState, ...]
    binds: Limit | None
    ready_in: float | None
    waiting: int
    elsewhere: tuple[Limit, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    observed: Observed | None = None

    @property
    def fits_now(self) -> dict[str, int]:
        """The most of each resource that would fit now if nothing else was asked."""
        most: dict[str, int] = {}
        for state in self.limits:
            name = state.limit.resource
            most[name] = min(most.get(name, state.available), state.available)
        return most

    def __str__(self) -> str:
        limited = {state.limit.resource for state in self.limits}
        cost = ", ".join(
            f"{amount} {name}"
            for name, amount in zip(self.resources, self.amounts, strict=True)
            # The others are counted in case that a limit of them is learnt.
            if name in limited
            or name in ("requests", "tokens")
            or (amount and name != "concurrency")
        )
        when = _when(self.ready_in)
        if self.ready_in is None and self.elsewhere:
            when = "fits when the backend, or an answer, says so"
        head = f"{cost}: {when}" if self.binds is None else f"{cost}: '{self.binds}' binds, {when}"
        lines = [f"{head}; {self.waiting} waiting"]
        for state in self.limits:
            share = state.used / state.capacity if state.capacity else 1.0
            whose = "" if state.account is None else f" of account {state.account!r}"
            lines.append(
                f"  {state.limit}{whose}: {state.used} of {state.capacity} used ({share:.0%}), "
                f"{state.available} left, {_when(state.ready_in)}"
                + ("" if state.learnt is None else f" ({state.learnt})")
            )
        lines += [f"  {limit}: counted by the backend" for limit in self.elsewhere]
        fits = ", ".join(f"{n} {name}" for name, n in self.fits_now.items())
        if fits:
            lines.append(f"  fits now: {fits}")
        elif not self.elsewhere:
            lines.append("  no limits")
        if self.observed is not None:
            lines.append(f"  {self.observed}")
        lines += [f"  {receipt}" for receipt in self.receipts[-_SHOWN:]]
        return "\n".join(lines)


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "fits when an answer comes in"
    if math.isinf(seconds):
        return "never fits"
    return "fits now" if seconds == 0 else f"fits in {seconds:.3f} s"


class Limiter(_core.LimiterCore):
    """Keeps what is asked of it just under all of its limits, together.

    limits: Limit objects or their text form; amounts are then given in the order of `resources`,
    each resource once. backend: None, or a RedisBackend: then all limiters of one `name` there
    share the limits, in whatever process they are. clock: None for the real one, or a ManualClock.

    With a backend each admission is asked for in Redis, of as many as wait at once; `try_acquire`
    and `try_reserve`, which do not wait, are not for it.

    Thread-safe; any number of event loops and threads may use one limiter at once.

        limiter = Limiter(["500 requests/min", "200_000 tokens/min"])

        async with limiter.acquire(1, 1500):
            ...  # the call, and nothing else: leaving the block says that it was answered
    """

    __slots__ = ("_backend",)

    def __init__(
        self,
        limits: Iterable[Limit | str] | Limit | str,
        *,
        backend: RedisBackend | None = None,
        clock: ManualClock | None = None,
        name: str = "default",
    ) -> None:
        read = _read(limits)
        self._backend = backend
        if backend is None:
            super().__init__(read, clock)
            _loop.register(self)
        else:
            if not callable(getattr(backend, "_take_on", None)):  # it need not be imported
                raise ValueError(f"backend {backend!r}: must be a RedisBackend or None")
            if clock is not None:
                raise ValueError("clock: must be None with a backend, whose time decides")
            if not isinstance(name, str):
                raise TypeError(f"name {name!r}: must be a str")
            resources = tuple(dict.fromkeys(limit.resource for limit in read))
            super().__init__(read, None, resources, credit=resources)
            backend._take_on(self, name)

    @property
    def resources(self) -> tuple[str, ...]:
        """The resources, in the order in which amounts are given."""
        return _core.resources(self)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits as they are now; concurrency comes first."""
        return tuple(each for each in _core.limits(self) if each.shape != "credit")

    def set_limit(self, limit: Limit | str, *, debt: str = "absolute") -> None:
        """Changes a limit while it is in use; what is already counted stays counted.

        Replaces the limit of the same resource and period, or the resource's only one. Its shape
        stays, so it must be the same or not given. debt: "absolute" where so many units are owed
        whatever the limit is, "proportional" where the provider scales what is used with the limit.
        Raises ValueError, and changes nothing, where that does not single out a limit; TypeError
        where it is none.
        """
        if not isinstance(limit, (Limit, str)):
            raise TypeError(
                f"limit {limit!r}: must be a Limit or its text, as in '500 requests/min'"
            )
        wanted = Limit.parse(limit) if isinstance(limit, str) else limit
        if debt not in ("absolute", "proportional"):
            raise ValueError(f"debt {debt!r}: must be 'absolute' or 'proportional'")
        present = self.limits
        same = [i for i, each in enumerate(present) if each.resource == wanted.resource]
        exact = [i for i in same if present[i].per == wanted.per]
        found = exact or same
        if len(found) != 1:
            listed = ", ".join(f"'{each}'" for each in present)
            raise ValueError(f"limit '{wanted}': does not say which of {listed} it replaces")
        old = present[found[0]]
        if wanted.shape is None and old.shape is not None:
            burst = None if old.shape != "bucket" or old.burst == old.amount else old.burst
            wanted = Limit(wanted.amount, wanted.resource, wanted.per, old.shape, burst, old.anchor)
        if (wanted.shape or "window") != (old.shape or "window"):
            raise ValueError(
                f"limit '{wanted}': shape must stay {old.shape or 'window'!r}, as in '{old}'"
            )
        _core.set_limit(self, found[0], wanted, debt == "proportional")
        if self._backend is not None:
            self._backend._set_limit(self, found[0], wanted, proportional=debt == "proportional")

    def explain(self, *amounts: int) -> Explanation:
        """Which limit binds this cost, how full each is, when it would fit, what would fit now.

        With a backend, how full it is by all who share it, as Redis has said last.
        """
        said = explain(self, amounts)
        return said if self._backend is None else self._backend._explained(self, said)

    def __repr__(self) -> str:
        return f"Limiter([{', '.join(repr(str(each)) for each in self.limits)}])"


def _read(limits: Iterable[Limit | str] | Limit | str) -> list[Limit]:
    given: list[object] = []
    if isinstance(limits, (Limit, str)):
        given = [limits]
    elif isinstance(limits, Iterable):
        given = list(limits)
    else:
        raise TypeError(f"limits {limits!r}: must be a limit or a list of them")
    for each in given:
        if not isinstance(each, (Limit, str)):
            raise TypeError(
                f"limits {each!r}: must be a Limit or its text, as in '500 requests/min'"
            )
    return [each if isinstance(each, Limit) else Limit.parse(str(each)) for each in given]


def _learnt(finding: dict[str, Any]) -> str | None:
    """What was found out about a limit, as a sentence's part."""
    others = f"others use {finding['others']}" if finding["others"] else ""
    if finding["given"]:
        return others or None
    if finding["searched"]:
        return "not stated: found out by refusals"
    parts = (f"stated as {finding['limit']}", *_sure(finding), others)
    return ", ".join(part for part in parts if part)


def _sure(finding: dict[str, Any]) -> Iterator[str]:
    """How it is counted, as far as that is known, and by what."""
    shape, readings = finding["shape"], finding["readings"]
    if shape == "window":
        # All kinds of server accept it, of a minute too; whatever is known beyond was told or seen.
        if finding["per"] != _MINUTE:
            yield "period found out by resets" if readings else "period as its provider says"
        yield "taken for a window so far"
    elif not readings:
        yield f"{shape} by its provider's table"
    else:
        # What was found out before a restart has no number, and nor has what ends tell alone.
        yield f"{shape} by {readings} answers" if readings >= _SURE else f"{shape} by answers"


def explain(limiter: _core.LimiterCore, amounts: Sequence[int]) -> Explanation:
    """As Limiter.explain, for whatever has limits. Those that are unlimited are left out."""
    look = _core.snapshot(limiter, *amounts)
    found = {each["meter"]: _learnt(each) for each in _core.findings(limiter)}
    states = tuple(
        LimitState(**each, learnt=found.get(meter)) for meter, each in enumerate(look["limits"])
    )
    binds = look["binds"]
    known = 0 <= binds < len(states) if binds is not None else False
    return Explanation(
        resources=_core.resources(limiter),
        amounts=tuple(look["amounts"]),
        limits=tuple(state for state in states if state.limit.amount < UNLIMITED),
        # One that is unlimited is there for what may be learnt, and is nobody's business.
        binds=states[binds].limit if known and states[binds].limit.amount < UNLIMITED else None,
        ready_in=look["ready_in"],
        waiting=look["waiting"],
    )
