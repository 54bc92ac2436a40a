"""What a provider is asked, how often, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from servers import Server, said
from users import Provider, Refused, asks, at_once, make, until

from headway import (
    BucketNotFoundError,
    DiscoveredBucket,
    ManualClock,
    MemoryBackend,
    ProviderError,
    RateLimitInfo,
    RequestMetadata,
    _core,
)
from headway.scheduler import (
    RateLimiterConfig,
    RateLimitState,
    StateManager,
    chores,
    create_scheduler,
)
from headway.transports import AsyncTransport, Transport


def test_a_thousand_requests_of_a_model_ask_once_for_its_bucket() -> None:
    async def run() -> None:
        provider = Provider()
        released = asyncio.Event()
        ours = provider.get_bucket_for_model

        async def slow(model_id: str, resource_type: str | None = None) -> str:
            await released.wait()
            return await ours(model_id, resource_type)

        provider.get_bucket_for_model = slow  # type: ignore[method-assign]
        async with make(provider=provider, max_concurrent_executions=1000) as scheduler:
            tasks = [
                asyncio.ensure_future(scheduler.submit_request(asks(), at_once))
                for _ in range(1000)
            ]
            await asyncio.sleep(0)
            # Some who ask give up: the others' answer is not lost with them.
            for task in tasks[:10]:
                task.cancel()
            released.set()
            assert await asyncio.gather(*tasks[10:]) == [42] * 990
            for _ in range(5):
                await scheduler.submit_request(asks(), at_once)
            assert provider.asked["m"] == 1
            assert provider.asked["discover_limits"] == 1

    asyncio.run(run())


def test_it_is_asked_on_the_loop_of_the_start_whoever_submits() -> None:
    """An HTTP client in it is of that loop, and fails on another."""
    loops = set()

    class Bound(Provider):
        async def get_bucket_for_model(
            self, model_id: str, resource_type: str | None = None
        ) -> str:
            loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            if model_id == "bad":
                raise BucketNotFoundError(model_id)
            return await super().get_bucket_for_model(model_id, resource_type)

    provider = Bound()
    scheduler = make(provider=provider)

    async def elsewhere() -> None:
        several = [scheduler.submit_request(asks(), at_once) for _ in range(9)]
        assert await asyncio.gather(*several) == [42] * 9
        with pytest.raises(BucketNotFoundError):
            await scheduler.submit_request(asks("bad"), at_once)

    async def run() -> None:
        async with scheduler:
            await asyncio.gather(
                *(asyncio.to_thread(lambda: asyncio.run(elsewhere())) for _ in range(3))
            )
            assert loops == {asyncio.get_running_loop()}
            assert provider.asked["m"] == 1

    asyncio.run(run())


def test_one_whose_loop_is_held_up_is_asked_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "PATIENCE", 0.01)

    async def run() -> None:
        async with make(provider=Provider()) as scheduler:
            asked = threading.Thread(
                target=lambda: asyncio.run(answered(scheduler.submit_request(asks(), at_once)))
            )
            asked.start()
            asked.join(10)  # which nobody should do on a loop
            assert not asked.is_alive()

    async def answered(request: Any) -> None:
        assert await request == 42

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SimpleNamespace(model_id="m"), "must be a RequestMetadata"),
        (asks(estimated_tokens=-1), "estimated_tokens -1: must be from 0 to 2"),
        (asks(priority="high"), "priority 'high': must be a whole number"),
        (asks(cost={"bananas": 1}), "'bananas' is no resource"),
    ],
)
@pytest.mark.parametrize("threads", [False, True])
def test_what_a_classifier_makes_wrong_is_said_to_be_its(
    given: Any, said: str, threads: bool
) -> None:
    class Classifier:
        async def classify(self, request: dict[str, Any]) -> Any:
            return given if request else asks()

    async def run() -> None:
        async with make(classifier=Classifier()) as scheduler:
            assert await scheduler.submit_request({}, at_once) == 42  # type: ignore[arg-type]
            request: Any = {"prompt": "hi"}
            with pytest.raises(
                ProviderError, match=f"classify of classifier 'Classifier' .*{said}"
            ):
                if threads:
                    await asyncio.to_thread(scheduler.submit_sync, request, lambda: 42)
                else:
                    await scheduler.submit_request(request, at_once)
            assert scheduler.get_metrics()["user_code_errors"] == {"classifier": 1}

    asyncio.run(run())


def test_limits_are_asked_for_at_start_and_now_and_then_and_changes_take_effect() -> None:
    async def run() -> None:
        provider = Provider()
        async with make(provider=provider, health_check_interval=0.02) as scheduler:
            assert provider.asked["discover_limits"] == 1
            await scheduler.submit_request(asks(), at_once)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].limit.amount == 1000
            provider.rpm = 7
            asked = provider.asked["discover_limits"]
            await until(lambda: provider.asked["discover_limits"] >= asked + 2)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].limit.amount == 7
            done = await asyncio.wait(
                [
                    asyncio.ensure_future(scheduler.submit_request(asks(), at_once))
                    for _ in range(10)
                ],
                timeout=0.1,
            )
            assert len(done[0]) == 6, "seven of the minute, and one was there before"
            for task in done[1]:
                task.cancel()

    asyncio.run(run())


def test_limits_take_effect_though_another_loop_uses_a_new_model_meanwhile() -> None:
    async def run() -> None:
        provider = Provider()
        async with make(provider=provider, health_check_interval=0.01) as scheduler:
            for model in ("m", "good"):
                await scheduler.submit_request(asks(model), at_once)
            buckets = scheduler._buckets
            learn, others = buckets._learn, 0

            async def elsewhere() -> None:
                assert await scheduler.submit_request(asks("bad"), at_once) == 42

            def interrupted(*given: Any) -> None:
                nonlocal others
                others += 1
                if others == 1:
                    with ThreadPoolExecutor(1) as pool:
                        pool.submit(asyncio.run, elsewhere()).result(20)
                learn(*given)

            provider.rpm = 7
            buckets._learn = interrupted  # type: ignore[method-assign]
            asked = provider.asked["discover_limits"]
            await until(lambda: provider.asked["discover_limits"] >= asked + 3)
            assert others
            for model in ("m", "good", "bad"):
                explanation = scheduler.explain(asks(model))
                assert explanation is not None
                assert explanation.limits[0].limit.amount == 7
            assert not scheduler.get_metrics()["user_code_errors"]

    asyncio.run(run())


def test_whatever_goes_wrong_with_an_answer_it_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        provider = Provider()
        options = {"health_check_interval": 0.01, "max_consecutive_failures": 2}
        async with make(provider=provider, **options) as scheduler:
            buckets = scheduler._buckets
            heed, wrong = buckets.discovered, 0

            def fails(given: Any) -> None:
                nonlocal wrong
                wrong += 1
                if wrong <= 2:
                    raise RuntimeError("it cannot be heeded")
                heed(given)

            await scheduler.submit_request(asks(), at_once)
            provider.rpm = 7
            buckets.discovered = fails  # type: ignore[method-assign]
            await until(lambda: wrong >= 4)
            explanation = scheduler.explain(asks())
            assert explanation is not None
            assert explanation.limits[0].limit.amount == 7
            assert scheduler.get_metrics()["user_code_errors"] == {"provider": 2}

    asyncio.run(run())
    told = [each.headway_event for each in caplog.records]  # type: ignore[attr-defined]
    assert told == ["user_code_raised", "provider_keeps_failing"]
    assert "refresh of provider 'mine' raised RuntimeError" in caplog.messages[0]


def test_buckets_are_forgotten_while_other_threads_make_and_forget_some() -> None:
    scheduler = make(limits=["10 requests/s"])
    buckets = scheduler._buckets
    for name in ("a", "b", "c"):
        buckets.make_unlisted(name)

    class Interrupting:
        """A bucket, at which whoever looks is interrupted by another thread that makes one."""

        @property
        def in_use(self) -> bool:
            buckets.make_unlisted("new")
            return True

    words = buckets._backend.words

    def forgotten_meanwhile(name: str) -> Any:
        """Another thread forgets it first."""
        buckets._buckets.pop(name, None)
        return words(name)

    buckets._buckets["b"] = Interrupting()  # type: ignore[assignment]
    buckets._backend.words = forgotten_meanwhile  # type: ignore[method-assign]
    buckets._forget()
    assert set(buckets._buckets) == {"b"}


def test_what_others_have_used_of_a_minute_by_ones_own_provider_stays_so_for_a_minute() -> None:
    class Telling(Provider):
        def parse_rate_limit_response(self, *_: Any) -> RateLimitInfo:
            self.asked["parse"] += 1
            if self.asked["parse"] > 1:
                return RateLimitInfo()
            return RateLimitInfo(rpm_limit=30, rpm_remaining=0)

    async def call() -> SimpleNamespace:
        return SimpleNamespace(status_code=200, headers={"x": "y"})

    async def run() -> None:
        clock, provider = ManualClock(), Telling()

        def others() -> int:
            found = _core.findings(scheduler._buckets.find("m", "", "m"))
            return sum(each["others"] for each in found)

        async with make(provider=provider, clock=clock) as scheduler:
            await scheduler.submit_request(asks(), call)
            await until(lambda: others() == 29)
            waiting = asyncio.ensure_future(scheduler.submit_request(asks(), call))
            for _ in range(50):
                clock.advance(1)
                await asyncio.sleep(0)
            assert others() == 29
            assert not waiting.done()
            clock.advance(20)
            await asyncio.wait_for(waiting, 20)

    asyncio.run(run())


def test_a_listed_bucket_that_makes_no_sense_is_listed_all_the_same() -> None:
    class Listing(Provider):
        limit: Any = -1

        async def discover_limits(self, *_: Any) -> dict[str, DiscoveredBucket]:
            found = DiscoveredBucket("m")
            found.rpm_limit = self.limit
            return {"good": DiscoveredBucket("good", 5), "m": found}

    async def run() -> None:
        provider = Listing()
        async with make(provider=provider) as scheduler:
            assert await scheduler.submit_request(asks(), at_once) == 42
            # The limits that it had, it keeps.
            for provider.limit in (7, -1):
                await scheduler._questions.refresh(force=True)
                explained = scheduler.explain(asks())
                assert explained is not None
                assert [each.limit.amount for each in explained.limits] == [7]
            assert scheduler.get_metrics()["user_code_errors"] == {"provider": 2}
        # And so in the bucket of another one that begins with it.
        async with make(provider=provider) as scheduler:
            assert await scheduler.submit_request(asks("good"), at_once) == 42

    asyncio.run(run())


def test_a_bucket_that_is_not_listed_is_said_not_to_be_there() -> None:
    async def run() -> None:
        async with make(provider=Provider()) as scheduler:
            for _ in range(2):
                with pytest.raises(BucketNotFoundError) as caught:
                    await scheduler.submit_request(asks("elsewhere-1"), at_once)
                assert caught.value.bucket_id == "elsewhere"
                assert str(caught.value).endswith(" (provider 'mine', model 'elsewhere-1')")
            assert await scheduler.submit_request(asks(), at_once) == 42
            # What is of no model was not named by the provider.
            nothing = RequestMetadata("r", "", "text", requires_model=False)
            assert await scheduler.submit_request(nothing, at_once) == 42

    asyncio.run(run())


def test_it_is_told_what_answers_say_and_a_refusal_cools_the_bucket_for_as_long_as_it_says() -> (
    None
):
    class Telling(Provider):
        def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
            self.told.append(told)
            limited = told[2] == 429
            return RateLimitInfo(retry_after=0.3 if limited else None, is_rate_limited=limited)

    async def run() -> None:
        provider = Telling()
        sent: list[float] = []

        async def call() -> Any:
            sent.append(time.monotonic())
            if len(sent) == 1:
                raise Refused(429, {"X-Mine-Reset": "0.3"}, {"error": {"code": "slow_down"}})
            return Refused(200, {"X-Mine-Left": "1"})

        async with make(provider=provider) as scheduler:
            await scheduler.submit_request(asks(), call)
            assert sent[1] - sent[0] >= 0.3
            await until(lambda: len(provider.told) == 2)
        assert provider.told == [
            ({"x-mine-reset": "0.3"}, {"error": {"code": "slow_down"}}, 429),
            ({"x-mine-left": "1"}, None, 200),
        ]

    asyncio.run(run())


class Learning(Provider):
    """Tells what its answers say of requests."""

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        return {}

    def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
        self.told.append(told)
        headers = told[0]
        return RateLimitInfo(
            rpm_limit=int(headers["x-mine-limit"]),
            rpm_remaining=int(headers["x-mine-left"]),
            rpm_reset=time.time() + 60,
        )


@pytest.mark.parametrize(
    ("found", "headers", "least", "most"),
    [
        ({"rpm_remaining": 0, "rpm_reset": 1006}, {}, 6, 7),
        ({"tpm_remaining": 0, "tpm_reset": 1006, "rpm_remaining": 0, "rpm_reset": 1002}, {}, 6, 7),
        # What it says in so many words, and what the answer does, go before.
        ({"rpm_remaining": 0, "rpm_reset": 1006, "retry_after": 2}, {}, 2, 3),
        ({"rpm_remaining": 0, "rpm_reset": 1006}, {"retry-after": "2"}, 2, 3),
        # Something is left; there was something again before it was said; it is too long to be so.
        ({"rpm_remaining": 3, "rpm_reset": 1006}, {}, 0, 0.001),
        ({"rpm_remaining": 0, "rpm_reset": 994}, {}, 0, 0.001),
        ({"rpm_remaining": 0, "rpm_reset": 10_000}, {}, 120, 121),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_of_which_it_tells_a_reset_alone_is_waited_for_until_then(
    found: dict[str, Any], headers: dict[str, str], least: float, most: float, status: int
) -> None:
    class Resetting(Provider):
        def parse_rate_limit_response(self, *_: Any) -> RateLimitInfo:
            return RateLimitInfo(is_rate_limited=True, timestamp=1000, **found)

    async def call() -> None:
        raise Refused(status, headers)

    async def run() -> None:
        provider = Resetting()
        async with make(provider=provider, max_retries=0, clock=ManualClock()) as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(asks(), call)
            held = scheduler.get_metrics()["buckets"]["m"]["cooled_for"]
            assert least <= held <= most

    asyncio.run(run())


_EVENT = b'data: {"choices": [], "usage": {"total_tokens": 7}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("threads", [False, True])
def test_under_a_transport_it_is_told_what_good_answers_say(streams: bool, threads: bool) -> None:
    """Their bodies are still to come then, and stay so: headers are what it is told."""

    def say(number: int, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        left = {"x-mine-limit": "7", "x-mine-left": str(7 - number)}
        if streams:
            return 200, {"content-type": "text/event-stream", **left}, _EVENT
        status, headers, content = said(200, {"usage": {"total_tokens": 7}})
        return status, {**headers, **left}, content

    asked = {"model": "m", "messages": []}
    provider = Learning()

    async def awaits(scheduler: Any, url: str) -> bytes:
        async with (
            httpx.AsyncClient(transport=AsyncTransport(scheduler), timeout=20) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response,
        ):
            await until(lambda: bool(provider.told))  # before any of the body is read
            return await response.aread()

    def waits(scheduler: Any, url: str) -> bytes:
        with (
            httpx.Client(transport=Transport(scheduler), timeout=20) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=asked) as response,
        ):
            return response.read()

    async def run(url: str) -> None:
        async with make(provider=provider) as scheduler:
            if threads:
                body = await asyncio.to_thread(waits, scheduler, url)
            else:
                body = await awaits(scheduler, url)
            assert b'"total_tokens": 7' in body
            await until(lambda: len(scheduler.learnt_limits()) == 1)
            assert scheduler.learnt_limits() == {"m": ["7 requests/min window"]}
        ((headers, answer, status),) = provider.told
        assert (headers["x-mine-left"], answer, status) == ("6", None, 200)

    with Server(say) as server:
        asyncio.run(run(server.url))


class Property(RateLimitInfo):
    """One of whose fields cannot even be read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "tpm_reset":
            raise LookupError("no reset")
        return super().__getattribute__(name)


class Neither:
    def __bool__(self) -> bool:
        raise ArithmeticError("neither true nor false")


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (RateLimitInfo(rpm_reset=10**400), "rpm_reset"),
        (RateLimitInfo(rpm_limit=-1), "rpm_limit': -1"),
        (RateLimitInfo(tpm_remaining="9"), "tpm_remaining': '9'"),  # type: ignore[arg-type]
        (RateLimitInfo(retry_after=float("nan")), "retry_after': nan"),
        (RateLimitInfo(is_rate_limited=Neither()), "is_rate_limited"),  # type: ignore[arg-type]
        (RateLimitInfo(timestamp=None), None),  # type: ignore[arg-type]
        (Property(), "raised LookupError: no reset"),
    ],
)
def test_what_an_info_holds_is_contained_too(
    info: RateLimitInfo, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Telling(Provider):
        def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
            return info

    async def run() -> None:
        tries = 0

        async def call() -> int:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise Refused(503, {"X-Mine": "1"})
            return 42

        async with make(provider=Telling(), max_backoff=0.01) as scheduler:
            assert await scheduler.submit_request(asks(), call) == 42
            assert tries == 2
            assert scheduler.get_metrics()["user_code_errors"].get("provider", 0) == bool(said)

    asyncio.run(run())
    origin = "parse_rate_limit_response of provider 'mine'"
    logged = [each for each in caplog.messages if origin in each]
    assert len(logged) == bool(said)
    assert said is None or said in logged[0]


@pytest.mark.parametrize("status", [403, 200])
def test_a_provider_decides_that_a_limit_was_reached_whatever_the_status(status: int) -> None:
    class Telling(Provider):
        def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
            self.told.append(told)
            return RateLimitInfo(is_rate_limited=len(self.told) == 1, retry_after=0.3)

    async def run() -> None:
        provider = Telling()
        sent: list[float] = []

        async def call() -> Any:
            sent.append(time.monotonic())
            if len(sent) == 1 and status >= 400:
                raise Refused(status, {"X-Mine": "1"})
            return Refused(200, {"X-Mine": "1"})

        async with make(provider=provider) as scheduler:
            await scheduler.submit_request(asks(), call)
            if status == 200:  # the next one is held up
                await until(lambda: str(scheduler.explain(asks())).count("fits in") > 0)
                await scheduler.submit_request(asks(), call)
        assert sent[1] - sent[0] >= 0.29
        assert len(sent) == 2

    asyncio.run(run())


def test_what_its_provider_does_not_call_a_limit_stays_final() -> None:
    async def run() -> None:
        sent = 0

        async def call() -> Any:
            nonlocal sent
            sent += 1
            raise Refused(403, {"X-Mine": "1"})

        provider = Provider()
        async with make(provider=provider) as scheduler:
            with pytest.raises(Refused):
                await scheduler.submit_request(asks(), call)
            assert (sent, len(provider.told)) == (1, 1)
            assert scheduler.get_metrics()["retries"] == 0

    asyncio.run(run())


def test_limited_without_a_time_backs_off() -> None:
    class Telling(Provider):
        def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
            return RateLimitInfo(is_rate_limited=told[2] == 400)

    async def run() -> None:
        sent = 0

        async def call() -> int:
            nonlocal sent
            sent += 1
            if sent <= 2:
                raise Refused(400, {})
            return 42

        async with make(provider=Telling(), max_backoff=0.05) as scheduler:
            assert await scheduler.submit_request(asks(), call) == 42
            assert sent == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"m": DiscoveredBucket("m", -5), "good": DiscoveredBucket("good", 5)}, "rpm_limit=-5"),
        ({"m": DiscoveredBucket("m", tpm_limit=2.5)}, "tpm_limit=2.5"),  # type: ignore[arg-type]
        ([DiscoveredBucket("m", 5)], "must be a dict of DiscoveredBucket"),
    ],
)
def test_nonsense_at_start_ends_the_start_where_there_is_no_going_on(given: Any, said: str) -> None:
    class Nonsense(Provider):
        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            return given

    async def run() -> None:
        scheduler = make(provider=Nonsense(), enable_graceful_degradation=False)
        with pytest.raises(ProviderError) as caught:
            await scheduler.start()
        assert not scheduler.is_running()
        for text in ("discover_limits of provider 'mine'", "enable_graceful_degradation", said):
            assert text in str(caught.value)
        assert said in str(caught.value.__cause__)
        async with make(provider=Nonsense()) as scheduler:  # else it goes on with what is known
            assert await scheduler.submit_request(asks("good"), at_once) == 42

    asyncio.run(run())


def test_what_a_provider_raised_at_start_is_the_cause() -> None:
    down = ValueError("down")

    class Down(Provider):
        async def discover_limits(self, force_refresh: bool = False, timeout: float = 30.0) -> Any:
            raise down

    async def run() -> None:
        with pytest.raises(ProviderError, match=r"failed at start.* ValueError: down") as caught:
            await make(provider=Down(), enable_graceful_degradation=False).start()
        assert caught.value.__cause__ is down

    asyncio.run(run())


def test_a_bucket_that_the_provider_itself_says_is_not_there_is_said_with_both_names() -> None:
    own = BucketNotFoundError("gone")

    class Knows(Provider):
        async def get_bucket_for_model(
            self, model_id: str, resource_type: str | None = None
        ) -> str:
            raise own

    async def run() -> None:
        async with make(provider=Knows()) as scheduler:
            with pytest.raises(BucketNotFoundError) as caught:
                await scheduler.submit_request(asks("x"), at_once)
        error = caught.value
        assert (error.bucket_id, error.provider, error.model_id) == ("gone", "mine", "x")
        assert error.__cause__ is own

    asyncio.run(run())


def test_a_state_shows_the_limit_that_is_kept_and_can_be_written_as_it_was_read() -> None:
    async def run() -> None:
        manager = StateManager(MemoryBackend(), provider=Provider())
        config = RateLimiterConfig(rate_limit_buffer_ratio=0.9)
        scheduler = create_scheduler(None, config=config, state_manager=manager)
        async with scheduler:
            await scheduler.submit_request(asks(), at_once)
            for _ in range(2):
                state = await manager.get_state("m")
                assert isinstance(state, RateLimitState)
                assert (state.request_limit, state.remaining_requests) == (900, 899)
                await manager.set_state("m", state)

    asyncio.run(run())
