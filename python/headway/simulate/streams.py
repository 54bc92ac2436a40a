"""Answers in pieces: the server-sent events of a stream, and their pace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from headway.simulate.answers import Answer, usage_of, whole
from headway.simulate.http import Exchange
from headway.simulate.tokens import TokenEstimate


def events_of(
    head: Answer, words: list[str], tokens: TokenEstimate, body: dict[str, Any]
) -> list[tuple[bytes, int]]:
    """All events of the answer of `words`, and how many tokens each brings.

    Usage comes last, where `body` asks for it.
    """
    if head["object"] == "response":
        return _response_events(head, words, tokens)
    chat = head["object"] == "chat.completion"
    if chat:
        head = {**head, "object": "chat.completion.chunk"}
    options = body.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    if with_usage:
        head = {**head, "usage": None}
    pieces = [
        _piece(word if at == 0 else f" {word}", None, chat, at == 0)
        for at, word in enumerate(words)
    ]
    events = [(_event({**head, "choices": [piece]}), 1) for piece in pieces]
    finish = "length" if len(words) == tokens.maximum else "stop"
    events.append((_event({**head, "choices": [_piece("", finish, chat, False)]}), 0))
    if with_usage:
        usage = usage_of(head, len(words), tokens)
        events.append((_event({**head, "choices": [], "usage": usage}), 0))
    return [*events, (b"data: [DONE]\n\n", 0)]


class Stream:
    """Sends events one after another, `interval` seconds apart, the first one at once.

    Calls `ended` after the last one, or when the client has gone; and `produced` with how many
    tokens each brings, where that is given with it.
    """

    def __init__(
        self,
        exchange: Exchange,
        events: list[tuple[bytes, int]],
        interval: float,
        ended: Callable[[], None],
        produced: Callable[[int], None],
    ) -> None:
        self._exchange = exchange
        self._events = iter(events)
        self._left = len(events)
        self._interval = interval
        self._ended = ended
        self._produced = produced
        self._timer: asyncio.TimerHandle | None = None

    def start(self, headers: str) -> None:
        """Sends the head and the first event."""
        self._exchange.on_lost = self._lost
        self._exchange.begin(200, headers)
        self._step()

    def _step(self) -> None:
        for event, tokens in self._events:
            if tokens:
                self._produced(tokens)
            self._exchange.part(event)
            self._left -= 1
            if self._interval > 0 and self._left:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._interval, self._step)
                return
        self._exchange.on_lost = None
        self._ended()
        self._exchange.end()

    def _lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._ended()


def _piece(text: str, finish: str | None, chat: bool, first: bool) -> Answer:
    piece: Answer = {"index": 0, "logprobs": None, "finish_reason": finish}
    if not chat:
        return {**piece, "text": text}
    delta = {"content": text} if finish is None else {}
    return {**piece, "delta": {"role": "assistant", **delta} if first else delta}


def _response_events(
    head: Answer, words: list[str], tokens: TokenEstimate
) -> list[tuple[bytes, int]]:
    response = whole(head, words, tokens)
    (item,) = response["output"]
    (text,) = item["content"]
    at_item = {"output_index": 0}
    at_text = {"item_id": item["id"], **at_item, "content_index": 0}
    begun = {**head, "status": "in_progress", "output": []}
    begun_item = {**item, "status": "in_progress", "content": []}
    parts: list[Answer] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", **at_item, "item": begun_item},
        {"type": "response.content_part.added", **at_text, "part": {**text, "text": ""}},
    ]
    for at, word in enumerate(words):
        delta = word if at == 0 else f" {word}"
        parts.append({"type": "response.output_text.delta", **at_text, "delta": delta})
    parts += [
        {"type": "response.output_text.done", **at_text, "text": text["text"]},
        {"type": "response.content_part.done", **at_text, "part": text},
        {"type": "response.output_item.done", **at_item, "item": item},
        {"type": "response.completed", "response": response},
    ]
    return [
        (
            b"event: %b\n%b" % (part["type"].encode(), _event({**part, "sequence_number": at})),
            1 if part["type"] == "response.output_text.delta" else 0,
        )
        for at, part in enumerate(parts)
    ]


def _event(data: Answer) -> bytes:
    return b"data: %b\n\n" % json.dumps(data).encode()
