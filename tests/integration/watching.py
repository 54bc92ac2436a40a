"""An SDK's requests to a simulated provider, seen from both ends; what could have been at best."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2
import openai

from headway import Limit, RateLimiterConfig
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate import SimulatorProcess
from headway.simulate.admission import Admission
from headway.simulate.rules import Rule
from headway.transports import AsyncTransport

SAYS: list[Any] = [{"role": "user", "content": "Say hello."}]
REFUSED = 429
CALL = "x-call"
_NAME = "x-client-request-id"
_LIMIT = "x-ratelimit-limit-requests"


@dataclass
class Exchange:
    """One request as it went over the network; seconds of this machine's monotonic clock."""

    name: str
    call: str
    """Of the SDK, which may make several requests of it."""
    sent: float
    answered: float | None = None
    status: int | None = None
    limit: str | None = None
    """Of requests, as the answer tells."""


class Watched(httpx2.AsyncHTTPTransport):
    """Sends requests and writes down what becomes of them, each under a name of its own."""

    def __init__(self, name: str = "ours") -> None:
        super().__init__(limits=httpx2.Limits(max_connections=None))
        self.name = name
        self.exchanges: list[Exchange] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        name = f"{self.name}-{len(self.exchanges)}"
        exchange = Exchange(name, request.headers.get(CALL, ""), time.monotonic())
        self.exchanges.append(exchange)
        request.headers[_NAME] = exchange.name
        response = await super().handle_async_request(request)
        exchange.answered = time.monotonic()
        exchange.status = response.status_code
        exchange.limit = response.headers.get(_LIMIT)
        return response


def scheduler_of(**options: Any) -> Scheduler:
    """One that was given no limits and uses all of what it finds."""
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    options.setdefault("max_concurrent_executions", 10_000)
    options.setdefault("max_queue_size", 10_000)
    return create_scheduler(None, config=RateLimiterConfig(**options))


def openai_at(simulator: SimulatorProcess, transport: Any, **options: Any) -> openai.AsyncOpenAI:
    """The real SDK, which sends through `transport`."""
    # Its own bound for connecting, 5 s, is short where many begin at once.
    options.setdefault("timeout", 120.0)
    return openai.AsyncOpenAI(
        api_key="k",
        base_url=f"{simulator.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
        **options,
    )


async def ask(client: openai.AsyncOpenAI, name: str = "") -> bool:
    """One call, of that name; whether it was answered, or refused in the end."""
    try:
        await client.chat.completions.create(
            model="m", messages=SAYS, max_tokens=8, extra_headers={CALL: name}
        )
    except openai.RateLimitError:
        return False
    return True


@asynccontextmanager
async def kept_busy(client: openai.AsyncOpenAI, callers: int) -> AsyncIterator[None]:
    """While inside, so many calls are always waiting or on their way."""

    async def call() -> None:
        while True:
            await ask(client)

    tasks = [asyncio.ensure_future(call()) for _ in range(callers)]
    try:
        yield
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()  # a caller ends only by an exception, which is to be seen


@dataclass
class Seen:
    """What both ends have seen of a run that ended at `end`, and the limits it had in turn.

    grace: of a window's worth that came free so many seconds before an end, or less, nothing need
    have been used.
    """

    limits: list[str]
    stats: dict[str, Any]
    exchanges: list[Exchange]
    end: float
    grace: float
    due: Sequence[float] = ()
    """When each limit but the first was to come; at most so much too late as a start takes."""

    @property
    def changes(self) -> list[float]:
        """Since when each of the limits has counted; the first since the first request."""
        firsts = [each["first"] for each in (*self.stats["ended"], self.stats)]
        # Nothing was counted by a limit before it came.
        later = zip(firsts[1:], self.due, strict=True)
        return [firsts[0], *(due if first is None else min(first, due) for first, due in later)]

    @property
    def admitted(self) -> list[float]:
        """When each request was admitted, by the server's own log."""
        return [at for at, status, *_ in self.stats["decisions"] if status != REFUSED]

    @property
    def refused(self) -> list[tuple[float, Exchange]]:
        """The requests that were refused, ours only, and when that was decided."""
        ours = {each.name: each for each in self.exchanges}
        return [(at, ours[name]) for at, name, _ in self.stats["refusals"] if name in ours]

    def steps(self) -> Iterator[Step]:
        """How it went by each of the limits."""
        ends = [*self.changes[1:], self.end]
        for number, (began, ended) in enumerate(zip(self.changes, ends, strict=True)):
            told, settled = self._told(began, ended, number)
            period = self._rules[number].period_ns / 1e9
            # Of what nobody knew, the first window is for finding it out.
            begin = settled if number else max(settled, told + period)
            if period > ended - begin:  # of a day's limit, all may be gone by then
                begin = told
            refused = [each for at, each in self.refused if began <= at < ended]
            yield Step(
                self.limits[number],
                told,
                ended,
                self.use(number, begin, ended),
                [each for each in refused if each.sent <= settled],
                [each for each in refused if each.sent > settled],
            )

    def _told(self, began: float, ended: float, number: int) -> tuple[float, float]:
        """When the first answer told of this limit, and all was answered that was sent until then.

        From the first on all of the limit can be used, and where a machine is busy it may be used
        up before the second.
        """
        amount = str(Limit.parse(self.limits[number]).amount)
        told = min(
            each.answered
            for each in self.exchanges
            if each.limit == amount and each.answered and each.answered > began
        )
        # What the end of the run has cut off has no answer.
        answers = [each.answered for each in self.exchanges if each.sent <= told and each.answered]
        settled = max(answers)
        assert settled < ended, "this step was over before it could be judged"
        return told, settled

    def use(self, number: int, begin: float, end: float) -> float:
        """The share that was used of what the server would have admitted from begin to end."""
        rule = self._rules[number]
        last = end if rule.shape == "bucket" else end - self.grace
        best = sum(at < last for at in self._at_best(number, begin, end))
        assert best, "nothing could have been used"
        return min(1.0, sum(begin < at < end for at in self.admitted) / best)

    @property
    def _rules(self) -> list[Rule]:
        return [Rule.from_limit(Limit.parse(text)) for text in self.limits]

    def _at_best(self, number: int, begin: float, end: float) -> Iterator[float]:
        """When it could have admitted more, had all been sent at once from `begin` on.

        By the simulator's own counting, which begins with what it had admitted until then.
        """
        rules = self._rules
        admission = Admission(rules[:1], time.time_ns() - time.monotonic_ns())
        edges = [*self.changes[: number + 1], begin]
        for at, (since, until) in enumerate(pairwise(edges)):
            if at:
                admission.turn(rules[at], _ns(since))
            (count,) = admission.rates
            for taken in self.admitted:
                if since <= taken < until or (taken == until == begin):
                    count.take(_ns(taken), 1)
        now = _ns(begin)
        while (wait := count.wait(now, 1)) is not None and now + wait < _ns(end):
            now += wait
            count.take(now, 1)
            yield now / 1e9


@dataclass(frozen=True)
class Step:
    """From `told` to `ended` by one limit; refusals of what was sent until all from before `told`
    was answered, and after. use: from then on; of the first limit, from its second window on."""

    limit: str
    told: float
    ended: float
    use: float
    refused_before: Sequence[Exchange]
    refused_after: Sequence[Exchange]

    def __str__(self) -> str:
        return (
            f"{self.limit}: use {self.use:.3f} in {self.ended - self.told:.1f} s, refused "
            f"{len(self.refused_before)} on their way and {len(self.refused_after)} after"
        )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


async def run(
    simulator: SimulatorProcess,
    limits: Sequence[str],
    *,
    seconds: float,
    callers: int,
    grace: float,
    due: Sequence[float] = (),
) -> Seen:
    """`callers` of an SDK whose scheduler was given nothing, for so many seconds."""
    watched = Watched()
    async with (
        scheduler_of() as scheduler,
        openai_at(simulator, AsyncTransport(scheduler, watched, "openai")) as client,
    ):
        async with kept_busy(client, callers):
            await asyncio.sleep(seconds)
        end = time.monotonic()
    stats = await asyncio.to_thread(simulator.stats, decisions=True)
    return Seen([*limits], stats, watched.exchanges, end, grace, due)
