"""What users have written, at its worst: it harms no other request, and no scheduler."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from users import Evil, Provider, Refused, Unspeakable, asks, at_once, make, until

from headway import (
    BackendConnectionError,
    DiscoveredBucket,
    ProviderError,
    TooManyFailedRequestsError,
)
from headway.scheduler import Scheduler
from headway.scheduler.user_code import UserCode


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What blocks until the test is over; and patience that is short."""
    monkeypatch.setitem(UserCode.call.__kwdefaults__, "patience", 0.2)
    opened = threading.Event()
    yield opened
    opened.set()


async def latencies(scheduler: Scheduler, model: str = "good", count: int = 50) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        assert await scheduler.submit_request(asks(model), at_once) == 42
        found.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)
    return sorted(found)


METHODS = ["discover_limits", "parse_rate_limit_response", "get_bucket_for_model"]
ERRORS = [
    ValueError("no"),
    Unspeakable(),
    asyncio.CancelledError(),
    StopIteration(1),
    TimeoutError(),
    BackendConnectionError("its store is gone"),  # of ours, which says nothing of the request
]
NONSENSE = [
    None,
    10**30,
    "",
    b"x",
    {"garbage": object()},
    {1: DiscoveredBucket("x")},
    {"m": DiscoveredBucket("m", -1)},
    {"m": DiscoveredBucket("m", 10**30)},
    {"m": DiscoveredBucket("m", "60")},  # type: ignore[arg-type]
    {"m": DiscoveredBucket("m", 1.5)},  # type: ignore[arg-type]
    {"m": Evil()},
    Evil(),
    Unspeakable(),
]


def misbehave(provider: Provider, method: str, error: BaseException | None, gives: Any) -> None:
    def wrong(*_: Any, **__: Any) -> Any:
        provider.asked["wrong"] += 1
        if error is not None:
            raise error
        return gives

    async def wrong_later(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        return wrong()

    setattr(provider, method, wrong if method.startswith("parse") else wrong_later)


async def goes_on(provider: Provider, method: str, caplog: pytest.LogCaptureFixture) -> None:
    """A request, a refused one and a refresh, all with the provider as it is."""
    async with make(provider=provider, health_check_interval=0.01) as scheduler:
        attempts = 0

        async def call() -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise Refused(429, {"Retry-After": "0"})
            return 42

        assert await asyncio.wait_for(scheduler.submit_request(asks(), call), 10) == 42
        assert await asyncio.wait_for(scheduler.submit_request(asks("good"), at_once), 10) == 42
        if method == "discover_limits":
            await until(lambda: provider.asked["wrong"] >= 3)
        assert scheduler.get_metrics()["user_code_errors"]["provider"] >= 1
        assert scheduler.is_running()
    assert [each for each in caplog.records if f"{method} of provider 'mine'" in each.message]
    assert not [each for each in caplog.records if each.name == "asyncio"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_provider_that_raises_is_named_counted_and_survived(
    method: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider()
    misbehave(provider, method, error, None)
    asyncio.run(goes_on(provider, method, caplog))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gives", NONSENSE, ids=range(len(NONSENSE)))
def test_a_provider_that_gives_nonsense_is_named_counted_and_survived(
    method: str, gives: Any, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider()
    misbehave(provider, method, None, gives)
    asyncio.run(goes_on(provider, method, caplog))


@pytest.mark.parametrize("method", METHODS)
def test_a_provider_without_the_method_is_survived(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Lacking(Provider):
        def __getattribute__(self, name: str) -> Any:
            if name == method:
                self.asked["wrong"] += 1
                raise AttributeError(name)
            return super().__getattribute__(name)

    asyncio.run(goes_on(Lacking(), method, caplog))


def test_a_provider_whose_name_raises_is_called_by_its_type(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Nameless(Provider):
        @property
        def name(self) -> str:  # type: ignore[override]
            raise Unspeakable

        async def get_bucket_for_model(self, *_: Any) -> str:
            raise ValueError

    async def run() -> None:
        async with make(provider=Nameless()) as scheduler:
            assert await scheduler.submit_request(asks(), at_once) == 42

    asyncio.run(run())
    assert any("of provider 'Nameless'" in record.message for record in caplog.records)


@pytest.mark.parametrize("how", ["sync", "async", "stubborn"])
@pytest.mark.parametrize("method", METHODS)
def test_while_a_provider_hangs_other_buckets_do_not_notice(
    method: str, how: str, gate: threading.Event
) -> None:
    class Hanging(Provider):
        def __init__(self) -> None:
            super().__init__()
            self.leave = asyncio.Event()

        async def get_bucket_for_model(self, model_id: str, kind: str | None = None) -> str:
            good = await super().get_bucket_for_model(model_id, kind)
            return await self.hang(good) if model_id == "bad" else good  # type: ignore[no-any-return]

        async def hang(self, *_: Any) -> Any:
            self.asked["wrong"] += 1
            while not self.leave.is_set():
                try:
                    await self.leave.wait()
                except asyncio.CancelledError:
                    if how != "stubborn":
                        raise

        def block(self, *_: Any) -> Any:
            self.asked["wrong"] += 1
            gate.wait(30)

    async def run() -> None:
        provider = Hanging()
        async with make(provider=provider, health_check_interval=0.02) as scheduler:
            await scheduler.submit_request(asks("good"), at_once)
            if method != "get_bucket_for_model":
                setattr(provider, method, provider.block if how == "sync" else provider.hang)
            elif how == "sync":
                ours = provider.get_bucket_for_model
                provider.get_bucket_for_model = (  # type: ignore[method-assign]
                    lambda model, kind=None: provider.block() if model == "bad" else ours(model)
                )

            async def refused() -> None:
                raise Refused(429, {})

            slow = [
                asyncio.ensure_future(scheduler.submit_request(asks("bad"), refused))
                for _ in range(20)
            ]
            await until(lambda: provider.asked["wrong"] > 0)
            found = await latencies(scheduler)
            assert found[len(found) // 2] < 0.02
            assert found[-1] < 0.1
            provider.leave.set()
            gate.set()
            await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(run())


class Turns:
    """Counts the turns of the running event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._turn()

    def _turn(self) -> None:
        self.count += 1
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._next.cancel()


async def turns_each(scheduler: Scheduler, model: str) -> list[int]:
    """How many turns each of some requests takes."""
    turns, found = Turns(), []
    for _ in range(50):
        before = turns.count
        assert await scheduler.submit_request(asks(model), at_once) == 42
        found.append(turns.count - before)
        await asyncio.sleep(0.001)
    turns.stop()
    return found


WORST: dict[str, Any] = {
    "raises": None,
    "hangs": None,
    "blocks": None,
    "gives nothing": None,
    "gives a number": 10**30,
    "gives negative limits": {"good": DiscoveredBucket("good", -1)},
    "gives what no limit is": {"good": DiscoveredBucket("good", 10**30)},
    "gives texts": {"good": DiscoveredBucket("good", "60")},  # type: ignore[arg-type]
}
"""What each of a provider's methods does; and gives, where it gives something."""


@pytest.mark.parametrize("how", WORST)
def test_while_all_of_a_provider_misbehaves_other_buckets_go_as_if_there_was_none(
    how: str,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = UserCode.call

    async def impatient(self: UserCode, origin: str, method: Any, *args: Any, **_: Any) -> Any:
        return await ours(self, origin, method, *args, patience=0.2)

    monkeypatch.setattr(UserCode, "call", impatient)
    ran_on: set[int] = set()
    own = threading.get_ident()

    async def run() -> None:
        async with make() as alone:
            await alone.submit_request(asks("good"), at_once)
            expected = await turns_each(alone, "good")

        provider = Provider()
        provider.rpm = 100_000

        def misbehaves(method: str) -> Any:
            def wrong(*_: Any, **__: Any) -> Any:
                provider.asked[method] += 1
                ran_on.add(threading.get_ident())
                if how == "raises":
                    raise Unspeakable
                if how != "blocks":
                    return WORST[how]
                return threading.get_ident() != own and gate.wait(30)

            async def hangs(*_: Any, **__: Any) -> Any:
                provider.asked[method] += 1
                await asyncio.Event().wait()

            return hangs if how == "hangs" else wrong

        async with make(provider=provider, health_check_interval=0.01) as scheduler:
            await scheduler.submit_request(asks("good"), at_once)
            provider.asked.clear()
            for method in METHODS:
                setattr(provider, method, misbehaves(method))

            async def bad() -> int:
                refused = False

                async def call() -> int:
                    nonlocal refused
                    if not refused:
                        refused = True
                        raise Refused(429, {})
                    return 42

                return await scheduler.submit_request(asks("bad"), call)

            tasks = [asyncio.ensure_future(bad()) for _ in range(5)]
            while not all(provider.asked[method] for method in METHODS):
                assert await turns_each(scheduler, "good") == expected
            assert await turns_each(scheduler, "good") == expected
            assert await asyncio.wait_for(asyncio.gather(*tasks), 20) == [42] * 5
            explanation = scheduler.explain(asks("good"))
            assert explanation is not None
            assert [each.limit.amount for each in explanation.limits] == [100_000]
            gate.set()
        assert own not in ran_on, "what it does without `async` holds up no loop"

    asyncio.run(run())
    for method in METHODS:
        assert f"{method} of provider 'mine'" in caplog.text


def test_a_provider_that_reads_slowly_keeps_no_other_code_from_being_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = UserCode.call

    async def patient(self: UserCode, origin: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        return await ours(self, origin, method, *args, **{**kwargs, "patience": 60.0})

    monkeypatch.setattr(UserCode, "call", patient)
    gate = threading.Event()

    class Slow(Provider):
        def parse_rate_limit_response(self, headers: dict[str, str], *args: Any) -> Any:
            if "slow" in headers:
                gate.wait(60)
            return super().parse_rate_limit_response(headers, *args)

        def get_bucket_for_model(self, model_id: str, kind: str | None = None) -> str:  # type: ignore[override]
            return model_id

    class Classifier:
        def classify(self, request: dict[str, Any]) -> Any:
            return asks(request["model"])

    class Breaker:
        def can_execute(self, model_id: str) -> bool:
            return True

    async def slow() -> Any:
        return SimpleNamespace(status_code=200, headers={"slow": "1"})

    async def run() -> None:
        async with make(provider=Slow(), classifier=Classifier()) as scheduler:
            scheduler.circuit_breaker = Breaker()
            for _ in range(100):
                await scheduler.submit_request(asks("bad"), slow)
            assert scheduler.get_metrics()["answers_not_read"] > 0, "all that may be are being read"
            request: Any = {"model": "good"}
            refused = [Refused(503, {"retry-after": "0"})]

            async def call() -> int:
                if refused:
                    raise refused.pop()
                return 42

            # Classified, let through by the breaker, its bucket asked for, read and tried again.
            assert await scheduler.submit_request(request, call) == 42
            gate.set()

    try:
        asyncio.run(asyncio.wait_for(run(), 20))
    finally:
        gate.set()


# -- classifiers and breakers ---------------------------------------------------------------------


@pytest.mark.parametrize("gives", [None, 42, {"model_id": "m"}, Evil(), ValueError("raised")])
def test_a_classifier_that_fails_fails_its_own_request_and_is_named(
    gives: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> Any:
            if isinstance(gives, Exception):
                raise gives
            return gives

    async def run() -> None:
        async with make(classifier=Classifier()) as scheduler:
            request: Any = {"model": "m"}
            with pytest.raises(ProviderError, match="classify of classifier 'Classifier'"):
                await scheduler.submit_request(request, at_once)
            assert await scheduler.submit_request(asks(), at_once) == 42
            assert scheduler.get_metrics()["user_code_errors"] == {"classifier": 1}

    asyncio.run(run())
    assert any("classify of classifier" in record.message for record in caplog.records)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_classifier_that_hangs_holds_up_nobody_else(how: str, gate: threading.Event) -> None:
    class Classifier:
        def classify(self, request: dict[str, Any]) -> Any:
            return gate.wait(30) if how == "sync" else asyncio.sleep(60)

    async def run() -> None:
        async with make(classifier=Classifier()) as scheduler:
            request: Any = {"model": "m"}
            hanging = scheduler.submit(request, at_once)
            assert (await latencies(scheduler))[-1] < 0.1
            assert "waiting" in repr(hanging)
            with pytest.raises(ProviderError, match=r"did not answer within 0\.2 s"):
                await hanging

    asyncio.run(run())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_breaker_that_raises_protects_from_nothing(error: BaseException) -> None:
    class Breaker:
        async def can_execute(self, model_id: str) -> bool:
            if model_id == "shut":
                return False
            raise error

    async def run() -> None:
        async with make() as scheduler:
            for breaker in (Breaker(), object()):
                scheduler.circuit_breaker = breaker
                assert await scheduler.submit_request(asks(), at_once) == 42
            scheduler.circuit_breaker = Breaker()
            with pytest.raises(TooManyFailedRequestsError):
                await scheduler.submit_request(asks("shut"), at_once)
            assert scheduler.get_metrics()["circuit_breaker_rejections"] == 1
            assert sum(scheduler.get_metrics()["user_code_errors"].values()) == 2

    asyncio.run(run())


def test_a_breaker_may_raise_its_no_as_ours_does() -> None:
    no = TooManyFailedRequestsError("not now", failure_count=3)

    class Breaker:
        async def can_execute(self, model_id: str) -> bool:
            raise no

    async def run() -> None:
        async with make() as scheduler:
            scheduler.circuit_breaker = Breaker()
            with pytest.raises(TooManyFailedRequestsError) as caught:
                await scheduler.submit_request(asks(), at_once)
            assert caught.value is no
            assert scheduler.get_metrics()["circuit_breaker_rejections"] == 1

    asyncio.run(run())
