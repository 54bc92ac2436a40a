"""Which account a line is of, and how urgent it is: read from the line itself."""

from __future__ import annotations

from dataclasses import dataclass

from headway.batch.pointer import MISSING, Pointer

_MOST_PRIORITY = 10**9
_SHOWN = 60
_RULE = "must be a whole number from -10**9 to 10**9, or one as a string (missing: 0)"


@dataclass(frozen=True)
class Keys:
    """Where a line says so; None: nowhere. The pointers are into the line, not into its body."""

    account: Pointer | None = None
    priority: Pointer | None = None

    def account_of(self, line: object) -> str | None:
        """None where nothing, or null, is there. ValueError where it is no name."""
        if self.account is None:
            return None
        value = self.account.find(line)
        if value is MISSING or value is None:
            return None
        if not isinstance(value, str) or not value or not _is_text(value):
            raise ValueError(
                f"--account-key {self.account}: {shown(value)} must be a string that is not empty "
                "(missing: no account)"
            )
        return value

    def priority_of(self, line: object) -> int:
        """0 where nothing, or null, is there. ValueError where it is no priority."""
        if self.priority is None:
            return 0
        value = self.priority.find(line)
        if value is MISSING or value is None:
            return 0
        number = _whole(value)
        if number is None or abs(number) > _MOST_PRIORITY:
            raise ValueError(f"--priority-key {self.priority}: {shown(value)} {_RULE}")
        return number


def shown(value: object) -> str:
    """`value` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_text(value: str) -> bool:
    """Whether it is Unicode; JSON lets half a character be written."""
    return not any("\ud800" <= each <= "\udfff" for each in value)


def _whole(value: object) -> int | None:
    # OpenAI's metadata may hold nothing but strings.
    if isinstance(value, str):
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return None
