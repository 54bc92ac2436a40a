"""Keeps secrets out of what is logged, raised and shown."""

from __future__ import annotations

import re

_PATTERNS = (
    # user:password@ in a URL
    (re.compile(r"(://)[^/@\s]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), r"\1 …"),
    (re.compile(r"(?i)((?:api[-_ ]?key|token|secret|password|authorization)\W{1,4})\S+"), r"\1…"),
    # Keys as most providers make them: long, without spaces, letters and digits mixed.
    (re.compile(r"\b(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{20,}"), "…"),
)


def redact(text: str) -> str:
    """`text` without what looks like a key, a password, or credentials in a URL."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
