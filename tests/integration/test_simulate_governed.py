"""Clients that were given no limit keep to those of every dialect that tells them in headers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from users import until

from headway import TEXT, RateLimiterConfig, RequestMetadata
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate import SimulatorProcess
from headway.transports import AsyncTransport

SAYS: list[Any] = [{"role": "user", "content": "Say hello."}]
AT_LEAST = 50
CALLS = 60
"""A fifth more than what may be sent at once."""


class ToSimulator(httpx2.AsyncHTTPTransport):
    """Sends what is for a provider's own host to the simulator."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        super().__init__(limits=httpx2.Limits(max_connections=None))
        self._at = httpx2.URL(simulator.url)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url.copy_with(scheme="http", host=self._at.host, port=self._at.port)
        there = httpx2.Request(
            request.method,
            url,
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return await super().handle_async_request(there)


@dataclass(frozen=True)
class Run:
    """`limits` of `dialect`, asked for at `base_url`; `all_go`: they are refilled in seconds."""

    dialect: str
    base_url: str
    limits: tuple[str, ...]
    all_go: bool = False

    def __str__(self) -> str:
        return f"{self.dialect}: {', '.join(self.limits)}"


def scheduler() -> Scheduler:
    config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, max_backoff=0.001)
    return create_scheduler(None, config=config)


async def send(run: Run, simulator: SimulatorProcess, calls: int) -> list[asyncio.Task[Any]]:
    """Sends all calls at once; gives them when so many are over as may be, or all of them."""
    async with scheduler() as deciding:
        transport = AsyncTransport(deciding, ToSimulator(simulator))
        async with openai.AsyncOpenAI(
            api_key="k",
            base_url=run.base_url,
            http_client=openai.DefaultAsyncHttpxClient(transport=transport),
        ) as client:

            async def ask() -> None:
                await client.chat.completions.create(model="m", messages=SAYS, max_tokens=8)

            tasks = [asyncio.ensure_future(ask()) for _ in range(calls)]
            waiting = set(tasks)
            while len(waiting) > (0 if run.all_go else calls - AT_LEAST):
                done, waiting = await asyncio.wait(
                    waiting, timeout=30, return_when=asyncio.FIRST_COMPLETED
                )
                assert done, f"{len(waiting)} of {calls} still wait"
            if waiting:
                # Whoever went out too early would have been refused by then.
                _, waiting = await asyncio.wait(waiting, timeout=0.5)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return tasks


@pytest.mark.parametrize(
    "run",
    [
        Run("openai", "https://api.openai.com/v1", ("50 requests/min bucket",)),
        Run("openai", "https://api.openai.com/v1", ("50 requests/min window", "9_000 tokens/min")),
        Run(
            "azure",
            "https://mine.openai.azure.com/openai/deployments/m",
            ("50 requests/10s window", "9_000 tokens/min"),
        ),
        Run("venice", "https://api.venice.ai/api/v1", ("50 requests/min window",)),
        Run("venice", "https://api.venice.ai/api/v1", ("50 requests/min fixed",)),
        Run("groq", "https://api.groq.com/openai/v1", ("400 tokens/min bucket",)),
        Run("groq", "https://api.groq.com/openai/v1", ("50 requests/day fixed",)),
        Run("together", "https://api.together.xyz/v1", ("50 requests/s bucket",), True),
        Run("together", "https://api.together.xyz/v1", ("50 requests/s window",), True),
        Run("together", "https://api.together.xyz/v1", ("50 requests/s fixed",), True),
        Run("together", "https://api.together.xyz/v1", ("400 tokens/s bucket",), True),
        # Longer than a minute, which only the resets tell.
        Run("openai", "https://api.openai.com/v1", ("50 requests/h window",)),
        Run("openai", "https://api.openai.com/v1", ("50 requests/h fixed",)),
        Run("generic", "https://api.example.com/v1", ("50 requests/h window",)),
        Run("generic", "https://api.example.com/v1", ("50 requests/min window",)),
        Run("generic", "https://api.example.com/v1", ("50 requests/min fixed",)),
        Run("ietf", "https://api.example.com/v1", ("50 requests/min window",)),
        Run("ietf", "https://api.example.com/v1", ("50 requests/s bucket",), True),
        Run("ietf", "https://api.example.com/v1", ("50 requests/2s window",), True),
    ],
    ids=str,
)
def test_nobody_is_refused_who_was_given_no_limits(run: Run) -> None:
    limits = [text for limit in run.limits for text in ("--limits", limit)]
    with SimulatorProcess("--dialect", run.dialect, *limits, "--latency", "0.02") as simulator:
        tasks = asyncio.run(send(run, simulator, CALLS))
        stats = simulator.stats()
    assert [task.exception() for task in tasks if not task.cancelled()].count(None) >= AT_LEAST
    assert stats["refused_by"] == {}
    if not run.all_go and "fixed" not in run.limits[0]:
        # A fixed window may have ended meanwhile, and a bucket has given one or two more.
        assert AT_LEAST <= stats["admitted"] <= AT_LEAST + 5


@pytest.mark.parametrize("dialect", ["openrouter", "azure"])
def test_what_no_header_tells_is_no_limit_as_long_as_nobody_is_refused(dialect: str) -> None:
    """OpenRouter tells none, and Azure's Responses API numbers that are none."""
    limit = ("--limits", "50 requests/h window", "--latency", "0.02")
    with SimulatorProcess("--dialect", dialect, *limit) as simulator:

        async def run() -> None:
            async with scheduler() as deciding:
                transport = AsyncTransport(deciding, ToSimulator(simulator))
                async with openai.AsyncOpenAI(
                    api_key="k",
                    base_url="https://api.example.com"
                    + ("/openai/v1" if dialect == "azure" else "/api/v1"),
                    http_client=openai.DefaultAsyncHttpxClient(transport=transport),
                ) as client:
                    asked = [client.responses.create(model="m", input="hi") for _ in range(40)]
                    await asyncio.wait_for(asyncio.gather(*asked), 30)

        asyncio.run(run())
        assert simulator.stats()["total"]["refused"] == 0
        assert simulator.stats()["admitted"] == 40


def test_whom_venice_blocks_for_failing_asks_once_and_waits() -> None:
    """It says so in words alone, and all that is asked meanwhile is refused, too."""
    limit = ("--limits", "500 requests/min window", "--latency", "0.01")
    with SimulatorProcess("--dialect", "venice", *limit) as simulator:
        with httpx2.Client(base_url=simulator.url, trust_env=False) as other:
            for _ in range(21):
                other.post("/api/v1/chat/completions", content=b"nonsense")

        async def run() -> None:
            async with scheduler() as deciding:
                transport = AsyncTransport(deciding, ToSimulator(simulator))
                async with httpx2.AsyncClient(
                    base_url="https://api.venice.ai/api/v1", transport=transport, timeout=30
                ) as client:
                    asked = {"model": "m", "messages": SAYS}
                    tasks = [
                        asyncio.ensure_future(client.post("/chat/completions", json=asked))
                        for _ in range(10)
                    ]
                    await until(lambda: deciding.get_metrics()["cool_downs"] > 0)
                    explanation = deciding.explain(RequestMetadata("r", "m", TEXT))
                    assert explanation is not None
                    assert [each.retry_after for each in explanation.receipts] == [30]
                    # Of its half a minute; what is told no wait is tried again at once here.
                    assert explanation.ready_in is not None
                    assert explanation.ready_in > 5
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(run())
        assert simulator.stats()["refused_by"] == {"more than 20 failures in 30s": 1}
