"""What a request to a model asks: which model, and how much of each resource."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final
from urllib.parse import unquote

from headway import Limit
from headway._tokens import estimate_tokens, input_tokens, most_output_tokens
from headway.providers.table import ProviderTable
from headway.types import AUDIO, EMBEDDING, GENERIC, IMAGE, TEXT, ResourceType

READ_ONLY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
LARGEST = 2**25
"""Bytes of a body that are read; a larger one is passed on as it comes."""
CLAMPS = 3
"""How often a request is made to fit, where a limit was learnt while it waited."""
HOLD = 60.0
"""Seconds for which others wait for the first answer: a request of HTTP waits for none of them."""
_FORM = 2**16
# A form's fields come before its files in what clients write.
_MODEL_FIELD = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
_KINDS = (("/embeddings", EMBEDDING), ("/images/", IMAGE), ("/audio/", AUDIO))
# How each is estimated where a table does not say.
_RESERVED = {"tokens": "largest", "input_tokens": "input", "output_tokens": "expected"}
_FIRST_GUESS = 256
_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Asked:
    """Of one request. text: what goes in, in tokens. counted: as OpenAI counts it. most: what may
    come out at most, 0 where it does not say."""

    model: str
    kind: ResourceType
    text: int
    counted: int
    most: int


def read_request(method: str, path: str, content: bytes) -> Asked | None:
    """What a request asks, by its path and its body, JSON or a form; None where it asks no model.

    Counting tokens beforehand has limits of its own that nobody tells.
    """
    if method.upper() in READ_ONLY or path.endswith("/count_tokens"):
        return None
    body: dict[str, Any] = {}
    if len(content) <= LARGEST and content[:64].lstrip()[:1] == b"{":
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None  # the provider will say what is wrong with it
        body = found if isinstance(found, dict) else {}
    named = body.get("model")
    model = named if isinstance(named, str) and named else _model_in(path)
    if model is None and content[:2] == b"--":
        field = _MODEL_FIELD.search(content, 0, _FORM)
        model = None if field is None else field.group(1).decode(errors="replace")
    if model is None:
        return None
    return asked_of_model(model, path, body)


def asked_of_model(model: str, path: str, body: Mapping[str, Any]) -> Asked:
    """What a JSON body asks of a model."""
    kind = next((kind for part, kind in _KINDS if part in f"{path}/"), TEXT)
    return Asked(
        model, kind, input_tokens(body), estimate_tokens(path, body), most_output_tokens(body)
    )


def asked_of_host(host: str) -> Asked:
    """A request to an API that has no models: all of a host's are counted together."""
    return Asked(host, GENERIC, 0, 0, 0)


def _model_in(path: str) -> str | None:
    """Azure's `/deployments/NAME/…`, Gemini's `/models/NAME:…`, Bedrock's `/model/NAME/invoke…`."""
    for before, behind in (("/deployments/", ""), ("/models/", ":"), ("/model/", "/")):
        _, found, rest = path.partition(before)
        if found and behind in rest:
            name = rest.partition("/")[0]
            return unquote(name if before == "/model/" else name.partition(":")[0]) or None
    return None


@final
class Outputs:
    """How many tokens answers have, by model: so many are reserved where they are counted apart.

    What a request says that it may need at most is often many times that, and more than a whole
    minute's limit; Anthropic, who counts them apart, does not look at it:
    https://platform.claude.com/docs/en/api/rate-limits. Thread-safe.
    """

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}
        self._lock = threading.Lock()

    def expected(self, asked: Asked) -> int:
        """Tokens that its answer is likely to have."""
        mean = self._mean.get(asked.model, _FIRST_GUESS)
        return max(1, round(min(mean, asked.most) if asked.most else mean))

    def note(self, model: str, tokens: int | None) -> None:
        """An answer of this model had so many."""
        if tokens is None:
            return
        with self._lock:
            if len(self._mean) >= 1000 and model not in self._mean:
                self._mean.clear()  # names come from outside
            mean = self._mean.get(model)
            self._mean[model] = tokens if mean is None else mean + _WEIGHT * (tokens - mean)


def cost_of(asked: Asked, table: ProviderTable, outputs: Outputs) -> dict[str, int]:
    """What a request is likely to count, by resource, as its provider's table says."""
    comes_out = outputs.expected(asked) if asked.kind == TEXT else 0
    ways = {
        "largest": asked.counted,
        "sum": asked.text + asked.most,
        "input": asked.text,
        "output": asked.most or comes_out,
        "expected": comes_out,
    }
    return {
        "requests": 1,
        **{name: ways[table.reserves(name) or way] for name, way in _RESERVED.items()},
    }


def clamp(cost: dict[str, int], limits: Iterable[Limit]) -> None:
    """What is only an estimate makes no request impossible: its provider is asked."""
    for limit in limits:
        most = limit.amount if limit.burst is None else limit.burst
        if limit.resource in cost and limit.shape != "concurrency":
            cost[limit.resource] = min(cost[limit.resource], most)
