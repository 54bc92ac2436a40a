"""What a request counts in tokens, before it is sent, and what an answer says was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESOURCES = ("requests", "tokens", "concurrency")
"""What is known of a request's cost."""

_TEXT = ("messages", "prompt", "input", "instructions")
_NO_TEXT = frozenset({"role", "type", "name", "id", "image_url", "input_audio", "file"})
_MOST = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_COMPLETIONS_DEFAULT = 16
_LARGEST = 2**53


def estimate_tokens(url: str, body: Mapping[str, Any]) -> int:
    """What the request counts against a limit of tokens, at least 1.

    As OpenAI counts when a request arrives: the larger of what it may answer at most and a quarter
    of the characters of its text, not their sum. A number in a list of text is a token already.
    `/completions` answers 16 tokens at most unless told otherwise.
    """
    most = max((_amount(body.get(name)) for name in _MOST), default=0)
    path = url.partition("?")[0]
    if most == 0 and path.endswith("/completions") and not path.endswith("/chat/completions"):
        most = _COMPLETIONS_DEFAULT
    return max(1, most, -(-_characters(body) // 4))


def used_tokens(body: object) -> int:
    """The tokens that an answer says it took: its `usage`; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0
    total = _amount(usage.get("total_tokens"))
    if total:
        return total
    parts = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    return sum(_amount(usage.get(name)) for name in parts)


def _characters(body: Mapping[str, Any]) -> int:
    """Characters of text, without roles, types, names, ids, pictures, sounds and files."""
    count = 0
    stack = [body[name] for name in _TEXT if name in body]
    while stack:
        part = stack.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(value for name, value in part.items() if name not in _NO_TEXT)
        elif isinstance(part, int) and not isinstance(part, bool):
            count += 4
    return count


def _amount(value: object) -> int:
    """`value` if it is a number of tokens, else 0: the provider will say what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return 0
    return min(value, _LARGEST)
