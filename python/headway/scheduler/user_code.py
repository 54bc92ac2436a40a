"""Calls into what users have written: providers, classifiers, breakers, callbacks.

Whatever it raises is contained, logged once with its origin, and counted. What is written without
`async` runs on a thread of its own, where it blocks no event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, final

from headway import _core
from headway._log import fields
from headway._secrets import redact
from headway.errors import ProviderError, RateLimiterError
from headway.scheduler._threads import Threads

_logger = logging.getLogger("headway.scheduler")

PATIENCE = 30.0
"""Seconds that a method may take before the scheduler goes on without its answer."""


@final
class UserCode:
    """Calls it, for one scheduler. Thread-safe."""

    def __init__(self, count: Callable[[str], object]) -> None:
        """count: is told whose code has raised: provider, classifier and so on."""
        self._count = count
        self.errors: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()
        self._threads: dict[str, Threads] = {}
        self._lock = threading.Lock()

    async def call(
        self,
        origin: str,
        method: Callable[..., Any],
        *args: Any,
        patience: float = PATIENCE,
        apart: str = "",
    ) -> Any:
        """What `method(*args)` gives, awaited where that is an awaitable.

        origin: as in "get_bucket_for_model of provider 'x'". Raises what is a RateLimiterError as
        it is, and anything else as a ProviderError that names the origin; it has been counted then.
        apart: names calls of one method that are not to keep the others of it waiting.
        """
        try:
            if inspect.iscoroutinefunction(method):
                given = method(*args)
            else:
                threads = self._threads_for(origin.partition(" of ")[0] + apart)
                given = await _within(patience, threads.call(lambda: method(*args)))
            if inspect.isawaitable(given):
                given = await _within(patience, given)
        except RateLimiterError as error:
            self.note(origin, error)
            raise
        except (TimeoutError, asyncio.TimeoutError) as error:
            self.note(origin, error)
            raise ProviderError(f"{origin} did not answer within {patience:g} s") from error
        except Exception as error:  # contained: this is what the method is for
            self.note(origin, error)
            raise ProviderError(f"{origin} raised {told(error)}") from error
        return given

    async def run(self, method: Callable[..., Any], *args: Any) -> Any:
        """What `method(*args)` gives, however it is written; within what is given to `call`."""
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        threads = self._threads_for(getattr(method, "__name__", "run"))
        given = await threads.call(lambda: method(*args))
        return await given if inspect.isawaitable(given) else given

    def _threads_for(self, what: str) -> Threads:
        """Those of one method: what is slow, or hangs, keeps no other method from being called."""
        with self._lock:
            threads = self._threads.get(what)
            if threads is None:
                threads = self._threads[what] = Threads(8, "headway-user")
            return threads

    async def open_mailbox(self, whose: str, pause: float) -> _core.Mailbox:
        """One by which the core asks somebody; tried again after so many seconds."""
        while True:
            try:
                return _core.Mailbox()
            except OSError as error:  # no descriptor is left, and nothing tells when one is
                self.note(f"descriptor of {whose}", error)
                await asyncio.sleep(pause)

    def call_here(self, origin: str, method: Callable[..., Any], *args: Any) -> Any:
        """The same for what must not wait: called on this thread; None where it raises."""
        try:
            return method(*args)
        except Exception as error:  # contained
            self.note(origin, error)
            return None

    def note(self, origin: str, error: BaseException) -> None:
        """Counts what `origin` has raised; the first of each kind is logged."""
        whose = origin.partition(" of ")[2].partition(" ")[0]
        self.errors[whose] += 1
        self._count(whose)
        kind = (origin, type(error).__name__)
        with self._lock:
            if kind in self._told:
                return
            if len(self._told) < 1000:
                self._told.add(kind)
        _logger.warning(
            "%s raised %s; more of the same is counted only",
            origin,
            told(error),
            extra=fields("user_code_raised", origin=origin, error=_name(error)),
        )

    def nonsense(self, origin: str, given: object, rule: str) -> ProviderError:
        """Counts and logs that `origin` gave something that it must not; the error to raise."""
        error = ProviderError(f"{origin} gave {_shown(given)}: {rule}")
        self.note(origin, error)
        return error


def method_of(owner: object, name: str) -> Callable[..., Any]:
    """The method, or one that raises what looking for it has raised."""
    try:
        return getattr(owner, name)  # type: ignore[no-any-return]
    except Exception as raised:  # contained where it is called
        error = raised

    def fails(*_: object) -> None:
        raise error

    return fails


class _GaveUp(Exception):
    """It has cancelled itself, which nobody had asked for."""


async def _within(patience: float, awaitable: Awaitable[Any]) -> Any:
    """What it gives. TimeoutError after that long, even where it does not let itself be cancelled.

    In a task of its own, so that its cancelling itself is not taken for ours.
    """
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(_seen)
    try:
        await asyncio.wait({task}, timeout=patience)
    finally:
        task.cancel()
    if not task.done():
        raise TimeoutError
    if task.cancelled():
        raise _GaveUp("it was cancelled")
    return task.result()


def _seen(task: asyncio.Future[Any]) -> None:
    """What it has raised is not for asyncio's log, where whoever waited for it has gone."""
    if not task.cancelled():
        task.exception()


def told(error: BaseException) -> str:
    """Its name and text, without what looks like a secret."""
    name = _name(error)
    try:
        text = _short(str(error), 500)
    except Exception:  # as below
        return name
    return f"{name}: {text}" if text else name


def _name(error: BaseException) -> str:
    return "CancelledError" if isinstance(error, _GaveUp) else type(error).__name__


def _shown(value: object) -> str:
    try:
        return _short(repr(value), 80)
    except Exception:  # its own repr may be what is wrong with it
        return f"a {type(value).__name__}"


def _short(text: str, most: int) -> str:
    # What is cut off first may be megabytes; what is cut off last may be a key's second half.
    text = redact(text[: 20 * most])
    return text if len(text) <= most else f"{text[:most]}…"
