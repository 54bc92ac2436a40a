"""What those do who have no limiter: they send, and send again what was refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module

import openai

NAIVE = ("sdk-retries", "tenacity")
"""OpenAI's SDK as it comes, and tenacity around it in the way of OpenAI's cookbook."""


def again_by_tenacity(
    call: Callable[[int, int], Awaitable[None]],
) -> Callable[[int, int], Awaitable[None]]:
    """A call that is tried six times, after random waits of growing length."""
    library = import_module("tenacity")
    retry = library.retry(
        wait=library.wait_random_exponential(min=1, max=60),
        stop=library.stop_after_attempt(6),
        retry=library.retry_if_exception_type(openai.RateLimitError),
        reraise=True,
    )
    again: Callable[[int, int], Awaitable[None]] = retry(call)
    return again
