"""Locks that a forked child can take: no thread of its parent's holds them for ever."""

from __future__ import annotations

import os
import threading
import weakref

_guarded: weakref.WeakKeyDictionary[object, threading.Lock] = weakref.WeakKeyDictionary()
_held: list[threading.Lock] = []


def guard(owner: object, lock: threading.Lock) -> None:
    """From now on `lock` is held by the thread that forks while it does, as long as `owner` lives.

    So what it guards is whole in the child. The thread must not hold it itself then.
    """
    _guarded[owner] = lock


def _before() -> None:
    for lock in list(_guarded.values()):
        lock.acquire()
        _held.append(lock)


def _after() -> None:
    while _held:
        _held.pop().release()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
