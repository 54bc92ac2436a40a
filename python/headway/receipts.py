"""Receipts: what of ours a provider has refused, and why, as far as that can be told."""

from __future__ import annotations

from dataclasses import dataclass

from headway._core import Limit

OURS = "ours"
CAPACITY = "capacity"
CHANGED = "changed"
ANOTHER_CONSUMER = "another consumer"
UNKNOWN = "unknown"
VERDICTS = (OURS, CAPACITY, CHANGED, ANOTHER_CONSUMER, UNKNOWN)


@dataclass(frozen=True)
class LimitUse:
    """One limit when a request was refused: what of ours was sent, and what the answer said of it.

    All but `reset` are units of `resource`; None is what nobody has said, or what is not counted.

    limit: as it is kept to, after the buffer ratio; None where it is not kept to at all. kept: what
    it was when the refused request was sent, before that ratio. sent: what calls of ours had begun
    in the limit's last period by the answer, the refused one with them; of a `fixed` limit, in its
    window; of a `bucket` that was found to be one, what they would owe; of `concurrency`, what was
    out. It errs to the low side, by what began within 10 ms or 1/128 of the period. Where nothing
    is learnt (mode `basic`), it is what the limiter shows as used. asked: by the refused request.
    stated, remaining: the limit, and what was left of it, by the answer. reset: seconds until it is
    full again.
    """

    resource: str
    limit: Limit | None
    kept: int | None
    sent: int | None
    asked: int
    stated: int | None = None
    remaining: int | None = None
    reset: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether plenty was left by the answer: at least twice what was asked."""
        return self.remaining is not None and self.remaining >= max(1, 2 * self.asked)

    def __str__(self) -> str:
        name = self.resource if self.limit is None else f"'{self.limit}'"
        known = (
            ("kept to", self.kept),
            ("sent", self.sent),
            ("stated", self.stated),
            ("remaining", self.remaining),
        )
        told = [f"{what} {amount}" for what, amount in known if amount is not None]
        if self.reset is not None:
            told.append(f"full again in {self.reset:.3g} s")
        return f"{name}: asked {self.asked}" + "".join(f", {each}" for each in told)


@dataclass(frozen=True)
class Receipt:
    """Of one answer 429: the numbers of both sides, and what they come to; str() reads well.

    bucket: the bucket's id. at: when the answer was read, seconds since the epoch. verdict: one of

    - "ours": more of ours was sent than the limit, and the answer does not say that plenty is left.
    - "capacity": the provider's own affair. Its error says overload; or all limits that the answer
      tells of have plenty left, or it tells of none where others did, and nothing of ours explains
      it. A limit that no answer tells of looks like this, too.
    - "changed": the answer states less of a limit than was kept to when the request was sent.
    - "another consumer": a limit is used up, or the provider says so by refusing, and what was sent
      of ours does not explain it.
    - "unknown": no limit is known and the answer tells of none, or says that the credit is spent.

    uses: each limit that is kept to, and each that the answer tells of. retry_after: seconds that
    the answer asks to wait, 120 at most; None where it does not ask. error: the type or code of the
    error in its body; None where it has none. Nothing else of the request is kept, and no key.
    """

    bucket: str
    at: float
    verdict: str
    uses: tuple[LimitUse, ...]
    retry_after: float | None = None
    error: str | None = None

    def __str__(self) -> str:
        error = "" if self.error is None else f" ({self.error})"
        told = "" if self.retry_after is None else f", retry after {self.retry_after:.3g} s"
        uses = "; ".join(map(str, self.uses)) or "no limit is known"
        return f"refused{error}: {self.verdict}{told}: {uses}"
