"""What a request counts in tokens, before it is sent, and what an answer says was used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESOURCES = ("requests", "tokens", "concurrency")
"""What is known of a request's cost."""

_TEXT = ("messages", "prompt", "input", "instructions", "system", "contents", "systemInstruction")
# Pictures, sounds and files come as base64 under these names, which is no text.
_NO_TEXT = frozenset(
    {
        *("role", "type", "name", "id", "media_type", "mimeType", "mime_type"),
        *("image_url", "input_audio", "file", "file_data", "data", "inlineData", "inline_data"),
    }
)
_MOST = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_COMPLETIONS_DEFAULT = 16
_LARGEST = 2**53


def estimate_tokens(url: str, body: Mapping[str, Any]) -> int:
    """What the request counts against a limit of tokens, at least 1.

    As OpenAI counts when a request arrives: the larger of what it may answer at most and a quarter
    of the characters of its text, not their sum. A number in a list of text is a token already.
    `/completions` answers 16 tokens at most unless told otherwise.
    """
    most = most_output_tokens(body)
    path = url.partition("?")[0]
    if most == 0 and path.endswith("/completions") and not path.endswith("/chat/completions"):
        most = _COMPLETIONS_DEFAULT
    return max(most, input_tokens(body))


def read_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Tokens by resource, as an answer's `usage` says: of OpenAI, Anthropic or Gemini.

    Of what went in, Anthropic tells apart what it writes to its cache, which counts, and what it
    reads from it, which does not: https://platform.claude.com/docs/en/api/rate-limits. Gemini tells
    thoughts apart from answers, and both count.
    """

    def first(*names: str) -> int | None:
        return next((n for n in (_told(usage.get(name)) for name in names) if n is not None), None)

    went_in = first("input_tokens", "prompt_tokens", "promptTokenCount")
    if went_in is not None:
        went_in += first("cache_creation_input_tokens") or 0
    came_out = first("output_tokens", "completion_tokens", "candidatesTokenCount")
    thoughts = first("thoughtsTokenCount")
    if thoughts is not None:
        came_out = (came_out or 0) + thoughts
    total = first("total_tokens", "totalTokenCount")
    if total is None and went_in is not None and came_out is not None:
        total = went_in + came_out
    found = {"tokens": total, "input_tokens": went_in, "output_tokens": came_out}
    return {resource: amount for resource, amount in found.items() if amount is not None}


def used_tokens(body: object) -> int:
    """The tokens that an answer says it took: its `usage`; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0
    used = read_usage(usage)
    return used.get("tokens") or used.get("input_tokens", 0) + used.get("output_tokens", 0)


def input_tokens(body: Mapping[str, Any]) -> int:
    """What goes in of a request, at least 1: a quarter of the characters of its text."""
    return max(1, -(-_characters(body) // 4))


def most_output_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens its answer may have at most; 0 where the request does not say."""
    most = max((_amount(body.get(name)) for name in _MOST), default=0)
    settings = body.get("generationConfig")
    if most == 0 and isinstance(settings, Mapping):
        most = _amount(settings.get("maxOutputTokens"))
    return most


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


def _told(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    return None
