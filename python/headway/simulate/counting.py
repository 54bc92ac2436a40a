"""How a provider counts: one class for each shape of rule, in plain integers.

Nothing here is shared with, or modelled on, the library's own core: a rule misunderstood once
must not prove itself. Instants are nanoseconds of one monotonic clock and never decrease from
call to call; amounts are whole units. All arithmetic is exact, so every decision is right to the
nanosecond.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from headway.simulate.rules import Rule


class Count(ABC):
    """What one rate rule has counted so far. Not for several threads at once."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.period = rule.period_ns

    @abstractmethod
    def wait(self, now: int, cost: int) -> int | None:
        """Nanoseconds until `cost` fits, 0 if it does at `now`, None if it never will."""

    @abstractmethod
    def take(self, now: int, cost: int) -> None:
        """Counts `cost` at `now`, whether or not it fits."""

    @abstractmethod
    def used(self, now: int) -> int:
        """What is counted against the rule at `now`, rounded up to whole units."""

    @abstractmethod
    def full_in(self, now: int) -> int:
        """Nanoseconds until all of the limit is free again, if nothing more is taken."""

    @abstractmethod
    def most(self, first: int, last: int) -> int:
        """The most that the rule lets anybody take from `first` to `last`, both included.

        Nothing is counted before `first`, and the costs may be as small as is best.
        """

    def take_refused(self, now: int, cost: int) -> None:
        """Counts a refused `cost`, for a provider that counts refusals too."""
        self.take(now, cost)

    def change(self, rule: Rule, now: int) -> None:
        """Goes on under `rule`, of the same shape and period; what is counted stays counted."""
        self.rule = rule

    def succeed(self, other: Count, now: int) -> None:
        """Begins, at `now`, with what `other` has counted, in units; this one is empty still."""
        self.take(now, other.used(now))


class Bucket(Count):
    """Continuous refill: at most `burst + amount x time / period` over every interval.

    Kept as the stamp of the last taking and the debt at it, in units x period nanoseconds: that
    is a whole number, and the bucket pays `amount` of it in each nanosecond.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self._stamp = 0
        self._debt = 0

    def wait(self, now: int, cost: int) -> int | None:
        if cost > self.rule.capacity:
            return None
        over = self._debt_at(now) + (cost - self.rule.capacity) * self.period
        if over <= 0:
            return 0
        return _divide_up(over, self.rule.amount) if self.rule.amount else None

    def take(self, now: int, cost: int) -> None:
        self._debt = self._debt_at(now) + cost * self.period
        self._stamp = now

    def take_refused(self, now: int, cost: int) -> None:
        # Emptied at worst: a debt that grew with every refusal would never be paid.
        debt = self._debt_at(now)
        empty = self.rule.capacity * self.period
        self._debt = max(debt, min(debt + cost * self.period, empty))
        self._stamp = now

    def used(self, now: int) -> int:
        return _divide_up(self._debt_at(now), self.period)

    def full_in(self, now: int) -> int:
        # A limit of 0 pays nothing back, so a debt from before it was 0 has no better answer.
        debt = self._debt_at(now)
        return _divide_up(debt, self.rule.amount or debt) if debt else 0

    def most(self, first: int, last: int) -> int:
        return self.rule.capacity + self.rule.amount * (last - first) // self.period

    def change(self, rule: Rule, now: int) -> None:
        self._debt = self._debt_at(now)
        self._stamp = now
        self.rule = rule

    def succeed(self, other: Count, now: int) -> None:
        if isinstance(other, Bucket):
            self._debt = _divide_up(other._debt_at(now) * self.period, other.period)
            self._stamp = now
        else:
            super().succeed(other, now)

    def _debt_at(self, now: int) -> int:
        return max(0, self._debt - self.rule.amount * (now - self._stamp))


class Window(Count):
    """Never more than `amount` in any window: what was taken at t leaves at t + period.

    Kept as the stamps and costs of everything that has not left yet, oldest first.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self._stamps: deque[tuple[int, int]] = deque()
        self._sum = 0

    def wait(self, now: int, cost: int) -> int | None:
        if cost > self.rule.capacity:
            return None
        over = self.used(now) + cost - self.rule.amount
        free_at = now
        for stamp, taken in self._stamps:
            if over <= 0:
                break
            over -= taken
            free_at = stamp + self.period
        return free_at - now

    def take(self, now: int, cost: int) -> None:
        # A cost of nothing would seem to hold the limit until its stamp leaves.
        if cost:
            self._stamps.append((now, cost))
            self._sum += cost

    def used(self, now: int) -> int:
        while self._stamps and self._stamps[0][0] + self.period <= now:
            self._sum -= self._stamps.popleft()[1]
        return self._sum

    def full_in(self, now: int) -> int:
        return self._stamps[-1][0] + self.period - now if self.used(now) else 0

    def most(self, first: int, last: int) -> int:
        return self.rule.amount * ((last - first) // self.period + 1)

    def succeed(self, other: Count, now: int) -> None:
        if isinstance(other, Window):
            # Each leaves when its own time has come, by the period that holds now.
            self._sum = other.used(now)
            self._stamps = deque(other._stamps)
        else:
            super().succeed(other, now)


class Fixed(Count):
    """`amount` in each window of a row of windows that never moves.

    `epoch_at_zero` is the wall clock's time, in nanoseconds since the epoch, at the instant 0 of
    the monotonic clock. It is read once: a wall clock that is set later moves no window.
    """

    def __init__(self, rule: Rule, epoch_at_zero: int) -> None:
        super().__init__(rule)
        self._zero = epoch_at_zero - round((rule.anchor or 0) * 1e9)
        self._number = 0
        self._sum = 0

    def wait(self, now: int, cost: int) -> int | None:
        if cost > self.rule.capacity:
            return None
        return 0 if self.used(now) + cost <= self.rule.amount else self.full_in(now)

    def take(self, now: int, cost: int) -> None:
        self._sum = self.used(now) + cost
        self._number = self._window(now)

    def used(self, now: int) -> int:
        return self._sum if self._number == self._window(now) else 0

    def full_in(self, now: int) -> int:
        return self.period - (now + self._zero) % self.period

    def most(self, first: int, last: int) -> int:
        return self.rule.amount * (self._window(last) - self._window(first) + 1)

    def _window(self, now: int) -> int:
        return (now + self._zero) // self.period


def count_of(rule: Rule, epoch_at_zero: int) -> Count:
    """An empty count for a rate rule; `epoch_at_zero` as in `Fixed`."""
    if rule.shape == "bucket":
        return Bucket(rule)
    if rule.shape == "window":
        return Window(rule)
    if rule.shape == "fixed":
        return Fixed(rule, epoch_at_zero)
    raise ValueError(f"the rule {str(rule)!r} is no rate: nothing counts it over time")


def _divide_up(amount: int, by: int) -> int:
    return -(-amount // by)
