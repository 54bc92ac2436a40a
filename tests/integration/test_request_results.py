"""Results at their worst: given as they are, and read for what they do say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from users import Evil, Provider, Refused, Unspeakable, asks, idle, make


class Lazy:
    """A proxy that is not connected: has headers, and raises for all else."""

    status_code = 200

    @property
    def headers(self) -> dict[str, str]:
        raise RuntimeError("not connected")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class Half(Lazy):
    headers = {"X-Left": "1"}  # type: ignore[assignment]  # noqa: RUF012


class Locked(dict[str, Any]):
    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError(key)


RESULTS = [
    Evil(),
    Lazy(),
    Half(),
    Unspeakable(),
    Locked(usage=1),
    SimpleNamespace(usage=Locked(total_tokens=1)),
    SimpleNamespace(usage=Evil()),
    SimpleNamespace(headers=Evil(), status_code=Evil(), usage=Evil(), response=Evil()),
    SimpleNamespace(headers={"a": Unspeakable()}, usage=None),
    SimpleNamespace(headers=[1, 2], usage="many"),
    SimpleNamespace(headers={}, get_iterator=1 / 3, set_iterator=None),
    *[
        SimpleNamespace(usage={"total_tokens": tokens})
        for tokens in (None, -1, 10**30, 1.5, "7", True, [], 2**53 + 1)
    ],
    *[
        {"usage": usage}
        for usage in (None, 7, "x", [], {"total_tokens": {}}, {"prompt_tokens": 10**30})
    ],
]


@pytest.mark.parametrize("result", RESULTS, ids=range(len(RESULTS)))
@pytest.mark.filterwarnings("ignore:these options have no meaning:UserWarning")  # basic
@pytest.mark.parametrize("mode", ["basic", "intelligent"])
def test_an_odd_result_is_given_as_it_is_and_what_it_does_not_say_stays_estimated(
    mode: str, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        limits = ["1_000 tokens/min"]
        async with make(mode=mode, provider=Provider(), limits=limits) as scheduler:

            async def call() -> Any:
                await asyncio.sleep(0)
                return result

            metadata = asks(estimated_tokens=100)
            assert await scheduler.submit_request(metadata, call) is result
            explanation = scheduler.explain(metadata)
            assert explanation is not None
            assert explanation.limits[0].used == 100
            assert idle(scheduler)

    asyncio.run(run())
    assert not [each for each in caplog.records if each.name == "asyncio"]


def test_an_odd_refusal_is_judged_by_what_it_does_say() -> None:
    class Worse(Refused):
        def __init__(self) -> None:
            super().__init__(503, {}, Evil())
            self.usage = Locked()
            self.response = Evil()

        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    async def run() -> None:
        async def call() -> None:
            raise Worse

        async with make(max_retries=2) as scheduler:
            with pytest.raises(Worse):
                await scheduler.submit_request(asks(), call)
            assert scheduler.get_metrics()["attempts"] == 3

    asyncio.run(run())


class Answers(Mapping[str, Any]):
    """A mapping, but no dict."""

    def __getitem__(self, key: str) -> Any:
        return {"usage": {"total_tokens": 5}}[key]

    def __iter__(self) -> Any:
        return iter(["usage"])

    def __len__(self) -> int:
        return 1


class Answer(dict[str, Any]):
    pass


@pytest.mark.parametrize("result", [Answers(), Answer(usage={"total_tokens": 5})])
def test_usage_of_any_mapping_settles(result: Any) -> None:
    async def run() -> None:
        async with make(limits=["1_000 tokens/min"]) as scheduler:

            async def call() -> Any:
                return result

            await scheduler.submit_request(asks(estimated_tokens=100), call)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].used == 5

    asyncio.run(run())


@pytest.mark.parametrize("name", ["_headers", "__pydantic_private__"])
def test_headers_are_found_wherever_clients_keep_them(name: str) -> None:
    headers = {"X-Left": "1"}
    place: Any = headers if name == "_headers" else {"_response": SimpleNamespace(headers=headers)}

    async def run() -> None:
        provider = Provider()
        async with make(provider=provider) as scheduler:

            async def call() -> Any:
                return SimpleNamespace(**{name: place})

            await scheduler.submit_request(asks(), call)
            for _ in range(100):
                await asyncio.sleep(0.001)
                if provider.told:
                    break
        assert provider.told == [({"x-left": "1"}, None, None)]

    asyncio.run(run())


class Page:
    """As the SDKs' pages: a pydantic model of results, which fetches the next ones if iterated."""

    __pydantic_private__ = None

    def __init__(self) -> None:
        self.data = [1, 2]

    async def __aiter__(self) -> AsyncIterator[int]:
        for each in self.data:
            yield each


def test_pages_that_are_kept_hold_nothing_up() -> None:
    async def run() -> None:
        async with make(max_concurrent_executions=2) as scheduler:
            kept = []
            for _ in range(5):

                async def call() -> Page:
                    return Page()

                kept.append(await asyncio.wait_for(scheduler.submit_request(asks(), call), 10))
            assert [type(page) for page in kept] == [Page] * 5
            assert idle(scheduler)

    asyncio.run(run())


async def _pieces() -> AsyncGenerator[Any, Any]:
    try:
        for _ in range(3):
            yield {"usage": {"total_tokens": 5}}
    except ValueError:
        yield {"usage": {"total_tokens": 7}}


def _pieces_sync() -> Generator[Any, Any, None]:
    try:
        for _ in range(3):
            yield {"usage": {"total_tokens": 5}}
    except ValueError:
        yield {"usage": {"total_tokens": 7}}


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        # To its end, at which it has said what it has used.
        (["send"] * 4, 5),
        (["next", "send", "send", "next"], 5),
        (["send", "caught", "send"], 7),
        # It has failed, and what it said is a lower bound.
        (["send", "thrown"], 100),
        (["thrown"], 100),
    ],
)
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_generator_that_is_driven_settles_as_one_that_is_iterated(
    steps: list[str], left: int, asynchronous: bool
) -> None:
    async def drive(stream: Any, step: str) -> None:
        given = {"next": (), "send": (None,), "caught": (ValueError(),), "thrown": (KeyError(),)}
        name = {"next": "__next__", "send": "send"}.get(step, "throw")
        if asynchronous:
            name = {"__next__": "__anext__"}.get(name, f"a{name}")
            await getattr(stream, name)(*given[step])
        else:
            getattr(stream, name)(*given[step])

    async def run() -> None:
        async def call() -> Any:
            return _pieces() if asynchronous else _pieces_sync()

        limits = ["1 concurrency", "1000 tokens/31day bucket"]
        metadata = asks(estimated_tokens=100)

        def used() -> list[int]:
            explanation = scheduler.explain(metadata)
            assert explanation is not None
            return [each.used for each in explanation.limits]

        async with make(limits=limits) as scheduler:
            stream = await scheduler.submit_request(metadata, call)
            for step in steps[:-1]:
                await drive(stream, step)
            assert used() == [1, 100]
            with pytest.raises((StopIteration, StopAsyncIteration, KeyError, RuntimeError)):
                await drive(stream, steps[-1])
            assert used() == [0, left]

    asyncio.run(run())
