"""The thread that carries a process's books to Redis and back: one exchange for all who wait."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import random
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from headway import _core
from headway._core import Limit, LimiterCore
from headway._log import fields
from headway.backends.redis._books import Answer, Asks, Books
from headway.backends.redis._connect import Connector

_logger = logging.getLogger("headway.redis")

SCRIPT = resources.files(__package__).joinpath("exchange.lua").read_text("utf-8")

_MILLISECOND = 1_000_000
_SECOND = 1_000_000_000

_LOOK = 50 * _MILLISECOND
"""So often what is held is looked at, while something is: what has ended is told then."""
_LEAST_PAUSE = 10 * _MILLISECOND
_LONGEST_PAUSE = _SECOND
"""Until whoever was refused is asked for again, where nobody can tell when there will be room."""
_HORIZON = 50 * _MILLISECOND
"""So far ahead credit is asked for, at least: it may be used when its instant has come."""
GRANTED_AHEAD = 1.2 * _HORIZON / _SECOND
"""Seconds within which what an answer has granted may be used, on a quick network."""
_IDLE = _SECOND
"""Redis is told to forget a process that has held nothing for so long."""
_FIRST_BREAK = 100 * _MILLISECOND
"""Until Redis is asked again that has not answered; twice as long each time, a second at most."""


@dataclass(eq=False)
class _Entry:
    """One bucket: its books, and when something is to be done about it next."""

    name: str
    keys: list[str]
    books: Books
    wants: bool = False
    """Whether somebody waits for credit, as far as is known."""
    ask_at: int = 0
    look_at: int = 0
    told_at: int = 0
    unused: Sequence[int] = ()
    """Credit that nobody had used at the last look."""
    idle_since: int | None = None
    refusals: int = 0
    """In a row, of which nobody could say how long they will last."""
    warned: bool = False
    orphan: bool = False
    """Whether nobody has its limiter any more."""
    known: bool = False
    """Whether Redis knows this process there."""
    listeners: deque[Callable[[], object]] = dataclasses.field(default_factory=deque)
    """Whom to tell, once, that all who waited have been asked for."""


_Saying = Sequence[tuple[_Entry, Asks]]


class Courier:
    """Talks to Redis on behalf of all buckets of a backend, from a thread of its own.

    connector: makes the client, which this thread alone uses. heartbeat, key_ttl: seconds.
    Thread-safe.
    """

    def __init__(self, connector: Connector, heartbeat: float, key_ttl: float) -> None:
        self._connector = connector
        self._heartbeat = heartbeat
        self._key_ttl = key_ttl
        self._askers = _core.Askers()
        self._entries: dict[int, _Entry] = {}
        self._changes: deque[tuple[_Entry, int, Limit, bool]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._mailbox: _core.Mailbox | None = None
        self._stopping = False
        self._sha = ""
        self._rtt = 0
        self._broken_until = 0
        self._failures = 0
        self.scripts = 0
        """How many exchanges Redis was asked to make."""
        _couriers.add(self)

    def take_on(self, words: LimiterCore, name: str, keys: list[str]) -> None:
        """From now on Redis is asked for these words, as long as anybody has them or waits."""
        books = Books(_core.twin(words), self._heartbeat, self._key_ttl)
        entry = _Entry(name, keys, books)
        self._entries[_core.which(words)] = entry
        weakref.finalize(words, self._orphan, entry).atexit = False
        self._askers.add(words, _HORIZON / _SECOND)
        self._start()

    def _orphan(self, entry: _Entry) -> None:
        """Nobody has its limiter any more; who waits there, or holds something, still does."""
        entry.orphan = True
        entry.look_at = 0
        self._wake()

    def _wake(self) -> None:
        mailbox = self._mailbox
        if mailbox is not None:
            mailbox.signal()

    def books(self, words: LimiterCore) -> Books | None:
        """Those of these words, for a look."""
        entry = self._entries.get(_core.which(words))
        return None if entry is None else entry.books

    def tell_when_asked(self, words: LimiterCore, what: Callable[[], object]) -> None:
        """Calls it, in the thread, when Redis has answered for all who wait by now, or has not.

        At once where nobody will be asked for any more.
        """
        if self._stopping:
            what()
            return
        self._entries[_core.which(words)].listeners.append(what)
        self._start()
        self._wake()

    def set_limit(self, words: LimiterCore, meter: int, limit: Limit, proportional: bool) -> None:
        """It has changed here; from now on it holds for all who share it."""
        self._changes.append((self._entries[_core.which(words)], meter, limit, proportional))
        self._start()
        self._wake()

    @property
    def is_broken(self) -> bool:
        """Whether Redis has not answered when it was asked last."""
        return self._failures > 0

    def stop(self) -> None:
        """Tells Redis that nothing is held any more, and ends the thread."""
        with self._lock:
            thread = self._thread
            self._stopping = True
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> None:
        """In a forked child: the connection, the thread and what was granted are the parent's."""
        self._connector.after_fork()
        self._lock = threading.Lock()
        self._thread = self._mailbox = None
        self._askers.tell(None)
        entries = list(self._entries.values())
        for entry in entries:
            entry.books.begin_anew()
            entry.known, entry.ask_at, entry.look_at = False, 0, 0
        if entries and not self._stopping:
            self._start()

    def _start(self) -> None:
        with self._lock:
            alive = self._thread is not None and self._thread.is_alive()
            if alive or self._stopping:
                return
            self._mailbox = mailbox = _core.Mailbox()
            self._askers.tell(mailbox)
            self._thread = threading.Thread(
                target=self._run, args=(mailbox,), name="headway-redis", daemon=True
            )
            self._thread.start()

    # In the thread.

    def _run(self, mailbox: _core.Mailbox) -> None:
        client = self._connector.make()
        poll = select.poll()
        poll.register(mailbox.fileno(), select.POLLIN)
        wait: int | None = 0
        try:
            while not self._stopping:
                poll.poll(None if wait is None else -(-wait // _MILLISECOND))
                mailbox.clear()
                try:
                    wait = self._turn(client)
                except Exception:
                    # A mistake of ours must not leave all who wait without anybody who asks.
                    _logger.exception(
                        "the exchange with Redis has failed, and is tried again",
                        extra=fields("redis_exchange_failed"),
                    )
                    wait = _SECOND
            self._leave(client)
        finally:
            client.close()

    def _turn(self, client: Any) -> int | None:
        """Does all that is due; ns until the next is, None for never."""
        while self._changes:
            changed, meter, limit, proportional = self._changes.popleft()
            changed.books.set_limit(meter, limit, proportional)
            changed.look_at = 0
        for which in self._askers.take():
            asking = self._entries.get(which)
            if asking is not None:
                asking.wants = True
                if asking.refusals:  # something has moved since, and perhaps what it was for
                    asking.ask_at = min(asking.ask_at, asking.told_at + _MILLISECOND)
        now = time.monotonic_ns()
        saying = []
        heard: list[tuple[deque[Callable[[], object]], int]] = []
        for which, entry in list(self._entries.items()):
            entry.books.deposit(now)
            if entry.listeners:
                heard.append((entry.listeners, len(entry.listeners)))
                entry.wants, entry.ask_at = True, now
            asks = self._say(entry, now)
            if asks is not None:
                saying.append((entry, asks))
            elif entry.orphan and not entry.known and not entry.books.is_shared:
                del self._entries[which]
        broken = bool(saying) and now < self._broken_until
        try:
            if saying and not broken:
                self._exchange(client, saying)
        finally:
            for listeners, count in heard:
                for _ in range(count):
                    listeners.popleft()()
        return self._broken_until - now if broken else self._next()

    def _say(self, entry: _Entry, now: int) -> Asks | None:
        """What is to be asked now; None: there is nothing to say."""
        if entry.wants and now >= entry.ask_at:
            asks = entry.books.demand()
            if asks:
                return asks
            entry.wants = False
        if now < entry.look_at:
            return None
        entry.look_at = now + _LOOK
        holding = entry.books.holding()
        if holding.anything:
            entry.idle_since = None
        elif entry.idle_since is None:
            entry.idle_since = now
        unused, entry.unused = entry.unused, holding.usable
        wanted = entry.books.waited_for
        more = any(here > one for here, one in zip(holding.usable, wanted, strict=True))
        if more and unused == holding.usable:
            entry.books.give_back(wanted)  # whoever it was for has given up, or cannot go yet
            entry.unused = ()
            entry.wants, entry.ask_at = True, now  # somebody may have come meanwhile
            return ()
        if entry.books.has_news(holding):
            return ()
        if not entry.known:
            return None
        beats = holding.anything and now - entry.told_at >= self._heartbeat * _SECOND / 2
        return () if beats or self._leaves(entry, now) else None

    def _leaves(self, entry: _Entry, now: int) -> bool:
        idle = entry.idle_since is not None and now - entry.idle_since >= _IDLE
        return idle and entry.known and not entry.wants

    def _next(self) -> int | None:
        waits = []
        for entry in list(self._entries.values()):
            due = entry.books.next_due
            if due is not None:
                waits.append(due)
            if entry.wants:
                waits.append(entry.ask_at)
            if entry.known or entry.orphan:
                waits.append(entry.look_at)
        return max(0, min(waits) - time.monotonic_ns()) if waits else None

    def _exchange(self, client: Any, saying: _Saying, *, stops: bool = False) -> None:
        """Tells all of that at once, and takes in what Redis answers."""
        pool = client.connection_pool
        try:
            # Connected, if it is not any more: it is known then which server this is.
            pool.release(pool.get_connection())
            sent = time.monotonic_ns()
            horizon = max(_HORIZON, 4 * self._rtt)
            server = self._connector.run_id
            messages = []
            for entry, asks in saying:
                leaves = stops or (not asks and self._leaves(entry, sent))
                messages.append(entry.books.message(sent, asks, horizon, server, leaves=leaves))
            answers = self._call(client, [entry.keys for entry, _ in saying], messages)
        except (RedisError, OSError) as error:
            self._failed(error)
            return
        now = time.monotonic_ns()
        self._rtt = now - sent if self._rtt == 0 else (7 * self._rtt + now - sent) // 8
        for (entry, asks), text in zip(saying, answers, strict=True):
            if isinstance(text, Exception):
                self._failed(text)
            else:
                self._answered(entry, asks, entry.books.answered(text, now), now)

    def _answered(self, entry: _Entry, asks: Asks, answer: Answer, now: int) -> None:
        if self._failures:
            self._failures = 0
            _logger.warning("Redis answers again", extra=fields("redis_back"))
        entry.told_at = now
        entry.known = not answer.left and not answer.lost
        if answer.adopted or answer.differs:
            self._tell_of_others(entry, answer)
        if answer.lost:
            entry.wants = True  # perhaps: who waits is looked for
            entry.ask_at = now + (_SECOND if answer.differs else 0)
            entry.look_at = entry.ask_at
        elif asks:
            entry.books.deposit(now)
            entry.look_at = min(entry.look_at, now + _LOOK)
            entry.idle_since = None
            if answer.granted:
                entry.refusals = 0
            if answer.wait is None:
                entry.refusals = min(entry.refusals + 1, 16)
                longest = min(_LEAST_PAUSE * 2**entry.refusals, _LONGEST_PAUSE)
                entry.ask_at = now + int(longest * (0.5 + random.random() / 2))
            else:
                # So early that the answer is there when what was granted has been used.
                early = max(_HORIZON // 2, 2 * self._rtt) if answer.granted else 0
                entry.ask_at = now + max(0, answer.wait - early)

    def _tell_of_others(self, entry: _Entry, answer: Answer) -> None:
        limits = ", ".join(map(str, entry.books.limits.values()))
        if answer.adopted:
            _logger.warning(
                "limiter %r has other limits in Redis, which hold for all who share it: %s",
                entry.name,
                limits,
                extra=fields("shared_limits_adopted", limiter=entry.name),
            )
        elif not entry.warned:
            entry.warned = True
            _logger.error(
                "limiter %r: others keep limits of other kinds or periods in Redis under that "
                "name, so nothing is admitted by: %s",
                entry.name,
                limits,
                extra=fields("shared_limits_differ", limiter=entry.name),
            )

    def _failed(self, error: Exception) -> None:
        pause = min(_FIRST_BREAK * 2 ** min(self._failures, 4), _SECOND)
        self._broken_until = time.monotonic_ns() + pause
        self._failures += 1
        if self._failures == 1:
            # Not what it says: a message of a client may hold what it was made with.
            kind = type(error).__name__
            _logger.warning(
                "Redis does not answer (%s): nothing is admitted until it does",
                kind,
                extra=fields("redis_lost", error=kind),
            )

    def _call(self, client: Any, keys: list[list[str]], messages: list[str]) -> list[Any]:
        """The script, once for each; an error in the place of an answer is that one's alone."""
        if not self._sha:
            self._sha = client.script_load(SCRIPT)
        self.scripts += len(messages)
        pipeline = client.pipeline(transaction=False)
        for each, message in zip(keys, messages, strict=True):
            pipeline.evalsha(self._sha, len(each), *each, message, "")
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        for i, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):  # another server, or a flushed one
                answers[i] = client.eval(SCRIPT, len(keys[i]), *keys[i], messages[i], "")
        return answers

    def _leave(self, client: Any) -> None:
        saying: list[tuple[_Entry, Asks]] = []
        for entry in list(self._entries.values()):
            entry.books.give_back()
            if entry.known:
                saying.append((entry, ()))
        if saying:
            self._exchange(client, saying, stops=True)


_couriers: weakref.WeakSet[Courier] = weakref.WeakSet()


def _after_fork() -> None:
    for courier in list(_couriers):
        courier.after_fork()


def _at_exit() -> None:
    for courier in list(_couriers):
        courier.stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
