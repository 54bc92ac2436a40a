"""The numbers of a run: what the limits need at least, what is counted, how it is shown."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from headway import Limit
from headway.batch.groups import MOST, Groups
from headway.batch.ideal import Work, least_seconds
from headway.batch.lines import Line
from headway.batch.plan import Plan
from headway.batch.results import Outcome
from headway.batch.summary import Tally
from headway.batch.table import table


def line(model: str = "m", account: str | None = None) -> Line:
    return Line(1, "a", "/v1/chat/completions", {"model": model}, account)


def tally_of(total: int, *limits: str, **plan: Any) -> Tally:
    return Tally(total, Plan(tuple(Limit.parse(text) for text in limits), **plan))


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


def bound_by(plan: Plan, latency: float = 0.1, **taken: Counter[str]) -> tuple[str, float]:
    names = {name.replace("_", " "): amounts for name, amounts in taken.items()}
    return plan.binding(names, 0.0, latency)


def took(requests: int, tokens: int) -> Counter[str]:
    return Counter(requests=requests, tokens=tokens, concurrency=requests)


def test_the_limit_that_needs_the_most_time_binds() -> None:
    plan = Plan((Limit.parse("60 requests/min"), Limit.parse("100 tokens/s bucket")))
    assert bound_by(plan, every_model=took(61, 1000)) == ("60 requests/min", 60.0)
    assert bound_by(plan, every_model=took(61, 10_000)) == ("100 tokens/s bucket", 99.0)


def test_a_models_own_limit_binds_for_what_that_model_took() -> None:
    plan = Plan((Limit.parse("60 requests/min"),), {"m": (Limit.parse("1 requests/s bucket"),)}, 10)
    few = took(60, 0)
    assert bound_by(plan, every_other_model=few, m=took(31, 0)) == (
        "1 requests/s bucket of m",
        30.0,
    )
    assert bound_by(plan, every_other_model=took(61, 0), m=took(31, 0))[1] == 60.0
    assert bound_by(plan, latency=50.0, every_other_model=few, m=took(40, 0)) == (
        "10 concurrency",
        450.0,
    )


def test_a_tally_counts_attempts_and_requests_apart() -> None:
    tally = tally_of(3, "1 requests/s window")
    refused = Outcome(status=429, latency=9.0)
    answered = Outcome(status=200, latency=0.2, body={"usage": {"total_tokens": 7}})
    broken = Outcome(error=("connection_error", "gone"))
    for outcome in (refused, answered, broken):
        tally.attempt(outcome)
    for outcome in (answered, broken):
        tally.admit(line(), {"requests": 1, "concurrency": 1})
        tally.end(line(), outcome)
    tally.retries += 1
    summary = tally.summary()
    assert tally.reasons == {"connection_error": 1}
    assert (summary.requests, summary.succeeded, summary.failed) == (2, 1, 1)
    assert (summary.refusals, summary.retries, summary.tokens) == (1, 1, 7)
    # One period, and the latency of the only one that succeeded.
    assert summary.ideal_s == pytest.approx(1.2)
    assert summary.use == pytest.approx(1.2 / summary.elapsed_s)


def test_waits_are_quantiles_of_first_admissions() -> None:
    tally = tally_of(100, "1 requests/s")
    for _ in range(100):
        tally.admit(line(), {})
    summary = tally.summary()
    assert summary.wait_p50_s is not None
    assert summary.wait_p99_s is not None
    assert 0 <= summary.wait_p50_s <= summary.wait_p99_s


def test_a_run_of_nothing_has_no_ideal_and_no_waits() -> None:
    numbers = tally_of(0, "1 requests/s").summary().as_dict()
    assert [name for name, value in numbers.items() if value is None] == [
        "ideal_s",
        "use",
        "wait_p50_s",
        "wait_p99_s",
    ]


def test_a_summary_has_exactly_the_promised_keys() -> None:
    numbers = tally_of(0, "1 requests/s").summary().as_dict()
    promised = "requests succeeded failed refusals retries tokens elapsed_s ideal_s use "
    assert " ".join(numbers) == promised + "wait_p50_s wait_p99_s"


def test_the_table_lines_up_and_names_what_is_missing_only_where_something_is() -> None:
    tally = tally_of(5)
    summary = tally.summary()
    shown = table(summary, tally, "1 requests/s", "out.jsonl")
    assert "without result  5" in shown
    assert "broken" not in shown
    assert {line.index("  ") > 0 for line in shown.splitlines()} == {True}
    tally.broken = 5
    shown = table(summary, tally, None, "out.jsonl")
    assert "without result" not in shown
    assert "broken lines    5" in shown
    assert "bound by        -" in shown
    assert "because" not in shown


def test_the_table_says_why_requests_failed() -> None:
    tally = tally_of(4)
    for outcome in (Outcome(status=500), Outcome(error=("timeout", "")), Outcome(status=500)):
        tally.end(line(), outcome)
    rows = table(tally.summary(), tally, None, "out.jsonl").splitlines()
    assert rows[2:4] == ["failed          3", "failed because  2 status 500, 1 timeout"]


def test_several_models_or_accounts_have_a_row_each_and_one_has_none() -> None:
    tally = tally_of(9)
    for model, account in [("small", "a"), ("small", None), ("large\x1b[2J", "a")]:
        tally.admit(line(model, account), {})
        tally.end(line(model, account), Outcome(status=200))
    tally.end(line("small", "a"), Outcome(status=500))
    *_, models, accounts = table(tally.summary(), tally, None, "out.jsonl").split("\n\n")
    names = [row.split("  ")[0] for row in models.splitlines()]
    assert names == ["model", "small", "'large\\x1b[2J'"]
    assert models.splitlines()[1].split()[:3] == ["small", "3", "1"]
    assert [row.split()[:3] for row in accounts.splitlines()[1:]] == [
        ["a", "3", "1"],
        ["(none)", "1", "0"],
    ]
    assert len({len(row) for row in models.splitlines()}) == 1
    alone = tally_of(1)
    alone.end(line("m", "a"), Outcome(status=200))
    assert "\n\n" not in table(alone.summary(), alone, None, "out.jsonl")


def test_a_table_has_only_so_many_rows_whatever_names_a_file_has() -> None:
    tally = tally_of(9)
    for number in range(50):
        tally.end(line(account=f"{'long' * 20}{number}"), Outcome(status=200))
    rows = table(tally.summary(), tally, None, "out.jsonl").split("\n\n")[1].splitlines()
    assert len(rows) == 1 + 20 + 1
    assert rows[-1] == "and 30 more"
    assert all(len(row) < 100 for row in rows)
    groups = Groups()
    for number in range(MOST + 5):
        groups.of(str(number)).requests += 1
    assert len(groups) == MOST
    assert list(groups)[-1][0] == "all others"
    assert list(groups)[-1][1].requests == 5
