"""The real SDKs of OpenAI and Anthropic, governed by one constructor argument."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from users import idle, until

from headway import (
    ConfigurationError,
    DeadlineExceededError,
    Limiter,
    RateLimiterConfig,
    RequestMetadata,
    SchedulerStoppedError,
)
from headway.scheduler import Scheduler, create_scheduler
from headway.simulate.process import SimulatorProcess
from headway.transports import AsyncTransport, Transport, asking, govern

SAYS: list[Any] = [{"role": "user", "content": "hi " * 20}]


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    with SimulatorProcess(*request.param) as running:
        yield running


def serve(*options: str) -> pytest.MarkDecorator:
    given = options if "--latency" in options else (*options, "--latency", "0.02")
    return pytest.mark.parametrize("simulator", [given], indirect=True, ids=[""])


def scheduler_of(mode: str = "intelligent", limits: Any = None, **options: Any) -> Scheduler:
    options.setdefault("rate_limit_buffer_ratio", 1.0)
    options.setdefault("max_backoff", 0.001)
    config = RateLimiterConfig(**options)
    return create_scheduler(None, mode=mode, config=config, limits=limits)


def async_openai(
    simulator: SimulatorProcess, scheduler: Any, provider: str = "openai", **options: Any
) -> openai.AsyncOpenAI:
    transport = AsyncTransport(scheduler, provider=provider)
    return openai.AsyncOpenAI(
        api_key="k",
        base_url=f"{simulator.url}/v1",
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
        **options,
    )


def sync_openai(simulator: SimulatorProcess, scheduler: Any, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k",
        base_url=f"{simulator.url}/v1",
        http_client=openai.DefaultHttpxClient(transport=Transport(scheduler, provider="openai")),
        **options,
    )


def async_claude(simulator: SimulatorProcess, scheduler: Any) -> anthropic.AsyncAnthropic:
    transport = AsyncTransport(scheduler, provider="anthropic")
    return anthropic.AsyncAnthropic(
        api_key="k",
        base_url=simulator.url,
        http_client=anthropic.DefaultAsyncHttpxClient(transport=transport),
    )


def sync_claude(simulator: SimulatorProcess, scheduler: Any) -> anthropic.Anthropic:
    transport = Transport(scheduler, provider="anthropic")
    return anthropic.Anthropic(
        api_key="k",
        base_url=simulator.url,
        http_client=anthropic.DefaultHttpxClient(transport=transport),
    )


async def admitted(simulator: SimulatorProcess, calls: int, call: Callable[[], Any]) -> int:
    """How many of so many calls got through at once; the others are given up."""
    tasks = [asyncio.ensure_future(call()) for _ in range(calls)]
    _, waiting = await asyncio.wait(tasks, timeout=1.5)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for task in tasks:
        assert task.cancelled() or task.exception() is None
    return calls - len(waiting)


# -- limits are found out, and kept to -----------------------------------------------------------


@serve("--limits", "12 requests/min window")
def test_openai_is_kept_to_limits_that_nobody_gave(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of() as scheduler:
            client = async_openai(simulator, scheduler)

            def chat() -> Awaitable[Any]:
                return client.chat.completions.create(model="gpt-4o-mini", messages=SAYS)

            assert await admitted(simulator, 40, chat) == 12
            assert simulator.stats()["refused"] == 0
            explained = str(scheduler.explain(RequestMetadata("r", "gpt-4o-mini", "text")))
            assert "12 requests/min window: 12 of 12 used" in explained
            await client.close()
            assert scheduler._unfinished() == 0

    asyncio.run(run())


CLAUDES = [
    "300 requests/min bucket",
    "30_000 input_tokens/min bucket",
    "8_000 output_tokens/min bucket",
]
LONG: list[Any] = [{"role": "user", "content": "word " * 1200}]


@serve("--dialect", "anthropic", *(text for each in CLAUDES for text in ("--limits", each)))
@pytest.mark.parametrize("streams", [False, True])
def test_anthropic_is_kept_to_its_three_limits(simulator: SimulatorProcess, streams: bool) -> None:
    async def run() -> None:
        async with scheduler_of() as scheduler:
            client = async_claude(simulator, scheduler)

            async def ask() -> None:
                if not streams:
                    await client.messages.create(model="c", messages=LONG, max_tokens=9000)
                    return
                async with client.messages.stream(
                    model="c", messages=LONG, max_tokens=9000
                ) as stream:
                    assert (await stream.get_final_message()).usage.output_tokens > 0

            # 20 of 1,500 tokens, and in 1.5 s half of one more; what remains is told in thousands.
            assert 18 <= await admitted(simulator, 80, ask) <= 20
            stats = simulator.stats()
            assert stats["refused"] == 0
            explained = scheduler.explain(RequestMetadata("r", "c", "text"))
            assert explained is not None
            learnt = [str(each.limit) for each in explained.limits]
            assert learnt == [each.replace("_000", "000") for each in CLAUDES]
            await client.close()

    asyncio.run(run())


@serve("--limits", "12 requests/min window")
def test_threads_are_kept_to_them_too(simulator: SimulatorProcess) -> None:
    with scheduler_of() as scheduler, sync_openai(simulator, scheduler, timeout=5) as client:

        def chat(_: int) -> int:
            answer = client.chat.completions.create(model="m", messages=SAYS)
            assert answer.usage is not None
            return answer.usage.total_tokens

        with ThreadPoolExecutor(12) as pool:
            assert all(pool.map(chat, range(12)))
        assert simulator.stats()["admitted"] == 12
        explained = scheduler.explain(RequestMetadata("r", "m", "text"))
        assert explained is not None
        assert explained.fits_now == {"requests": 0}
        assert simulator.stats()["refused"] == 0


@serve("--dialect", "anthropic", "--limits", "50 requests/min bucket")
def test_anthropic_in_a_thread_streams_too(simulator: SimulatorProcess) -> None:
    with scheduler_of() as scheduler, sync_claude(simulator, scheduler) as client:
        message = client.messages.create(model="c", messages=SAYS, max_tokens=10)
        assert message.usage.input_tokens == 15
        with client.messages.stream(model="c", messages=SAYS, max_tokens=10) as stream:
            assert len(list(stream.text_stream)) == stream.get_final_message().usage.output_tokens
        assert scheduler.get_metrics()["buckets"]["c"]["succeeded"] == 2
        assert scheduler._under_way == 0


@serve("--limits", "4 requests/min window")
def test_a_limiter_may_stand_for_the_scheduler(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        limiter = Limiter(["4 requests/min window", "10_000 tokens/min bucket", "2 concurrency"])
        client = async_openai(simulator, limiter, "generic")

        def chat() -> Awaitable[Any]:
            return client.chat.completions.create(model="m", messages=SAYS, max_tokens=1000)

        assert await admitted(simulator, 9, chat) == 4
        assert simulator.stats()["refused"] == 0
        used = {state.limit.resource: state.used for state in limiter.explain(1, 1, 1).limits}
        assert used["concurrency"] == 0
        assert used["requests"] == 4
        assert 0 < used["tokens"] < 400  # what was used, not the 4,000 that were reserved
        await client.close()

    asyncio.run(run())


# -- streams -------------------------------------------------------------------------------------


@serve("--limits", "900 requests/min bucket", "--latency", "0.3")
def test_a_stream_has_its_place_until_it_ends(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(max_concurrent_executions=2) as scheduler:
            client = async_openai(simulator, scheduler)

            async def begin() -> Any:
                return await client.chat.completions.create(
                    model="m",
                    messages=SAYS,
                    max_tokens=1000,
                    stream=True,
                    stream_options={"include_usage": True},
                )

            first, second = await begin(), await begin()
            assert scheduler._under_way == 2
            third = asyncio.ensure_future(begin())
            await asyncio.sleep(0.1)
            assert not third.done()
            usage = [chunk.usage async for chunk in first][-1]
            assert usage is not None
            await third
            # It is given back what it did not use; the others have what they reserved.
            state = scheduler.get_metrics()
            assert (scheduler._under_way, state["buckets"]["m"]["succeeded"]) == (2, 3)
            await second.close()
            assert scheduler._under_way == 1
            del third
            gc.collect()
            await until(lambda: scheduler._under_way == 0)
            await client.close()

    asyncio.run(run())


@serve("--limits", "12_000 tokens/2s window", "--latency", "0.3")
def test_what_a_stream_may_use_counts_although_it_uses_less(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of() as scheduler:
            client = async_openai(simulator, scheduler)

            async def stream() -> None:
                chunks = await client.chat.completions.create(
                    model="m",
                    messages=SAYS,
                    max_tokens=1000,
                    stream=True,
                    stream_options={"include_usage": True},
                )
                assert [chunk.usage async for chunk in chunks][-1] is not None

            await asyncio.gather(*(stream() for _ in range(36)))
            await client.close()
        stats = simulator.stats()
        assert (stats["admitted"], stats["refused"]) == (36, 0)

    asyncio.run(run())


@serve("--limits", "900 requests/min bucket", "--limits", "100_000 tokens/min bucket")
def test_tokens_are_settled_by_what_the_answer_says(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        limits = ["900 requests/min", "100_000 tokens/31day bucket"]
        async with scheduler_of(limits=limits) as scheduler:
            client = async_openai(simulator, scheduler, "generic")
            asked = {"model": "m", "messages": SAYS, "max_tokens": 1000}

            def used() -> int:
                explained = scheduler.explain(RequestMetadata("r", "m", "text"))
                assert explained is not None
                return next(s.used for s in explained.limits if s.limit.resource == "tokens")

            answer = await client.chat.completions.create(**asked)  # type: ignore[call-overload]
            total = answer.usage.total_tokens
            assert used() == total
            stream = await client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]
            assert used() == total + 1000
            async for _ in stream:
                pass
            assert used() == total + 1000  # nothing was said of it
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                **asked, stream=True, stream_options={"include_usage": True}
            )
            last = [chunk async for chunk in stream][-1]
            assert used() == total + 1000 + last.usage.total_tokens
            await client.close()

    asyncio.run(run())


# -- failures ------------------------------------------------------------------------------------


@serve("--fail", "503:1.0")
def test_the_retries_of_the_sdk_do_not_multiply_ours(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(max_retries=2) as scheduler:
            client = async_openai(simulator, scheduler, max_retries=5)
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=SAYS)
            assert simulator.stats()["admitted"] == 3
            assert idle(scheduler)
            await client.close()

    asyncio.run(run())


@serve("--fail", "429:1.0")
def test_requests_that_are_refused_stay_within_the_budget(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(max_retries=4, max_failures=10_000) as scheduler:
            client = async_openai(simulator, scheduler, max_retries=3)

            async def chat() -> None:
                with pytest.raises(openai.RateLimitError):
                    await client.chat.completions.create(model="m", messages=SAYS)

            await asyncio.gather(*(chat() for _ in range(50)))
            # 10, and one for every five requests.
            assert simulator.stats()["admitted"] <= 50 + 10 + 10
            await client.close()

    asyncio.run(run())


@serve("--fail", "drop:1.0")
def test_a_connection_that_breaks_leaves_nothing_behind(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(max_retries=0) as scheduler:
            client = async_openai(simulator, scheduler, max_retries=0)
            with pytest.raises(openai.APIConnectionError):
                await client.chat.completions.create(model="m", messages=SAYS)
            assert idle(scheduler)
            assert scheduler._under_way == 0
            await client.close()

    asyncio.run(run())


@serve("--fail", "drop:1.0")
def test_what_an_sdk_tries_again_by_itself_is_of_the_same_budget(
    simulator: SimulatorProcess,
) -> None:
    async def run() -> None:
        async with scheduler_of() as scheduler:
            client = async_openai(simulator, scheduler, max_retries=4)

            async def chat() -> None:
                with pytest.raises(openai.APIConnectionError):
                    await client.chat.completions.create(model="m", messages=SAYS)

            await asyncio.gather(*(chat() for _ in range(25)))
            # 10, and one for every five that began: 25, and those that were tried again.
            tried = scheduler._events["retries"]
            assert 10 + 5 <= tried <= 10 + (25 + tried) / 5
            assert simulator.stats()["refused"] + simulator.stats()["admitted"] <= 25 + tried
            assert scheduler._under_way == 0
            await client.close()

    asyncio.run(run())


@pytest.mark.parametrize(("said", "tries"), [("", 3), ("1", 2), ("2", 1), ("9" * 9, 3), ("x", 3)])
@serve("--fail", "503:1.0")
def test_what_was_tried_before_is_not_tried_as_often_again(
    simulator: SimulatorProcess, said: str, tries: int
) -> None:
    async def run() -> None:
        async with scheduler_of(max_retries=2) as scheduler:
            transport = AsyncTransport(scheduler, provider="openai")
            async with httpx.AsyncClient(transport=transport) as client:
                url = f"{simulator.url}/v1/chat/completions"
                told = {"x-stainless-retry-count": said}
                body = {"model": "m", "messages": SAYS}
                assert (await client.post(url, json=body, headers=told)).status_code == 503
            assert simulator.stats()["admitted"] == tries

    asyncio.run(run())


@serve("--latency", "0.4")
def test_the_time_out_is_the_clients_own(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(request_timeout=0.05, max_retries=0) as scheduler:
            client = async_openai(simulator, scheduler, max_retries=0)
            answer = await client.chat.completions.create(model="m", messages=SAYS)
            assert answer.id
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=SAYS, timeout=0.1)
            assert scheduler._under_way == 0
            await client.close()

    asyncio.run(run())


# -- what is asked for whom ----------------------------------------------------------------------


@serve("--limits", "900 requests/min bucket")
def test_requests_may_say_whose_they_are(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(mode="account") as scheduler:
            client = async_openai(simulator, scheduler)
            seen: list[RequestMetadata] = []
            submit = scheduler.submit_request

            def noted(metadata: RequestMetadata, function: Any) -> Any:
                seen.append(metadata)
                return submit(metadata, function)

            scheduler.submit_request = noted  # type: ignore[method-assign]
            with asking(client_id="alice", priority=3, deadline=9.0):
                inner = asyncio.ensure_future(
                    client.chat.completions.create(model="m", messages=SAYS)
                )
            await inner
            await client.chat.completions.create(model="m", messages=SAYS, max_tokens=99)
            assert [(s.client_id, s.priority, s.deadline) for s in seen] == [
                ("alice", 3, 9.0),
                (None, 0, None),
            ]
            assert seen[1].cost is not None
            assert (seen[1].cost["tokens"], seen[1].cost["input_tokens"]) == (99, 15)
            await client.close()

    asyncio.run(run())


@serve("--limits", "900 requests/min bucket")
@pytest.mark.parametrize("package", [httpx, httpx2])
def test_any_client_of_either_package(simulator: SimulatorProcess, package: Any) -> None:
    async def run() -> None:
        async with scheduler_of() as scheduler:
            transport = AsyncTransport(scheduler)
            async with package.AsyncClient(transport=transport, base_url=simulator.url) as client:
                answer = await client.post("/v1/chat/completions", json={"model": "m"})
                assert answer.status_code == 200
                assert (await client.get("/v1/models")).status_code == 200
            # To an unknown host, what asks no model is counted as the host's.
            buckets = scheduler.get_metrics()["buckets"]
            assert {name: each["succeeded"] for name, each in buckets.items()} == {
                "m": 1,
                "127.0.0.1": 1,
            }

    asyncio.run(run())
    with scheduler_of() as scheduler:
        sync = Transport(scheduler, provider="openai")
        with package.Client(transport=sync, base_url=simulator.url) as client:
            assert client.get("/v1/models").status_code == 200
            assert client.post("/v1/embeddings", json={"model": "e", "input": "x"}).json()["data"]
        assert list(scheduler.get_metrics()["buckets"]) == ["e"]


@serve()
def test_a_scheduler_that_nobody_has_started_is(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        scheduler = scheduler_of()
        client = async_openai(simulator, scheduler)
        assert (await client.chat.completions.create(model="m", messages=SAYS)).id
        await scheduler.stop()
        # Once it has been stopped, it is not started behind its owner's back.
        with pytest.raises(SchedulerStoppedError, match="not running"):
            await client.chat.completions.create(model="m", messages=SAYS)
        await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", [AsyncTransport, Transport])
def test_what_cannot_be_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="scheduler of type str: must be"):
        kind("redis://secret@host")
    with pytest.raises(ConfigurationError, match="wrapped of type int: must be a transport"):
        kind(scheduler_of(), 3)
    with pytest.raises(ConfigurationError, match="provider 'opnai': must be one of anthropic"):
        kind(scheduler_of(), provider="opnai")
    with pytest.raises(ConfigurationError, match="provider of type int"):
        kind(scheduler_of(), provider=3)


# -- a ready client ------------------------------------------------------------------------------


@serve("--limits", "12 requests/min window")
def test_a_ready_client_is_governed(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        seen: list[str] = []

        async def note(request: httpx2.Request) -> None:
            seen.append(request.headers["x-mine"])

        http = httpx2.AsyncClient(event_hooks={"request": [note]}, timeout=7)
        plain = openai.AsyncOpenAI(
            api_key="k",
            base_url=f"{simulator.url}/v1",
            http_client=http,
            default_headers={"x-mine": "1"},
        )
        client = govern(plain)
        assert type(client) is openai.AsyncOpenAI
        assert client is not plain
        assert plain._client is http
        assert client._client.timeout == httpx2.Timeout(7)

        def chat() -> Awaitable[Any]:
            return client.chat.completions.create(model="m", messages=SAYS)

        # A tenth is kept free.
        assert await admitted(simulator, 40, chat) == 10
        assert simulator.stats()["refused"] == 0
        assert seen == ["1"] * len(seen)
        await plain.close()

    asyncio.run(run())


@serve("--dialect", "anthropic", "--limits", "12 requests/min window")
def test_so_is_a_synchronous_one_with_limits_of_its_own(simulator: SimulatorProcess) -> None:
    limiter = Limiter("2 requests/min window")
    plain = anthropic.Anthropic(api_key="k", base_url=simulator.url)
    with govern(plain, scheduler=limiter) as client:
        for _ in range(2):
            client.messages.create(model="c", messages=SAYS, max_tokens=10)
        assert not limiter.try_acquire(1)
    with httpx.Client(base_url=simulator.url) as http:
        governed = govern(http, limits=["5 requests/min"])
        assert isinstance(governed, httpx.Client)
        assert governed.post("/v1/messages", json={"model": "c"}).status_code == 200


def test_what_cannot_be_governed_is_named() -> None:
    with pytest.raises(ConfigurationError, match="client of type object: must be"):
        govern(object())
    with pytest.raises(ConfigurationError, match="limits: belong to the scheduler"):
        govern(httpx.Client(), scheduler=scheduler_of(), limits=["5 requests/min"])


@serve("--dialect", "anthropic", "--limits", "50 requests/min bucket")
@pytest.mark.parametrize("threads", [False, True])
def test_anthropic_s_sdk_does_not_ask_again_for_what_cannot_be_in_time(
    simulator: SimulatorProcess, threads: bool
) -> None:
    """It takes the errors of a transport for broken connections, all but its own."""
    scheduler = scheduler_of(limits=["1 requests/day"])

    async def awaits() -> None:
        async with async_claude(simulator, scheduler) as client:
            await client.messages.create(model="c", messages=SAYS, max_tokens=10)
            with asking(deadline=0.2), pytest.raises(DeadlineExceededError) as caught:
                await client.messages.create(model="c", messages=SAYS, max_tokens=10)
        check(caught.value)
        await scheduler.stop()

    def waits() -> None:
        with sync_claude(simulator, scheduler) as client:
            client.messages.create(model="c", messages=SAYS, max_tokens=10)
            with asking(deadline=0.2), pytest.raises(DeadlineExceededError) as caught:
                client.messages.create(model="c", messages=SAYS, max_tokens=10)
        check(caught.value)
        scheduler.stop_sync()

    def check(error: DeadlineExceededError) -> None:
        assert isinstance(error, anthropic.AnthropicError)
        assert scheduler.get_metrics()["requests_scheduled"] == 2
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (DeadlineExceededError, str(error))

    if threads:
        waits()
    else:
        asyncio.run(awaits())


@serve("--limits", "50 requests/min bucket")
def test_openai_s_sdk_hands_on_our_errors_as_they_are(simulator: SimulatorProcess) -> None:
    async def run() -> None:
        async with scheduler_of(limits=["1 requests/day"]) as scheduler:
            async with async_openai(simulator, scheduler) as client:
                await client.chat.completions.create(model="m", messages=SAYS)
                with asking(deadline=0.2), pytest.raises(DeadlineExceededError):
                    await client.chat.completions.create(model="m", messages=SAYS)
            assert scheduler.get_metrics()["requests_scheduled"] == 2

    asyncio.run(run())
