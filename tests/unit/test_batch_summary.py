"""The numbers of a run: what the limits need at least, what is counted, how it is shown."""

from __future__ import annotations

import pytest

from headway import Limit
from headway.batch.ideal import Work, binding, least_seconds
from headway.batch.results import Outcome
from headway.batch.summary import Tally
from headway.batch.table import table


def work(requests: int = 0, tokens: int = 0, began: float = 0.0, latency: float = 0.1) -> Work:
    amounts = {"requests": requests, "tokens": tokens, "concurrency": requests}
    return Work(amounts, began, latency)


@pytest.mark.parametrize(
    ("limit", "requests", "seconds"),
    [
        ("60 requests/min bucket", 60, 0.0),
        ("60 requests/min bucket", 61, 1.0),
        ("60 requests/min bucket", 600, 540.0),
        ("60 requests/min bucket burst 1", 600, 599.0),
        ("60 requests/min window", 60, 0.0),
        ("60 requests/min window", 61, 60.0),
        ("60 requests/min window", 120, 60.0),
        ("60 requests/min window", 121, 120.0),
        ("60 requests/min", 121, 120.0),
        ("60 requests/min fixed", 121, 120.0),
        ("60 requests/min fixed", 60, 0.0),
        ("60 requests/min", 0, 0.0),
        ("0 requests/min", 5, 0.0),
        ("10 concurrency", 10, 0.0),
        ("10 concurrency", 100, 0.9),
        ("60 tokens/min", 100, 0.0),
    ],
)
def test_a_limit_needs_its_time_by_the_way_it_counts(
    limit: str, requests: int, seconds: float
) -> None:
    assert least_seconds(Limit.parse(limit), work(requests)) == pytest.approx(seconds)


def test_a_run_that_begins_late_in_a_fixed_window_waits_less_for_the_next() -> None:
    limit = Limit.parse("60 requests/min fixed")
    assert least_seconds(limit, work(61, began=59.0)) == pytest.approx(1.0)
    assert least_seconds(limit, work(60, began=59.0)) == 0.0
    anchored = Limit.parse("60 requests/min fixed anchor 30")
    assert least_seconds(anchored, work(61, began=59.0)) == pytest.approx(31.0)


def test_the_limit_that_needs_the_most_time_binds() -> None:
    requests, tokens = Limit.parse("60 requests/min"), Limit.parse("100 tokens/s bucket")
    assert binding((requests, tokens), work(61, 1000)) == (requests, 60.0)
    assert binding((requests, tokens), work(61, 10_000)) == (tokens, 99.0)


def test_a_tally_counts_attempts_and_requests_apart() -> None:
    tally = Tally(total=3)
    refused = Outcome(status=429, latency=9.0)
    answered = Outcome(status=200, latency=0.2, body={"usage": {"total_tokens": 7}})
    broken = Outcome(error=("connection_error", "gone"))
    for outcome in (refused, answered, broken):
        tally.attempt(outcome)
    for outcome in (answered, broken):
        tally.admit(("requests",), (1,))
        tally.end(outcome)
    tally.retries += 1
    summary = tally.summary((Limit.parse("1 requests/s window"),))
    assert (summary.requests, summary.succeeded, summary.failed) == (2, 1, 1)
    assert (summary.refusals, summary.retries, summary.tokens) == (1, 1, 7)
    # One period, and the latency of the only one that succeeded.
    assert summary.ideal_s == pytest.approx(1.2)
    assert summary.use == pytest.approx(1.2 / summary.elapsed_s)


def test_waits_are_quantiles_of_first_admissions() -> None:
    tally = Tally(total=100)
    for _ in range(100):
        tally.admit((), ())
    summary = tally.summary((Limit.parse("1 requests/s"),))
    assert summary.wait_p50_s is not None
    assert summary.wait_p99_s is not None
    assert 0 <= summary.wait_p50_s <= summary.wait_p99_s


def test_a_run_of_nothing_has_no_ideal_and_no_waits() -> None:
    numbers = Tally(total=0).summary((Limit.parse("1 requests/s"),)).as_dict()
    assert [name for name, value in numbers.items() if value is None] == [
        "ideal_s",
        "use",
        "wait_p50_s",
        "wait_p99_s",
    ]


def test_a_summary_has_exactly_the_promised_keys() -> None:
    numbers = Tally(total=0).summary((Limit.parse("1 requests/s"),)).as_dict()
    promised = "requests succeeded failed refusals retries tokens elapsed_s ideal_s use "
    assert " ".join(numbers) == promised + "wait_p50_s wait_p99_s"


def test_the_table_lines_up_and_names_what_is_missing_only_where_something_is() -> None:
    tally = Tally(total=5)
    summary = tally.summary(())
    shown = table(summary, tally, "1 requests/s", "out.jsonl")
    assert "without result  5" in shown
    assert "broken" not in shown
    assert {line.index("  ") > 0 for line in shown.splitlines()} == {True}
    tally.broken = 5
    shown = table(summary, tally, None, "out.jsonl")
    assert "without result" not in shown
    assert "broken lines    5" in shown
    assert "bound by        -" in shown
