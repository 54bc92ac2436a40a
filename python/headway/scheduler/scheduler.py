"""Scheduler: sends each of an application's calls at the first instant at which it may go."""

from __future__ import annotations

import asyncio
import math
import os
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from headway import _core
from headway._core import Limit, ManualClock, Reservation
from headway.backends import BaseBackend, MemoryBackend
from headway.backends._shared import Shared
from headway.errors import (
    CapacityExceededError,
    ConfigurationError,
    QueueOverflowError,
    RateLimiterError,
    SchedulerStoppedError,
)
from headway.limiter import Explanation
from headway.metrics import publish
from headway.providers import ProviderInterface, ProviderTable, provider_tables
from headway.scheduler import _rules as rules
from headway.scheduler.accounts import Account, read_accounts
from headway.scheduler.answers import look
from headway.scheduler.arguments import (
    check_arguments,
    check_memory,
    check_metadata,
    read_types,
)
from headway.scheduler.base import DRAIN_TIMEOUT, BaseScheduler
from headway.scheduler.buckets import (
    Bucket,
    Buckets,
    GivenLimits,
    LearntLimits,
    read_learnt,
    read_limits,
)
from headway.scheduler.choice import read_strategy
from headway.scheduler.chores import Chores, running_loop
from headway.scheduler.config import RateLimiterConfig, SchedulerMode, StateConfig
from headway.scheduler.handle import Handle, Preview
from headway.scheduler.life import Life
from headway.scheduler.observations import Observations
from headway.scheduler.open_streams import STREAM_PATIENCE, OpenStreams
from headway.scheduler.outlook import Outlook
from headway.scheduler.questions import Questions
from headway.scheduler.refusals import Refusals
from headway.scheduler.remote import Supply
from headway.scheduler.routes import Routes
from headway.scheduler.user_code import UserCode
from headway.scheduler.verdicts import Verdicts
from headway.types import RequestMetadata

if TYPE_CHECKING:
    from headway.scheduler.blocking import BlockingCall

_T = TypeVar("_T")

_all: weakref.WeakSet[Scheduler] = weakref.WeakSet()
"""A note for the fork handler."""


class Scheduler(_core.SchedulerCore, BaseScheduler):
    """Sends each request at the first instant at which no limit is in its way.

    client: what makes the calls. Its time-out and headers are its own affair, nobody reads them.
    See `create_scheduler` for the parameters, RateLimiterConfig for the options.

    Any number of event loops and threads may submit at once. It may be started and stopped any
    number of times, and used from several `asyncio.run` one after another. After a fork the child's
    is stopped and empty.
    """

    def __init__(  # noqa: PLR0917 - the order is promised
        self,
        client: Any,
        config: RateLimiterConfig | None = None,
        provider: ProviderInterface | ProviderTable | str | None = None,
        classifier: Any = None,
        state_manager: Any = None,
        scheduling_strategy: Any = None,
        test_rate_multiplier: float = 1.0,
        metrics_enabled: bool = False,
        default_rate_limits: Any = None,
        *,
        backend: Any = None,
        state_config: Any = None,
        limits: GivenLimits | None = None,
        learnt_limits: LearntLimits | None = None,
        accounts: Mapping[str, float | Account] | None = None,
        clock: ManualClock | None = None,
        retry_on: Iterable[type[BaseException]] = (),
    ) -> None:
        config = RateLimiterConfig() if config is None else config
        known = provider_tables().get(provider) if isinstance(provider, str) else provider
        table = known if isinstance(known, ProviderTable) else None
        own = None if table is not None else provider
        check_arguments(
            config,
            own,
            test_rate_multiplier,
            metrics_enabled,
            state_config,
            clock,
            classifier,
            state_manager,
            scheduling_strategy,
        )
        retried = read_types(retry_on)
        config.validate()
        super().__init__(config.max_concurrent_executions, clock)
        self.client = client
        self.config = config
        self.classifier = classifier
        self.state_manager = state_manager
        self.scheduling_strategy = read_strategy(scheduling_strategy)
        self.provider: ProviderInterface | None = cast("ProviderInterface | None", own)
        if provider is None and state_manager is not None:
            self.provider = getattr(state_manager, "provider", None)
        self.mode = SchedulerMode.parse(config.mode)
        self._has_table = table is not None
        # Whether a transport of ours sends requests with it, so that headers will be seen.
        self._hears_transport = False
        self.metrics_enabled = metrics_enabled or config.metrics_enabled
        self.backend = self._backend_of(backend, state_manager, clock)
        # Of a user's own backend, what is local is kept beside it: concurrency, accounts, numbers.
        self._remote: Supply | None = None
        if isinstance(self.backend, Shared):
            self._words = self.backend
        else:
            self._words = MemoryBackend(clock=clock)
            self._remote = Supply(self, self.backend)
        self.state_config = state_config
        self._questions = Questions(self)
        self._verdicts = Verdicts(self, retried)
        self._observations = Observations(self, table)
        self._streams = OpenStreams(self, self._stream_patience())
        self._outlook = Outlook(self)
        self._circuit_breaker: Any = None
        self._user_code = UserCode(self._count_error)
        self._life = Life(self)
        self._events: Counter[str] = Counter()
        self._refusals = Refusals(self)
        self._verdict_counts: Counter[str] = Counter()
        # Threads' requests; and those of them that are not in their function, which is not stopped.
        self._blocking: set[BlockingCall] = set()
        self._on_way: set[BlockingCall] = set()
        self._handled: set[asyncio.Task[Any]] = set()
        self._accounts = read_accounts(accounts)
        given = read_limits(limits if limits is not None else default_rate_limits)
        multiplier = test_rate_multiplier
        if config.test_mode:
            multiplier *= config.test_rate_multiplier
        self.test_rate_multiplier = multiplier
        self._buckets = Buckets(
            self,
            self._words,
            given,
            ratio=config.rate_limit_buffer_ratio,
            multiplier=multiplier,
            limited=config.enable_rate_limiting,
            learns=config.enable_rate_limiting and self.mode is not SchedulerMode.BASIC,
            learnt=read_learnt(learnt_limits),
            label=self._label() if self.metrics_enabled else None,
            most_failures=config.max_failures,
            failure_window=config.failure_window,
        )
        self._find = Routes(
            self._routes,
            self._buckets,
            self.provider,
            self._user_code,
            self._questions.provider_name,
            table=self._observations.table,
        )
        if self.metrics_enabled:
            self._count_errors(self._label())
            publish()
        self._apply_options()
        self._make_accounts()
        _all.add(self)

    # -- what it is made of ----------------------------------------------------------------------

    @staticmethod
    def _backend_of(backend: Any, state_manager: Any, clock: ManualClock | None) -> BaseBackend:
        chosen = backend if backend is not None else getattr(state_manager, "backend", None)
        if chosen is None:
            return MemoryBackend(clock=clock)
        if not isinstance(chosen, BaseBackend):
            # Not its repr: people pass URLs, with the password in them.
            raise ConfigurationError(
                f"backend: must be a BaseBackend, not a {type(chosen).__name__}"
            )
        if isinstance(chosen, MemoryBackend):
            check_memory(chosen)
        if isinstance(chosen, Shared) and clock is not None and chosen.clock is not clock:
            raise ConfigurationError("clock: must be that of the backend")
        return chosen

    def _label(self) -> str:
        """What it is called in metrics."""
        namespace = getattr(self._states_options()[1], "namespace", None)
        return namespace if isinstance(namespace, str) else "default"

    def _stream_patience(self) -> float:
        """For how many seconds a stream may be left unread."""
        config = self._states_options()[1]
        return STREAM_PATIENCE if config is None else config.reservation_ttl

    def _states_options(self) -> tuple[str, StateConfig | None]:
        """Its own, or else its manager's, and whose they are."""
        if self.state_config is not None:
            return "state_config", self.state_config
        config = getattr(self.state_manager, "config", None)
        return "state_manager.config", config if isinstance(config, StateConfig) else None

    def _apply_options(self, warn: bool = True) -> None:
        config = self.config
        basic = self.mode is SchedulerMode.BASIC
        self._configure(
            request_timeout=config.request_timeout,
            max_queue_size=config.max_queue_size,
            overflow_policy=config.overflow_policy,
            priorities=config.enable_priority_scheduling and not basic,
            accounts=self.mode is SchedulerMode.ACCOUNT,
            # What a user's own backend could never admit is seen before it is asked.
            prepares=self._circuit_breaker is not None or self._remote is not None,
            ageing=config.priority_ageing,
            tells=self.scheduling_strategy is not None,
        )
        unused = list(config.unused())
        whose, states = self._states_options()
        if states is not None:
            unused += [f"{whose}.{name}" for name in states.unused()]
        if self._accounts and self.mode is not SchedulerMode.ACCOUNT:
            unused.append(f"accounts (in mode {self.mode.value})")
        if self._buckets.recalls_nothing:
            unused.append("learnt_limits (where no limits are learnt)")
        if self.provider is not None and basic:
            unused.append("the provider's limits (in mode basic; its buckets have)")
        if unused and warn:
            warnings.warn(
                f"these options have no meaning in headway: {', '.join(unused)}",
                UserWarning,
                stacklevel=4,
            )

    def _make_accounts(self) -> None:
        for account in self._accounts.values():
            self._words.number(*(limit.resource for limit in _limits_of(account)))
        for client_id, account in self._accounts.items():
            limits = _limits_of(account)
            own = _core.LimiterCore(limits, self._words.clock, self._words.resources)
            self._set_account(client_id, float(account.weight), own if limits else None)
            if limits:
                self._outlook.know_account(client_id, own)

    def _asks_first(self) -> float:
        """Seconds for which one request goes alone to find limits out: 0 where no answer will tell.

        A function may be waiting for others, such as one that it submits itself. A transport, whose
        request waits for nobody, asks for more.
        """
        tells = self._hears_transport or self.provider is not None or self._has_table
        return 5.0 if tells or look(self.client, "base_url") is not None else 0.0

    @property
    def circuit_breaker(self) -> Any:
        """The user's own; its `async can_execute(model_id)` is asked for each request. Or None."""
        return self._circuit_breaker

    @circuit_breaker.setter
    def circuit_breaker(self, breaker: Any) -> None:
        self._circuit_breaker = breaker
        self._apply_options(warn=False)

    @property
    def _chores(self) -> Chores:
        return self._life.chores

    def __repr__(self) -> str:
        state = "running" if self._runs else "stopped"
        return f"<headway.Scheduler {self.mode.value} {state}, {len(self._buckets)} buckets>"

    # -- its life --------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether it takes requests, in this process."""
        return self._runs

    async def start(self) -> None:
        """Makes it take requests: starts the backend, asks the provider for its limits.

        Does nothing where it runs already; waits for a start or a stop that is under way. Raises
        what the backend's start raises, and is not running then.
        """
        await self._life.start()

    def start_sync(self) -> None:
        """As `start`, from a thread; the provider's methods run on a loop of its own."""
        self._life.start_sync()

    async def _on_start(self) -> None:
        """For subclasses: called while it starts, before it takes requests."""

    async def _on_stop(self) -> None:
        """For subclasses: called when it has stopped."""

    async def stop(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """Takes nothing new and lets queued and running work go on for `drain_timeout` seconds.

        Then what waits fails and what runs is cancelled; each awaiter gets SchedulerStoppedError. A
        function that runs in a thread of its caller's own is not stopped, nor waited for, nor is a
        stream that its caller has in hand. May be called from any loop, and again: all wait for the
        end, and the shortest `drain_timeout` holds. Cancelled, it tells them at once, and still
        ends the backend. It can be started again afterwards.
        """
        await self._life.stop(drain_timeout)

    def stop_sync(self, drain_timeout: float = DRAIN_TIMEOUT) -> None:
        """As `stop`, from a thread."""
        self._life.stop_sync(drain_timeout)

    def _after_fork(self) -> None:
        """In the child: stopped, empty, and with nothing of its parent's."""
        self._reset(self.config.max_concurrent_executions)
        self._life.close_server()
        self._life = Life(self)
        if self._remote is not None:
            self._remote.is_open = False  # its grants are the parent's
            self._remote = Supply(self, self.backend)
        for blocked in self._blocking:
            blocked.stopped = True  # where the fork was in its function, it tries no more
        self._blocking.clear()
        self._on_way.clear()
        self._events.clear()
        self._verdict_counts.clear()
        self._verdicts.after_fork()
        self._buckets.forget_all()
        self._words.after_fork()
        self._outlook = Outlook(self)
        self._streams = OpenStreams(self, self._streams.patience)
        self._make_accounts()
        self._user_code = UserCode(self._count_error)
        self._find = Routes(
            self._routes,
            self._buckets,
            self.provider,
            self._user_code,
            self._questions.provider_name,
            table=self._observations.table,
        )

    # -- requests --------------------------------------------------------------------------------

    def submit(
        self,
        metadata: RequestMetadata,
        request_func: Callable[[], Awaitable[Any]] | _core.WithReservation,
    ) -> Handle:
        """Sends a request on its way, on the running event loop, and gives a handle to it."""
        if not _in_loop():
            raise RuntimeError("submit() needs a running event loop: threads use submit_sync()")
        if not self._runs:
            raise SchedulerStoppedError("Scheduler is not running")
        call = self.submit_request(metadata, request_func)
        call._enlist()
        start: float | None = None
        try:
            bucket = None if isinstance(metadata, dict) else self._find.known(metadata)
            if bucket is not None:
                start = self._outlook.submitted(bucket, metadata)
        except RateLimiterError:
            start = None  # awaiting the handle raises it
        except BaseException:
            call.close()
            raise
        return Handle(self, metadata, call, start)

    def submit_sync(
        self,
        metadata: RequestMetadata,
        request_func: Callable[[], _T] | _core.WithReservation,
    ) -> _T:
        """Waits for its turn, calls `request_func()` in this thread, and gives what that gave.

        The function's time is not bounded: `timeout` and `request_timeout` are for what can be
        cancelled. RuntimeError on an event loop's thread, which it would block.
        """
        from headway.scheduler.blocking import submit_sync

        return submit_sync(self, metadata, request_func)

    def estimate(self, metadata: RequestMetadata) -> float | None:
        """Seconds until such a request would be admitted now; None where that cannot be told.

        That is where only answers can tell, as with `max_concurrent_executions` under way, or only
        the provider (which bucket?) or a backend of the user's own.
        """
        bucket = None if isinstance(metadata, dict) else self._find.known(metadata)
        if bucket is None:
            return None
        wait = self._outlook.turn(bucket, metadata).wait
        return None if wait is None else float(wait)

    def explain(self, metadata: RequestMetadata) -> Explanation | None:
        """What its bucket would do with such a request now, and why. None: no bucket known yet."""
        bucket = self._find.known(metadata)
        if bucket is None:
            return None
        return self._outlook.explanation(bucket, metadata)

    def preview(self, costs: Iterable[RequestMetadata]) -> Preview:
        """When all of these would have been admitted, if they were submitted now.

        costs: the metadata of each request. Only what is known is looked at: a provider is not
        asked. Nothing is taken.
        """
        return self._outlook.preview(costs)

    async def schedule_rate_limit_reset(self, bucket_id: str, reset_timestamp: float) -> None:
        """Admits nothing in this bucket before that instant, seconds since the epoch."""
        if not rules.is_number(reset_timestamp) or math.isnan(reset_timestamp):
            raise ConfigurationError(
                f"reset_timestamp {reset_timestamp!r}: must be a number of seconds since the epoch"
            )
        wait = reset_timestamp - time.time()
        if wait > 0:
            self._buckets.make_unlisted(bucket_id).cool(min(wait, 1e9))

    # -- what the core asks ----------------------------------------------------------------------

    async def _prepare(self, given: Any) -> tuple[Any, Bucket]:
        """A request's metadata, and its bucket."""
        classified = isinstance(given, dict)
        metadata = await self._questions.classify(given) if classified else given
        check_metadata(metadata)
        breaker = self._circuit_breaker
        if breaker is not None:
            await self._questions.ask_breaker(breaker, metadata)
        if self.provider is not None and not self._chores.loop_runs:
            self._life.adopt_chores()
        bucket = self._find.known(metadata)
        if bucket is None:  # its provider is to be asked, which is of one loop
            bucket = await self._chores.at_home(lambda: self._find.find(metadata))
        if classified:
            self._questions.check_classified(bucket, metadata)
        self._check_granted(bucket, metadata)
        return metadata, bucket

    def _admit(
        self, bucket: _core.BucketCore, metadata: Any, submitted: int, retry: bool, call: Any, /
    ) -> tuple[Reservation, tuple[int, ...]]:
        """For a thread; see SchedulerCore."""
        if not retry and isinstance(bucket, Bucket):
            self._check_granted(bucket, metadata)
        return super()._admit(bucket, metadata, submitted, retry, call)

    def _check_granted(self, bucket: Bucket, metadata: Any) -> None:
        """CapacityExceededError for what a user's own backend can never grant, by its limits.

        It would refuse for ever, and nothing in its answer says so.
        """
        if bucket.remote is None:
            return
        *_, amounts = self._estimate(bucket, metadata, None)
        found = self._buckets.too_large(bucket, amounts)
        if found is not None:
            limit, needs, admits = found
            raise self._never_fits(bucket, limit, needs, admits, limit.amount)

    def _guard(self, bucket: Bucket, call: Any) -> None:
        """Before admission (call is None), and again before an attempt of `call`."""
        now = self._now() / 1e9
        if bucket.remote is not None and not self._chores.loop_runs:
            self._life.adopt_chores()
        try:
            if call is None:
                bucket.breaker.check(now)
            else:
                bucket.breaker.launch(call, now)
        except RateLimiterError:
            self._events["circuit_breaker_rejections"] += 1
            raise

    def _waits(self, blocks: bool) -> None:
        """A request is going to wait, where a strategy decides; it may be the only one who sees.

        blocks: in its thread, whatever runs there.
        """
        if not self._chores.loop_runs:
            self._life.adopt_chores(own=blocks)

    def _overflow(self, bucket: Bucket) -> NoReturn:
        self._events["queue_overflows"] += 1
        raise QueueOverflowError(f"Queue {bucket.name} is full", bucket.name)

    def _dropped(self, bucket: Bucket) -> NoReturn:
        self._events["queue_overflows"] += 1
        raise QueueOverflowError("Request dropped due to queue overflow", bucket.name)

    def _too_large(
        self, bucket: Bucket, meter: int, needs: int, admits: int, of_bucket: bool
    ) -> NoReturn:
        if not of_bucket:
            raise CapacityExceededError(
                f"can never fit: needs {needs}{self._outlook.own_limit_of(admits)}", bucket.name
            )
        limit = _core.limits(bucket)[meter]
        stated = bucket.stated.get(meter, limit.amount)
        if admits != limit.amount:
            raise self._never_fits(bucket, limit, needs, admits, admits, f"burst of '{limit}'")
        raise self._never_fits(bucket, limit, needs, admits, stated)

    def _never_fits(  # noqa: PLR0917 - as they stand in the text
        self,
        bucket: Bucket,
        limit: Limit,
        needs: int,
        admits: int,
        stated: int,
        what: str = "limit",
    ) -> CapacityExceededError:
        ratio = self.config.rate_limit_buffer_ratio
        after = f" ({stated} at ratio {ratio:g})" if admits != stated else ""
        return CapacityExceededError(
            f"can never fit in bucket {bucket.name!r}: needs {needs} {limit.resource}, "
            f"the {what} is {admits}{after}",
            bucket.name,
        )

    def _judge(self, call: Any, result: Any, error: BaseException | None) -> Any:
        """What an attempt has come to: None where that is final, else what says if it goes on."""
        answer = self._verdicts.judge(call, result, error)
        return None if answer is None else self._verdicts.again(call, answer, error)

    def _unfinished(self) -> int:
        """How many requests a stop waits for, of tasks and of threads."""
        return super()._unfinished() + len(self._on_way)

    # -- what can be seen ------------------------------------------------------------------------

    def learnt_limits(self) -> dict[str, list[str]]:
        """By bucket id, the limits that answers have told of, as the provider states them.

        Texts of Limits, fit for JSON and for `create_scheduler(learnt_limits=…)`, by which another
        scheduler begins with them. One that only refusals have shown ends with ` by refusals`, and
        is searched on there. Given limits are not in it.
        """
        return self._buckets.learnt()

    def get_metrics(self) -> dict[str, Any]:
        """What has happened so far."""
        from headway.scheduler.report import metrics

        return metrics(self)


def _limits_of(account: Account) -> list[Limit]:
    return [limit for limit in account.limits if isinstance(limit, Limit)]


def _in_loop() -> bool:
    return running_loop() is not None


def _after_fork_in_child() -> None:
    for scheduler in list(_all):
        scheduler._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
