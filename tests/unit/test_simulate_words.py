"""What the simulator reads and says: rules, options, token estimates, durations, requests."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.simulate.failures import DROP, Failure, failure_draws
from headway.simulate.forms import (
    Form,
    epoch_milliseconds,
    epoch_seconds,
    go_duration,
    milliseconds,
    rfc3339,
    seconds,
)
from headway.simulate.latency import Latency
from headway.simulate.parsing import Request, RequestError, RequestParser
from headway.simulate.rules import Rule
from headway.simulate.timetable import Change, parse_after
from headway.simulate.tokens import estimate_tokens

MILLISECOND = 1_000_000


@dataclass
class Stated:
    """The attributes of a Limit."""

    amount: int
    resource: str = "requests"
    per: float = 60.0
    shape: str | None = None
    burst: int | None = None
    anchor: float | None = None


def test_a_limit_without_a_shape_is_a_bucket() -> None:
    assert Rule.from_limit(Stated(500)) == Rule("requests", 500, 60.0, "bucket")


def test_a_limit_keeps_the_fields_that_its_shape_has() -> None:
    window = Rule.from_limit(Stated(5, "tokens", 1.0, "window", burst=5, anchor=0.0))
    assert window == Rule("tokens", 5, 1.0, "window")
    fixed = Rule.from_limit(Stated(5, "tokens", 1.0, "fixed", burst=5, anchor=7.5))
    assert fixed == Rule("tokens", 5, 1.0, "fixed", anchor=7.5)
    bucket = Rule.from_limit(Stated(5, "tokens", 1.0, "bucket", burst=5))
    assert bucket == Rule("tokens", 5, 1.0, "bucket")
    paced = Rule.from_limit(Stated(5, "tokens", 1.0, "bucket", burst=1))
    assert paced == Rule("tokens", 5, 1.0, "bucket", burst=1)
    crowd = Rule.from_limit(Stated(32, "concurrency", 0.0, "concurrency"))
    assert crowd == Rule("concurrency", 32, shape="concurrency")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"resource": "calls", "amount": 1}, "Rule.resource = 'calls'"),
        ({"resource": "requests", "amount": -1}, "Rule.amount = -1"),
        ({"resource": "requests", "amount": True}, "Rule.amount = True"),
        ({"resource": "requests", "amount": 1, "per_seconds": 0}, "Rule.per_seconds = 0"),
        ({"resource": "requests", "amount": 1, "per_seconds": "60"}, "Rule.per_seconds = '60'"),
        ({"resource": "requests", "amount": 1, "shape": "leaky"}, "Rule.shape = 'leaky'"),
        ({"resource": "requests", "amount": 1, "shape": "concurrency"}, "cannot count"),
        ({"resource": "requests", "amount": 1, "burst": 0}, "Rule.burst = 0"),
        ({"resource": "requests", "amount": 1, "shape": "window", "burst": 2}, "means nothing"),
        ({"resource": "requests", "amount": 1, "anchor": 1.0}, "means nothing"),
        ({"resource": "requests", "amount": 1, "hidden": 1}, "Rule.hidden = 1: must be true"),
        ({"resource": "requests"}, "needs the field 'amount'"),
        ({"resource": "requests", "amount": 1, "per": 60}, "no field 'per'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Rule.from_json(fields)
    assert why in str(caught.value)


def test_a_rule_says_itself_in_the_words_that_limits_are_given_in() -> None:
    assert str(Rule("requests", 100, 1.0, burst=10)) == "100 requests/1s bucket burst 10"
    assert str(Rule("tokens", 200_000, 60.0, "window")) == "200000 tokens/60s window"
    month = Rule("requests", 9, 2_678_400.0, "fixed", anchor=-28_800.0)
    assert str(month) == "9 requests/2678400s fixed anchor -28800"
    assert str(Rule("requests", 9, 1.5)) == "9 requests/1.5s bucket"
    assert str(Rule("requests", 9, 1.0, "window", hidden=True)) == "9 requests/1s window hidden"
    assert str(Rule.from_json({"resource": "concurrency", "amount": 32})) == "32 concurrency"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12 * MILLISECOND, "12ms"),
        (999 * MILLISECOND + 1, "1s"),
        (7660 * MILLISECOND, "7.66s"),
        (60_000 * MILLISECOND, "1m0s"),
        (179_560 * MILLISECOND, "2m59.56s"),
        (977_764 * MILLISECOND, "16m17.764s"),
        (360_000 * MILLISECOND, "6m0s"),
        (3_723_000 * MILLISECOND, "1h2m3s"),
        (86_400_000 * MILLISECOND, "24h0m0s"),
    ],
)
def test_durations_are_written_as_go_writes_them(nanoseconds: int, text: str) -> None:
    assert go_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (seconds, "17"),
        (milliseconds, "16001"),
        (epoch_seconds, "1700000018"),
        (epoch_milliseconds, "1700000017001"),
        (rfc3339, "2023-11-14T22:13:37Z"),
    ],
)
def test_one_wait_is_written_in_many_forms(form: Form, text: str) -> None:
    present = 1_700_000_001_000_000_000
    assert form(16_000 * MILLISECOND + 1, present) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30.0), ("30", 30.0), ("1.5m", 90.0), ("2min", 120.0), ("2h", 7200.0), ("500ms", 0.5)],
)
def test_times_of_a_timetable_have_a_unit_or_are_seconds(text: str, expected: float) -> None:
    assert parse_after(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1d", "1m30s", "nan", "1e3"])
def test_a_time_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="not one after the start") as caught:
        parse_after(text)
    assert f"time {text!r}" in str(caught.value)
    with pytest.raises(ValueError, match=r"Change\.after = -1\.0: must be finite"):
        Change(-1.0, Rule("requests", 1))


@pytest.mark.parametrize(
    ("body", "prompt", "counted"),
    [
        ({}, 0, 0),
        ({"messages": [{"role": "user", "content": "x" * 9}]}, 3, 3),
        ({"messages": [{"role": "user", "content": "x" * 9}], "max_tokens": 2}, 3, 3),
        ({"messages": [{"role": "user", "content": "x" * 9}], "max_tokens": 50}, 3, 50),
        ({"max_completion_tokens": 70, "max_tokens": 50}, 0, 70),
        ({"input": ["abcd", "efgh"], "instructions": "ij", "max_output_tokens": None}, 3, 3),
        ({"prompt": [1, 2, 3]}, 3, 3),
        ({"input": [[1, 2], [3]]}, 3, 3),
        (
            {
                "messages": [
                    {"role": "system", "content": "four"},
                    {
                        "role": "user",
                        "name": "somebody",
                        "content": [
                            {"type": "text", "text": "what?"},
                            {"type": "image_url", "image_url": {"url": "data:" + "A" * 1000}},
                        ],
                    },
                ]
            },
            3,
            3,
        ),
    ],
)
def test_tokens_are_the_larger_of_the_maximum_and_a_quarter_of_the_characters(
    body: dict[str, Any], prompt: int, counted: int
) -> None:
    estimate = estimate_tokens(body)
    assert (estimate.prompt, estimate.counted) == (prompt, counted)


@pytest.mark.parametrize("value", [-1, 1.5, "16", True, [1]])
def test_a_maximum_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="Invalid 'max_tokens'"):
        estimate_tokens({"max_tokens": value})


def test_latency_is_constant_unless_it_is_told_to_vary() -> None:
    draw = Latency.parse("0.25").draws(1)
    assert {draw() for _ in range(10)} == {0.25}


def test_jitter_spreads_latency_evenly_to_both_sides_and_never_below_zero() -> None:
    draw = Latency.parse("0.01", jitter=0.05).draws(1)
    drawn = [draw() for _ in range(5000)]
    assert min(drawn) == 0.0
    assert 0.059 < max(drawn) <= 0.06
    assert 0.35 < sum(value == 0.0 for value in drawn) / len(drawn) < 0.45


def test_lognormal_latency_has_the_median_and_sigma_that_were_asked_for() -> None:
    draw = Latency.parse("lognormal:4:0.5").draws(1)
    drawn = sorted(draw() for _ in range(5000))
    assert 3.8 < statistics.median(drawn) < 4.2
    # One standard deviation up, in the logarithm, is at the 84th per cent.
    assert 1.5 < drawn[int(0.841 * len(drawn))] / statistics.median(drawn) < 1.8


def test_the_same_seed_draws_the_same_latencies_and_failures() -> None:
    latency = Latency(1.0, sigma=1.0)
    failures = [Failure(500, 0.3)]
    for draws in (latency.draws, lambda seed: failure_draws(failures, seed)):
        first, again, other = draws(7), draws(7), draws(8)
        drawn = [first() for _ in range(50)]
        assert drawn == [again() for _ in range(50)]
        assert drawn != [other() for _ in range(50)]


@pytest.mark.parametrize("text", ["", "fast", "-1", "inf", "lognormal", "lognormal:1:2:3", "a:1"])
def test_a_latency_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Latency.parse(text)
    assert f"latency {text!r}" in str(caught.value)


def test_a_latency_with_a_unit_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"'50ms': neither SECONDS, as in 0\.05, nor lognormal"):
        Latency.parse("50ms")


def test_failures_come_in_the_shares_that_were_asked_for() -> None:
    draw = failure_draws([Failure.parse("500:0.2"), Failure.parse("drop:0.1")], 3)
    drawn = [draw() for _ in range(10_000)]
    assert 1850 < drawn.count(500) < 2150
    assert 900 < drawn.count(DROP) < 1100
    assert drawn.count(None) == 10_000 - drawn.count(500) - drawn.count(DROP)


@pytest.mark.parametrize("text", ["500", "500:", "200:0.1", "500:1.1", "drop:-1", ":0.1"])
def test_a_failure_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Failure.parse(text)
    assert f"failure {text!r}" in str(caught.value)


def test_shares_of_failures_that_are_more_than_everything_are_refused() -> None:
    with pytest.raises(ValueError, match=r"add up to 1\.2"):
        failure_draws([Failure(500, 0.6), Failure(503, 0.6)], 0)


PLAIN = b"POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /v1/y HTTP/1.1\r\nhost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nhel\r\n002;why=not\r\nlo\r\n0\r\nTrailer: x\r\n\r\n"
)
EMPTY = b"\r\nGET http://h:1/z HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=30))
def test_requests_are_the_same_however_their_bytes_are_split(sizes: list[int]) -> None:
    data = PLAIN + CHUNKED + EMPTY
    parser = RequestParser()
    got: list[Request] = []
    for size in [*sizes, len(data)]:
        parser.feed(data[:size])
        data = data[size:]
        while (request := parser.next()) is not None:
            got.append(request)
    assert [(request.method, request.path, request.body) for request in got] == [
        ("POST", "/v1/x", b"hello"),
        ("POST", "/v1/y", b"hello"),
        ("GET", "/z", b""),
    ]
    assert [request.keep_alive for request in got] == [True, True, False]
    assert got[0].query == "a=1"
    assert parser.waiting == 0


def first_error(data: bytes) -> RequestError:
    parser = RequestParser()
    parser.feed(data)
    with pytest.raises(RequestError) as caught:
        while parser.next() is not None:
            continue
    return caught.value


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"HELLO\r\n\r\n", 400, "Not a request line: 'HELLO'"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "HTTP/2.0"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400, "CR LF"),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, "Not a header line: 'Host : h'"),
        (b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400, "Not a header line"),
        (b"GET http://[h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "Not a target"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n", 400, "'+5'"),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            400,
            "'5, 6'",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "Both",
        ),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "'gzip'"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999\r\n\r\n", 413, "999999999"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 40_000, 431, "longer than 32768"),
        (b"P / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "xyz"),
        (
            b"P / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
            400,
            "chunk of 2 bytes",
        ),
        (
            b"P / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
            413,
            "longer",
        ),
    ],
)
def test_a_request_that_cannot_be_understood_is_answered_with_the_reason(
    data: bytes, status: int, reason: str
) -> None:
    error = first_error(data)
    assert error.status == status
    assert reason in error.reason


def test_the_same_content_length_twice_is_one_content_length() -> None:
    parser = RequestParser()
    parser.feed(b"P / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok")
    request = parser.next()
    assert request is not None
    assert request.body == b"ok"
