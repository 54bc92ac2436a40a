"""Plausible answers of a model that has nothing to say."""

from __future__ import annotations

import base64
import json
import random
import struct
from typing import Any

from headway.simulate.tokens import TokenEstimate

_MOST_WORDS = 48
_TEXT = (
    "the quick train keeps to the gap that the signal ahead allows and so it never has to stop "
    "while a slower one behind it waits its turn on the same line until the next block is free"
)
_WORDS = _TEXT.split()

Answer = dict[str, Any]


class Answers:
    """Makes answers; the same seed makes the same ones. Every token of an answer is a word."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"answers {seed}")

    def identity(self) -> str:
        """Something that tells one answer from all others."""
        return f"{self._rng.getrandbits(96):024x}"

    def request_id(self) -> str:
        """A value for x-request-id."""
        return f"req_{self._rng.getrandbits(128):032x}"

    def words(self, tokens: TokenEstimate) -> list[str]:
        """The answer's tokens: at least one where the maximum allows it, and never more."""
        most = _MOST_WORDS if tokens.maximum is None else min(tokens.maximum, _MOST_WORDS)
        start = self._rng.randrange(len(_WORDS))
        count = self._rng.randint(min(1, most), most)
        return [_WORDS[(start + at) % len(_WORDS)] for at in range(count)]

    def answer(self, path: str, body: dict[str, Any], tokens: TokenEstimate, now: int) -> Answer:
        """The answer to a POST of `body` to `path`; `now` in seconds since the epoch."""
        if path.endswith("/embeddings"):
            return self._embeddings(body, tokens)
        return whole(self.head(path, body, now), self.words(tokens), tokens)

    def head(self, path: str, body: dict[str, Any], now: int) -> Answer:
        """What every part of an answer begins with."""
        kind, prefix = "chat.completion", "chatcmpl-"
        if path.endswith("/responses"):
            kind, prefix = "response", "resp_"
        elif path.endswith("/completions") and not path.endswith("/chat/completions"):
            kind, prefix = "text_completion", "cmpl-"
        created = "created_at" if kind == "response" else "created"
        return {
            "id": f"{prefix}{self._rng.getrandbits(96):024x}",
            "object": kind,
            created: now,
            "model": model_of(body),
        }

    def _embeddings(self, body: dict[str, Any], tokens: TokenEstimate) -> Answer:
        inputs = body.get("input")
        # A list of numbers is one text, given as tokens.
        several = isinstance(inputs, list) and not all(isinstance(part, int) for part in inputs)
        size = body.get("dimensions")
        size = size if isinstance(size, int) and 0 < size <= 4096 else 8
        data: list[Answer] = []
        for index in range(len(inputs) if several and isinstance(inputs, list) else 1):
            vector: list[float] | str = [self._rng.uniform(-1.0, 1.0) for _ in range(size)]
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        return {
            "id": f"embd-{self._rng.getrandbits(96):024x}",
            "object": "list",
            "data": data,
            "model": model_of(body),
            "usage": {"prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt},
        }


def whole(head: Answer, words: list[str], tokens: TokenEstimate) -> Answer:
    """The answer of `words` in one piece, of the kind that `head` names."""
    text = " ".join(words)
    usage = usage_of(head, len(words), tokens)
    finish = "length" if len(words) == tokens.maximum else "stop"
    if head["object"] == "response":
        content = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": f"msg_{head['id'][5:]}", "status": "completed"}
        output = [{**message, "role": "assistant", "content": [content]}]
        return {**head, "status": "completed", "output": output, "usage": usage}
    choice: Answer = {"index": 0, "logprobs": None, "finish_reason": finish}
    if head["object"] == "text_completion":
        choice["text"] = text
    else:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    return {**head, "choices": [choice], "usage": usage}


def usage_of(head: Answer, words: int, tokens: TokenEstimate) -> Answer:
    """What the answer used, in the names of its kind."""
    names = ("prompt_tokens", "completion_tokens")
    if head["object"] == "response":
        names = ("input_tokens", "output_tokens")
    return {names[0]: tokens.prompt, names[1]: words, "total_tokens": tokens.prompt + words}


def model_of(body: dict[str, Any]) -> str:
    """The model that the request names."""
    model = body.get("model")
    return model if isinstance(model, str) else "simulated"


def models(names: tuple[str, ...] = ("simulated", "gpt-4o-mini")) -> Answer:
    """The answer to GET /v1/models."""
    data = [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "headway"}
        for name in names
    ]
    return {"object": "list", "data": data}


def as_json(answer: Answer) -> bytes:
    """The bytes of an answer."""
    return json.dumps(answer).encode()
