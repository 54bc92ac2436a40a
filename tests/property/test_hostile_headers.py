"""Headers of any kind, contradictory and senseless ones: a given limit is kept all the same.

What an answer says may raise what a bucket has counted, and never lets more through than the limit
that was given. The oracle is the list of all admissions.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway import (
    DiscoveredBucket,
    Limit,
    ManualClock,
    ProviderInterface,
    RateLimiterConfig,
    RateLimitInfo,
    _core,
)
from headway.providers import provider_tables
from headway.scheduler import StateConfig, create_scheduler
from headway.transports import AsyncTransport

NOW = 1_800_000_000.0
DATA = Path(__file__).parents[2] / "python" / "headway" / "providers" / "data"
STATED: dict[str, list[dict[str, Any]]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))["limits"]
    for file in DATA.glob("*.json")
}
PARTS = ("limit", "remaining", "reset")
NAMED = (*PARTS, "period_in")
NAMES = sorted(
    {each[part] for limits in STATED.values() for each in limits for part in NAMED if part in each}
    | {"age", "date", "ratelimit", "ratelimit-policy", "retry-after", "retry-after-ms"}
    | {"x-should-retry"}
)
NUMBERS = st.one_of(
    st.integers(-2, 100).map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(repr),
    st.sampled_from(["0", "-0", "+5", "1e3", "1e308", "1e-308", "9007199254740993", "١٢"]),
)
SENSES = st.one_of(
    NUMBERS,
    st.tuples(NUMBERS, st.sampled_from(["s", "ms", "m", "h", "d", "ns", "µs", " ", "GMT"])).map(
        "".join
    ),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
    st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda n: f'"a";q={n[0]};w={n[1]};r={n[0]};t={n[2]}'),
    st.lists(NUMBERS, max_size=9).map(", ".join),
)
TEXTS = SENSES | st.text(max_size=80)
HEADERS = st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=12)


@st.composite
def lies(draw: st.DrawFn, table: str) -> dict[str, str]:
    """What a provider's answer may well say, of each of its limits, though it is not so."""
    headers: dict[str, str] = {}
    for stated in STATED[table]:
        if draw(st.integers(0, 3)) == 0:
            continue
        limit = draw(st.sampled_from([1, 2, 3, 20, 40, 41, 100, 10_000, 10**15]))
        wait = draw(st.sampled_from([0.0, 0.02, 1.0, 12.0, 30.0, 59.0, 60.0, 3600.0, 86_400.0]))
        at = NOW + wait
        left = draw(st.sampled_from([0, 1, limit // 2, limit, 2 * limit]))
        reset = {
            "any": f"{wait}",
            "duration": f"{wait}s",
            "ms": f"{wait * 1000:.0f}",
            "epoch": f"{at:.0f}",
            "epoch_ms": f"{at * 1000:.0f}",
            "date": datetime.fromtimestamp(at, timezone.utc).isoformat(),
        }[stated.get("reset_form", "any")]
        for part, text in zip(PARTS, (str(limit), str(left), reset), strict=True):
            if part in stated:
                headers[stated[part]] = text
    return headers


# As somebody's own client may give them.
ANYTHING = TEXTS | st.none() | st.integers() | st.floats() | st.binary() | st.lists(st.integers())
VALUES = st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=12)
# Repeated, and not of this world's alphabets.
RAW = st.lists(
    st.tuples(
        st.sampled_from(NAMES).map(str.encode),
        SENSES.map(lambda text: text.encode()) | st.binary(max_size=40),
    ),
    max_size=14,
)

# So small that a few admissions too many show.
AMOUNT, TOKENS = 2, 40
PERIOD = 60.0
NS = 1_000_000_000
SHAPES = st.sampled_from(["window", "bucket", "fixed"])


class Oracle:
    """All admissions, by instant in nanoseconds, and how many of them may be."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.taken: list[tuple[int, int]] = []

    def take(self, seconds: float, amount: int) -> None:
        now = round(seconds * NS)
        self.taken.append((now, amount))
        for since in {at for at, _ in self.taken}:
            used = sum(each for at, each in self.taken if at >= since)
            assert self.admits(used, now - since), (self.limit, self.taken)

    def admits(self, used: int, length: int) -> bool:
        """Whether it may in an interval of that length, both ends included."""
        limit = self.limit
        period = round(PERIOD * NS)
        if limit.shape == "bucket":
            assert limit.burst is not None
            return (used - limit.burst) * period <= limit.amount * length
        windows = length // period + 1
        # An interval may touch one window more than are within it.
        return used <= limit.amount * (windows + (limit.shape == "fixed"))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.sampled_from([0, 5, 20, 40])),
        st.tuples(st.just("send"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.sampled_from([0.001, 0.05, 1.0, 7.0, 12.0, 29.9, 61.0])),
        st.tuples(
            st.just("answer"),
            st.tuples(
                st.integers(0, 30), st.booleans(), st.sampled_from(sorted(provider_tables()))
            ),
        ),
    ),
    min_size=8,
    max_size=40,
)


@settings(max_examples=600, deadline=None)
@given(SHAPES, SHAPES, st.sampled_from([1.0, 0.9]), STEPS, st.data())
def test_what_is_observed_never_lets_more_through(
    requests: str, tokens: str, ratio: float, steps: list[tuple[str, Any]], data: st.DataObject
) -> None:
    clock = ManualClock(1000.0)
    limits = [
        Limit(AMOUNT, "requests", PERIOD, requests),
        Limit(TOKENS, "tokens", PERIOD, tokens),
        Limit(3, "concurrency"),
    ]
    names = ("requests", "tokens", "concurrency")
    core = _core.LimiterCore(limits, clock, names, learns=ratio)
    oracles = [Oracle(limit) for limit in limits[:2]]
    out: list[Any] = []
    for verb, value in steps:
        if verb == "advance":
            clock.advance(value)
        elif verb == "reserve":
            reservation = core.try_reserve(1, value, 1)
            if reservation:
                oracles[0].take(clock.now(), 1)
                oracles[1].take(clock.now(), value)
                out.append(reservation)
                assert len(out) <= 3
        elif verb == "send":
            if out:
                out[value % len(out)].sent(network_delay=0.02)
        elif out:
            place, refused, table = value
            reservation = out.pop(place % len(out))
            readings = provider_tables()[table].read(data.draw(st.one_of(lies(table), VALUES)), NOW)
            for reading in readings.as_list():
                assert 0 <= reading.get("limit", 0) <= 2**53
                assert 0 <= reading.get("remaining", 0) <= 2**53
                assert 0 <= reading.get("reset", 0) <= 2 * 365 * 86_400
            record = reservation._record()
            assert record is not None
            _core.observe(core, record, readings)
            reservation.answered(refused=refused)
            reservation.settle()


def lied_to(seed: int) -> None:
    """One limit, and a provider that says of itself what is not so, in every answer."""
    draws = random.Random(seed)
    amount = draws.choice([1, 2, 5, 10])
    shape = draws.choice(["window", "bucket", "fixed"])
    burst = draws.randint(1, 2 * amount) if shape == "bucket" and draws.random() < 0.3 else None
    clock = ManualClock(1000.0)
    limit = Limit(amount, "requests", PERIOD, shape, burst)
    core = _core.LimiterCore([limit], clock, ("requests",), learns=draws.choice([1.0, 0.9]))
    oracle = Oracle(limit)
    stated: dict[str, Any] = {"limit": "l", "remaining": "m", "reset": "r"}
    if draws.random() < 0.5:
        stated["period"] = draws.choice([60, 3600])
    if draws.random() < 0.5:
        stated["shape"] = draws.choice(["bucket", "window", "fixed"])
    table = _core.StatedLimits([stated], False)
    out: list[Any] = []
    for _ in range(draws.randint(5, 60)):
        verb = draws.random()
        if verb < 0.45:
            reservation = core.try_reserve(1)
            if reservation:
                oracle.take(clock.now(), 1)
                out.append(reservation)
        elif verb < 0.6 and out:
            draws.choice(out).sent(network_delay=draws.choice([0.0, 0.02, 1.0]))
        elif verb < 0.75:
            clock.advance(draws.choice([0.001, 0.02, 0.5, 1.0, 3.0, 6.0, 12.0, 30.0, 61.0]))
        elif out:
            reservation = out.pop(draws.randrange(len(out)))
            said = draws.choice([amount, amount, 2 * amount, max(1, amount // 2), 1000])
            left = draws.choice([0, 0, 1, said // 2, said, said])
            reset = draws.choice(["0s", "1s", "12s", "30s", "59s", "60s", "3600s", "soon"])
            record = reservation._record()
            assert record is not None
            _core.observe(
                core, record, table.read({"l": str(said), "m": str(left), "r": reset}, NOW)
            )
            reservation.answered(refused=draws.random() < 0.1)
            reservation.settle()


def test_no_lie_of_a_provider_lets_more_through() -> None:
    for seed in range(4000):
        lied_to(seed)


LIMIT, LEFT, RESET = (f"x-ratelimit-{part}-requests" for part in PARTS)
QUOTA = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "many"}


@pytest.mark.parametrize(
    ("table", "headers", "body", "oddities"),
    [
        ("openai", {LIMIT: "60", LEFT: "59", RESET: "1s"}, {}, 0),
        ("openai", {LIMIT: "sixty", LEFT: "59", RESET: "1s"}, {}, 1),
        ("openai", {LIMIT: "60", LEFT: "59.9.9", RESET: "soon"}, {}, 2),
        ("openai", {LIMIT: "60", LEFT: "-1", "date": "today"}, {}, 1),
        ("openai", {LIMIT: "60", LEFT: "61"}, {}, 1),
        ("openai", {LIMIT: "60", LEFT: "60"}, {}, 0),
        ("openai", {"retry-after": "a while"}, {}, 1),
        ("openai", {"retry-after": "1", "retry-after-ms": "a while"}, {}, 1),
        ("openai", {"retry-after": "2", "retry-after-ms": "1500"}, {}, 0),
        ("openai", {"retry-after": "1", "retry-after-ms": "90000"}, {}, 1),
        ("openai", {"x-should-retry": "True"}, {}, 0),
        ("openai", {"x-should-retry": "perhaps"}, {}, 1),
        ("generic", {"ratelimit-policy": '"a";w=60'}, {}, 1),
        ("generic", {"ratelimit-policy": '"a";q=60;w=60', "ratelimit": '"a";r=5'}, {}, 0),
        ("gemini", {}, {"error": {"details": [{"violations": [QUOTA]}]}}, 1),
        ("gemini", {}, {"error": {"details": [{"violations": [{**QUOTA, "quotaId": "x"}]}]}}, 0),
        ("gemini", {}, {"error": {"details": [{"retryDelay": "0s"}, {"retryDelay": "1s"}]}}, 0),
        ("gemini", {}, {"error": {"details": [{"retryDelay": "soon"}, {"retryDelay": "1s"}]}}, 1),
        ("venice", {}, {"error": "Please wait for 30s"}, 0),
        ("venice", {}, {"error": "Please wait 3.0.0s"}, 1),
    ],
)
def test_each_value_that_cannot_be_read_is_counted(
    table: str, headers: dict[str, str], body: dict[str, Any], oddities: int
) -> None:
    async def main() -> dict[str, Any]:
        config = RateLimiterConfig(max_retries=0)
        own = StateConfig(namespace=uuid.uuid4().hex)
        async with create_scheduler(None, config=config, state_config=own) as scheduler:
            answer = httpx.Response(429 if body else 200, headers=headers, json=body)
            transport = AsyncTransport(scheduler, httpx.MockTransport(lambda _: answer), table)
            async with httpx.AsyncClient(transport=transport) as client:
                await client.post("https://x.example/v1/chat", json={"model": "m"})
            return scheduler.get_metrics()

    metrics = asyncio.run(main())
    assert metrics["answer_oddities"] == metrics["buckets"]["m"]["answer_oddities"] == oddities
    (series,) = metrics["series"]["headway_answer_oddities_total"]
    assert series["value"] == oddities


def counted(answer: httpx.Response, **options: Any) -> int:
    """The oddities of an answer."""

    async def main() -> int:
        config = RateLimiterConfig(max_retries=0)
        own = StateConfig(namespace=uuid.uuid4().hex)
        async with create_scheduler(None, config=config, state_config=own, **options) as scheduler:
            transport = AsyncTransport(scheduler, httpx.MockTransport(lambda _: answer), "openai")
            async with httpx.AsyncClient(transport=transport) as client:
                await client.post("https://x.example/v1/chat", json={"model": "m"})
            return int(scheduler.get_metrics()["answer_oddities"])

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("kind", "body", "oddities"),
    [
        ("application/json", b'{"error":', 1),
        ("application/problem+json; charset=utf-8", b"\xff", 1),
        ("application/json", b"", 0),
        ("application/json", b"null", 0),
        ("application/json", b"[]", 0),
        ("text/html", b"<p>Too many requests</p>", 0),
    ],
)
def test_a_failure_that_says_that_it_is_json_and_is_none_is_counted(
    kind: str, body: bytes, oddities: int
) -> None:
    assert counted(httpx.Response(429, headers={"content-type": kind}, content=body)) == oddities


@pytest.mark.parametrize(
    ("body", "oddities"),
    [
        (b'{"usage": {"total_tokens": 7, "input_tokens": null, "cost": "1 $"}}', 0),
        (b'{"usage": {"total_tokens": "many", "input_tokens": -3}}', 2),
        (b'data: {"usage": {"total_tokens": 1e99}}\n\n', 1),
    ],
)
def test_a_use_that_cannot_be_read_is_counted_where_the_body_ends(
    body: bytes, oddities: int
) -> None:
    assert counted(httpx.Response(200, stream=httpx.ByteStream(body))) == oddities


class Own(ProviderInterface):
    name = "own"

    async def discover_limits(
        self, force_refresh: bool = False, timeout: float = 30.0
    ) -> dict[str, DiscoveredBucket]:
        return {}

    def parse_rate_limit_response(self, *told: Any) -> RateLimitInfo:
        return RateLimitInfo()

    async def get_bucket_for_model(self, model_id: str, resource_type: str | None = None) -> str:
        return model_id


@pytest.mark.parametrize(
    ("options", "oddities"),
    [
        ({"mode": "basic"}, 2),
        # Which words are a limit's is its affair.
        ({"provider": Own()}, 1),
    ],
)
def test_they_are_counted_where_nobody_learns_from_them(
    options: dict[str, Any], oddities: int
) -> None:
    odd = {LIMIT: "sixty", LEFT: "1", RESET: "1s", "retry-after": "a while"}
    assert counted(httpx.Response(429, headers=odd, json={}), **options) == oddities


@settings(max_examples=60, deadline=None)
@given(
    SHAPES,
    st.lists(
        st.tuples(
            st.sampled_from([200, 200, 429, 500]), RAW, st.sampled_from([0.0, 0.5, 20.0, 61.0])
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(sorted(provider_tables())),
)
def test_no_answer_through_a_transport_lets_more_through(
    shape: str, answers: list[tuple[int, list[tuple[bytes, bytes]], float]], table: str
) -> None:
    clock = ManualClock(1000.0)
    limit = Limit(AMOUNT, "requests", PERIOD, shape)
    oracle = Oracle(limit)

    def answer(_: httpx.Request) -> httpx.Response:
        oracle.take(clock.now(), 1)
        status, headers = answers[len(oracle.taken) % len(answers)][:2]
        return httpx.Response(status, headers=headers, stream=httpx.ByteStream(b"{}"))

    async def main() -> None:
        config = RateLimiterConfig(rate_limit_buffer_ratio=1.0, max_retries=1, max_failures=10_000)
        async with create_scheduler(None, config=config, limits=[limit], clock=clock) as scheduler:
            transport = AsyncTransport(scheduler, httpx.MockTransport(answer), table)
            async with httpx.AsyncClient(transport=transport) as client:
                tasks = []
                for _, _, pause in answers:
                    for _ in range(3):
                        post = client.post("https://x.example/v1/chat", json={"model": "m"})
                        tasks.append(asyncio.ensure_future(post))
                    for _ in range(8):
                        await asyncio.sleep(0)
                    clock.advance(pause)
                for task in tasks:
                    task.cancel()
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    assert isinstance(ended, (httpx.Response, asyncio.CancelledError))

    asyncio.run(main())
    assert oracle.taken
