"""Where the core meets event loops: one mailbox a loop, and what must happen around a fork."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator
from typing import Any

from headway import _core
from headway._log import fields

_logger = logging.getLogger("headway")

# Keyed weakly: a loop's mailbox goes with its loop. The pid tells a parent's mailboxes, whose
# descriptors a forked child shares and must not touch, from its own.
_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, _core.Mailbox]] = (
    weakref.WeakKeyDictionary()
)
_limiters: weakref.WeakSet[Any] = weakref.WeakSet()


class _Done:
    """An awaitable that is satisfied already: what leaving `async with` waits for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


DONE = _Done()


def mailbox_for(loop: asyncio.AbstractEventLoop) -> _core.Mailbox:
    """The mailbox of `loop`, which is the running one; made and watched at the first call."""
    known = _mailboxes.get(loop)
    if known is not None and known[0] == os.getpid():
        return known[1]
    mailbox = _core.Mailbox()
    watch(loop, mailbox, mailbox.drain)
    _mailboxes[loop] = (os.getpid(), mailbox)
    return mailbox


def watch(
    loop: asyncio.AbstractEventLoop, mailbox: _core.Mailbox, action: Callable[[], object]
) -> Callable[[], object]:
    """Has `loop`, which is the running one, call `action` when something lies in the mailbox.

    Returns what ends that, on that loop.
    """
    descriptor = mailbox.fileno()
    try:
        loop.add_reader(descriptor, action)
    except NotImplementedError:
        # Such a loop (Windows' Proactor) can be told of things from another thread only.
        return _bridge(loop, mailbox, action)
    return lambda: loop.remove_reader(descriptor)


def _bridge(
    loop: asyncio.AbstractEventLoop, mailbox: _core.Mailbox, action: Callable[[], object]
) -> Callable[[], object]:
    """Calls it by one `call_soon_threadsafe` a batch, from a thread that only waits."""
    reference = weakref.ref(loop)
    acted = threading.Event()
    over = threading.Event()

    def act() -> None:
        if not over.is_set():
            action()
        acted.set()

    def wait() -> None:
        while True:
            mailbox.wait()
            target = reference()
            if target is None or target.is_closed() or over.is_set():
                return
            acted.clear()
            try:
                target.call_soon_threadsafe(act)
            except RuntimeError:  # closed since
                return
            del target
            # The descriptor stays readable until the loop has emptied it: wait for that.
            while not acted.wait(1.0):
                target = reference()
                if target is None or target.is_closed():
                    return
                del target

    def end() -> None:
        over.set()
        mailbox.signal()
        gone.detach()

    gone = weakref.finalize(loop, mailbox.signal)
    threading.Thread(target=wait, name="headway-bridge", daemon=True).start()
    return end


def register(limiter: object) -> None:
    """Remembers that there are limiters, for the message after a fork."""
    _limiters.add(limiter)


def _after_fork_in_child() -> None:
    _core.after_fork_in_child()
    if len(_limiters):
        _logger.warning(
            "forked: %d limiter(s) go on in process %d on their own, with what was used at the "
            "fork; two processes then share no limit",
            len(_limiters),
            os.getpid(),
            extra=fields("forked", limiters=len(_limiters)),
        )


os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
# Before the interpreter takes itself apart, so that no thread of ours is left running by then.
atexit.register(_core.stop_dispatcher)
