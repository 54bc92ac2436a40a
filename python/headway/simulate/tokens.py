"""What a request costs in tokens, estimated at arrival as OpenAI does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_TEXT_FIELDS = ("messages", "prompt", "input", "instructions")
_MAXIMUM_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_NOT_TEXT = frozenset(
    {"role", "type", "name", "id", "image_url", "input_audio", "file", "source"}
    | {"inlineData", "inline_data", "fileData", "file_data"}
)


@dataclass(frozen=True)
class TokenEstimate:
    """`prompt` and `counted` in tokens; `maximum` is what the body allows, None if it says none."""

    prompt: int
    maximum: int | None

    @property
    def counted(self) -> int:
        """What counts against a limit of tokens: the larger of the two, not their sum."""
        return max(self.prompt, self.maximum or 0)


def estimate_tokens(
    body: dict[str, Any],
    text_fields: Sequence[str] = _TEXT_FIELDS,
    maximum_fields: Sequence[str] = _MAXIMUM_FIELDS,
) -> TokenEstimate:
    """Four characters of text are one token, rounded up over the whole request.

    Text is what stands in the `text_fields`, without roles, types, names, ids, pictures, sounds
    and files; a number in a list there is a token already. The maximum is in the first of the
    `maximum_fields` that is there; ValueError where it is no whole number of at least 0.
    """
    characters = 0
    stack = [body[field] for field in text_fields if field in body]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            stack.extend(part for name, part in value.items() if name not in _NOT_TEXT)
        elif isinstance(value, int) and not isinstance(value, bool):
            characters += 4
    return TokenEstimate(-(-characters // 4), _maximum(body, maximum_fields))


def _maximum(body: dict[str, Any], fields: Sequence[str]) -> int | None:
    for field in fields:
        value = body.get(field)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"Invalid '{field}': expected an integer of at least 0, got {value!r}")
        return value
    return None
