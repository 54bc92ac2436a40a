"""Keeps secrets out of what is logged, raised and shown."""

from __future__ import annotations

import re

# Each is linear in the text, which may be of any length and comes from outside.
_PATTERNS = (
    # user:password@ in a URL; a password may hold an @ itself, so up to the last one
    (re.compile(r"(://)[^/\s]*@"), r"\1…@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), r"\1 …"),
    (re.compile(r"(?i)((?:api[-_ ]?key|token|secret|password|authorization)\W{1,4})\S+"), r"\1…"),
)
# Keys as most providers make them: long, without spaces, letters and digits mixed.
_LONG = re.compile(r"[\w-]{20,}")
_DIGIT = re.compile(r"\d")
_LETTER = re.compile(r"[A-Za-z]")


def redact(text: str) -> str:
    """`text` without what looks like a key, a password, or credentials in a URL."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return _LONG.sub(_key, text)


def _key(found: re.Match[str]) -> str:
    text = found.group()
    # Two searches rather than look-aheads: from each place in a long run those would read it all.
    return "…" if _DIGIT.search(text) and _LETTER.search(text) else text
