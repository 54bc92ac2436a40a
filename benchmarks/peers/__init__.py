"""The other limiters (`--peers`): what each row measures of them, or why it cannot.

They are imported only where they run: what `make bench` needs does not contain them.
"""

from __future__ import annotations

NAMES = (
    "aiolimiter",
    "asynciolimiter",
    "limits",
    "pyrate-limiter",
    "throttled-py",
    "token-throttle",
)

NOT_INSTALLED = "is not installed: token-throttle, for one, needs Python 3.12"

_ONE_LIMIT = "cannot: counts one limit, by Python code that reads its own clock; see try-acquire"
_NO_REFUND = "cannot: gives nothing back, and is Python code that reads its own clock"

NO_CORE: dict[str, float | str] = {
    "aiolimiter": _ONE_LIMIT,
    "asynciolimiter": _ONE_LIMIT,
    "limits": _NO_REFUND,
    "pyrate-limiter": _NO_REFUND,
    "throttled-py": _NO_REFUND,
    "token-throttle": "cannot: Python code that reads its own clock; see try-acquire, "
    "which reserves and refunds",
}
"""Why none has a core that could be measured without Python."""

NO_PART: dict[str, float | str] = dict.fromkeys(
    NAMES, "cannot: it has no such part to be measured alone; see the row's other cells"
)
"""For a cell that measures one part of Headway."""
