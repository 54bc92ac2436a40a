"""What a request counts in tokens, before it is sent, and what an answer says was used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, final

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
# What a model is told that it may call, and in which form to answer: of this, names count, too.
_SCHEMAS = ("tools", "functions", "response_format")
_MOST = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# So many answers are made of one request, each as long as one may be; `best_of` gives the best.
_ANSWERS = ("n", "best_of")
_MOST_ANSWERS = 1_000
_COMPLETIONS_DEFAULT = 16
_LARGEST = 2**53

_IN = ("input_tokens", "prompt_tokens", "promptTokenCount", "prompt_token_count")
_OUT = ("output_tokens", "completion_tokens", "candidatesTokenCount", "candidates_token_count")
_THOUGHTS = ("thoughtsTokenCount", "thoughts_token_count")
_TOTAL = ("total_tokens", "totalTokenCount", "total_token_count")
_CACHED = ("cache_read_input_tokens", "cachedContentTokenCount", "cached_content_token_count")
# OpenAI's, which hold `cached_tokens`; Gemini's of the same name say other things.
_DETAILS = ("input_tokens_details", "prompt_tokens_details")
_WRITTEN = "cache_creation_input_tokens"
_AMOUNTS = (*_IN, *_OUT, *_THOUGHTS, *_TOTAL, *_CACHED, *_DETAILS, _WRITTEN)

_USAGES = ("usage", "usage_metadata", "usageMetadata")
# Parts of a chunk that may say it for all: of Anthropic's, of OpenAI's, and of OpenAI's helpers.
_PARTS = ("message", "response", "chunk")


def estimate_tokens(url: str, body: Mapping[str, Any]) -> int:
    """What the request counts against a limit of tokens, at least 1.

    As OpenAI counts when a request arrives: the larger of what it may answer at most and a quarter
    of the characters of its text, not their sum. A number in a list of text is a token already.
    `/completions` answers 16 tokens at most unless told otherwise.
    """
    most = most_output_tokens(body)
    path = url.partition("?")[0]
    if most == 0 and path.endswith("/completions") and not path.endswith("/chat/completions"):
        most = _COMPLETIONS_DEFAULT * _answers(body)
    return max(most, input_tokens(body))


def read_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """Tokens by resource, as an answer's `usage` says: of OpenAI, Anthropic or Gemini.

    Of what went in, Anthropic tells apart what it writes to its cache, which counts, and what it
    reads from it, which does not: https://platform.claude.com/docs/en/api/rate-limits. OpenAI and
    Gemini have what was read from a cache within what went in, and it counts. In both ways it is
    `cached_tokens`, too. Gemini tells thoughts apart from answers, and both count.
    """

    def first(names: tuple[str, ...]) -> int | None:
        return next((n for n in (_told(usage.get(name)) for name in names) if n is not None), None)

    went_in = first(_IN)
    if went_in is not None:
        went_in += _told(usage.get(_WRITTEN)) or 0
    came_out = first(_OUT)
    thoughts = first(_THOUGHTS)
    if thoughts is not None:
        came_out = (came_out or 0) + thoughts
    total = first(_TOTAL)
    if total is None and went_in is not None and came_out is not None:
        total = went_in + came_out
    cached = first(_CACHED)
    if cached is None:
        told = (_cached_in(usage.get(name)) for name in _DETAILS)
        cached = next((n for n in told if n is not None), None)
    found = {
        "tokens": total,
        "input_tokens": went_in,
        "output_tokens": came_out,
        "cached_tokens": cached,
    }
    return {resource: amount for resource, amount in found.items() if amount is not None}


def odd_usage(usage: Mapping[str, Any]) -> int:
    """How many amounts of an answer's `usage` are none that anybody could read."""
    amounts = (usage.get(name) for name in _AMOUNTS if name not in _DETAILS)
    return sum(amount is not None and _told(amount) is None for amount in amounts)


@final
class ChunkReader:
    """Finds what the chunks of a stream say it used: an SDK's objects, or dicts.

    As UsageReader finds it in bytes: at the top of a chunk, or in its `message` or `response`. Of
    what is told several times, the last counts.
    """

    __slots__ = ("_found", "_heard", "_kind", "_names", "whole")

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._heard = False
        # Of the last chunk: the next one is most likely of the same type.
        self._kind: type = dict
        self._names = _names_of(dict)
        self.whole = False
        """Whether nothing comes any more."""

    def hear(self, chunk: Any) -> bool:
        """Whether it says anything of the use. Never raises for what it holds."""
        self._heard = False
        try:
            kind = type(chunk)
            if kind is not self._kind:
                self._kind, self._names = kind, _names_of(kind)
            keyed, asked, _ = self._names
            if keyed:
                for name in asked:
                    # Most are not there, and to see that is quicker than to ask for them.
                    if name in chunk and chunk[name] is not None:
                        self._hear_of(name, chunk[name])
            else:
                for name in asked:
                    said = getattr(chunk, name, None)
                    if said is not None:
                        self._hear_of(name, said)
        except Exception:  # a property of somebody else's chunk may raise anything
            return self._heard
        return self._heard

    def _hear_of(self, name: str, said: Any) -> None:
        if name in _USAGES:
            self._take(said)
            return
        keyed, asked, _ = _names_of(type(said))
        for usage_name in asked:
            if usage_name in _USAGES:
                usage = said.get(usage_name) if keyed else getattr(said, usage_name, None)
                if usage is not None:
                    self._take(usage)

    def read(self) -> dict[str, int]:
        """Tokens by resource; empty where nothing is said of them."""
        return read_usage(self._found)

    @property
    def odd(self) -> int:
        """How many amounts cannot be read."""
        return odd_usage(self._found)

    @property
    def total(self) -> object:
        """All of them in the words of the stream; None where it has no word for that."""
        found = self._found
        for name in _TOTAL:
            if name in found:
                return found[name]
        return None

    def _take(self, usage: Any) -> None:
        self._heard = True
        found = self._found
        keyed, _, names = _names_of(type(usage))
        for name in names:
            amount = usage.get(name) if keyed else getattr(usage, name, None)
            if amount is not None:
                found[name] = amount


def _find_names(kind: type) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Whether a type's objects have keys; which usages and parts, and amounts, they may have.

    A pydantic model is asked for its fields only: to be told that it has none of a name takes long.
    """
    if issubclass(kind, Mapping):
        return True, _USAGES + _PARTS, _AMOUNTS
    fields = getattr(kind, "model_fields", None)
    if not isinstance(fields, Mapping):
        if kind.__dictoffset__ or hasattr(kind, "__getattr__"):
            return False, _USAGES + _PARTS, _AMOUNTS
        fields = {}
    asked, amounts = (
        tuple(name for name in names if name in fields or hasattr(kind, name))
        for names in (_USAGES + _PARTS, _AMOUNTS)
    )
    return False, asked, amounts


_names_of: Callable[[Any], tuple[bool, tuple[str, ...], tuple[str, ...]]]
_names_of = lru_cache(256)(_find_names)


def used_tokens(body: object) -> int:
    """The tokens that an answer says it took: its `usage`; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return 0
    used = read_usage(usage)
    return used.get("tokens") or used.get("input_tokens", 0) + used.get("output_tokens", 0)


def input_tokens(body: Mapping[str, Any]) -> int:
    """What goes in of a request, at least 1: a quarter of the characters of its text.

    With what it may call, and the form of its answer, by names and descriptions.
    """
    return max(1, -(-_characters(body) // 4))


def most_output_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens its answers may have at most, all together; 0 where the request does not say.

    Of `n` of them, or of the `best_of` that are made, each may be as long: so says Azure's guide to
    quotas of `best_of`, and OpenAI's cookbook reckons (api_request_parallel_processor.py).
    """
    most = max((_amount(body.get(name)) for name in _MOST), default=0)
    settings = body.get("generationConfig")
    if most == 0 and isinstance(settings, Mapping):
        most = _amount(settings.get("maxOutputTokens"))
    return min(most * _answers(body), _LARGEST)


def _answers(body: Mapping[str, Any]) -> int:
    """How many answers are made of one request."""
    settings = body.get("generationConfig")
    told = settings.get("candidateCount") if isinstance(settings, Mapping) else None
    many = max(_amount(told), *(_amount(body.get(name)) for name in _ANSWERS))
    return min(max(1, many), _MOST_ANSWERS)


def _characters(body: Mapping[str, Any]) -> int:
    """Characters of text, without roles, types, names, ids, pictures, sounds and files."""
    count = sum(_characters_of_all(body[name]) for name in _SCHEMAS if name in body)
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


def _characters_of_all(schema: object) -> int:
    """Characters of all that is said, names included."""
    count = 0
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, dict):
            stack.extend(part)
            stack.extend(part.values())
    return count


def _amount(value: object) -> int:
    """`value` if it is a number of tokens, else 0: the provider will say what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return 0
    return min(value, _LARGEST)


def _cached_in(details: Any) -> int | None:
    try:
        if isinstance(details, Mapping):
            return _told(details.get("cached_tokens"))
        return _told(getattr(details, "cached_tokens", None))
    except Exception:  # somebody else's object
        return None


def _told(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST:
        return value
    return None
