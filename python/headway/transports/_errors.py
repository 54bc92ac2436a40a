"""Errors of ours that an SDK must not take for broken connections."""

from __future__ import annotations

import contextlib
import sys
from functools import cache
from typing import Any

from headway.errors import RateLimiterError

# Of each request of the SDKs that are generated alike, OpenAI's and Anthropic's among them.
_MARK = "x-stainless-lang"


def let_through(error: RateLimiterError, request: Any) -> None:
    """Makes it one of Anthropic's, too, where that is asking.

    Their SDK takes whatever a transport raises for a connection that is broken, and asks again and
    again: but for errors of its own, which it hands on as they are.
    """
    own = getattr(sys.modules.get("anthropic"), "AnthropicError", None)
    if not isinstance(own, type) or isinstance(error, own) or _MARK not in request.headers:
        return
    with contextlib.suppress(TypeError):  # classes of another build than ours; as it is, then
        kind: Any = type(error)
        error.__class__ = _both(kind, own)


@cache
def _both(kind: Any, own: Any) -> type[RateLimiterError]:
    def reduce(error: Any) -> tuple[Any, ...]:
        return kind, error.args, error.__dict__  # as ours it survives a pickle

    described = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce__": reduce,
    }
    return type(kind.__name__, (kind, own), described)
