"""The simulator's counting, against definitions so slow that they are obviously right.

Every oracle here keeps all admissions since the beginning and looks at all of them each time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.simulate.admission import Admission, Refusal
from headway.simulate.counting import Bucket, Count, Fixed, Window, count_of
from headway.simulate.patience import Patience
from headway.simulate.rules import Rule
from headway.simulate.tally import Tally
from headway.simulate.timetable import Change, timetable

Log = list[tuple[int, int]]
SECOND = 1_000_000_000
MICROSECOND = 1_000

# No deadline: how long an example takes says more about the machine than about the code.
thorough = settings(max_examples=400, deadline=None)


def allowed_by_intervals(rule: Rule, log: Log) -> bool:
    """`bucket`: no interval from one admission to another holds more than burst + rate x time."""
    rate = Fraction(rule.amount, rule.period_ns)
    return all(
        sum(cost for at, cost in log if start <= at <= end) <= rule.capacity + rate * (end - start)
        for start, _ in log
        for end, _ in log
        if start <= end
    )


def allowed_by_windows(rule: Rule, log: Log) -> bool:
    """`window`: no window that begins at an admission holds more than the amount."""
    return all(
        sum(cost for at, cost in log if start <= at < start + rule.period_ns) <= rule.amount
        for start, _ in log
    )


def allowed_by_anchored_windows(rule: Rule, log: Log, zero: int = 0) -> bool:
    """`fixed`: no anchored window holds more than the amount."""
    anchor = round((rule.anchor or 0) * SECOND)
    sums: Counter[int] = Counter()
    for at, cost in log:
        sums[(zero + at - anchor) // rule.period_ns] += cost
    return all(used <= rule.amount for used in sums.values())


ORACLES = {
    "bucket": allowed_by_intervals,
    "window": allowed_by_windows,
    "fixed": allowed_by_anchored_windows,
}

# Periods of a few nanoseconds make every boundary and every rounding common.
PERIODS = st.integers(1, 40).map(lambda nanoseconds: nanoseconds / SECOND)
ARRIVALS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5)), max_size=25)


@st.composite
def rules(draw: st.DrawFn, shape: str | None = None, resource: str = "requests") -> Rule:
    shape = shape or draw(st.sampled_from(sorted(ORACLES)))
    burst = draw(st.none() | st.integers(1, 12)) if shape == "bucket" else None
    return Rule(resource, draw(st.integers(0, 9)), draw(PERIODS), shape, burst)


@thorough
@given(rule=rules(), arrivals=ARRIVALS)
def test_a_cost_is_admitted_exactly_when_the_definition_allows_it(
    rule: Rule, arrivals: Log
) -> None:
    count = count_of(rule, 0)
    allowed = ORACLES[rule.shape]
    log: Log = []
    now = 0
    for gap, cost in arrivals:
        now += gap
        if cost == 0:
            continue
        fits = count.wait(now, cost) == 0
        assert fits == (cost <= rule.capacity and allowed(rule, [*log, (now, cost)]))
        if fits:
            count.take(now, cost)
            log.append((now, cost))


@thorough
@given(rule=rules(), arrivals=ARRIVALS, cost=st.integers(1, 12))
def test_a_wait_ends_at_the_first_nanosecond_at_which_the_cost_fits(
    rule: Rule, arrivals: Log, cost: int
) -> None:
    count = count_of(rule, 0)
    allowed = ORACLES[rule.shape]
    log: Log = []
    now = 0
    for gap, taken in arrivals:
        now += gap
        if count.wait(now, taken) == 0:
            count.take(now, taken)
            log.append((now, taken))
    wait = count.wait(now, cost)
    if wait is None:
        assert cost > rule.capacity
        return
    assert allowed(rule, [*log, (now + wait, cost)])
    assert wait == 0 or not allowed(rule, [*log, (now + wait - 1, cost)])
    assert count.wait(now + wait, cost) == 0


@thorough
@given(rule=rules(), arrivals=ARRIVALS)
def test_a_limit_is_full_again_when_it_says_so_and_not_before(rule: Rule, arrivals: Log) -> None:
    count = count_of(rule, 0)
    now = 0
    for gap, cost in arrivals:
        now += gap
        if count.wait(now, cost) == 0:
            count.take(now, cost)
    used = count.used(now)
    full_in = count.full_in(now)
    if used:
        assert count.used(now + full_in - 1) > 0
    assert count.used(now + full_in) == 0


@thorough
@given(rule=rules(), first=st.integers(0, 80), length=st.integers(0, 120))
def test_most_is_what_asking_at_every_nanosecond_would_get(
    rule: Rule, first: int, length: int
) -> None:
    if rule.shape == "bucket" and rule.amount:
        # So that each unit is paid for at a whole nanosecond, and asking at those misses nothing.
        rule = replace(rule, per_seconds=rule.period_ns * rule.amount / SECOND)
    count = count_of(rule, 0)
    got = 0
    for now in range(first, first + length + 1):
        while count.wait(now, 1) == 0:
            count.take(now, 1)
            got += 1
    assert count_of(rule, 0).most(first, first + length) == got


@thorough
@given(
    given_rules=st.lists(rules() | rules(resource="tokens"), max_size=4),
    arrivals=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=20),
)
def test_several_rules_admit_all_or_nothing(given_rules: list[Rule], arrivals: Log) -> None:
    admission = Admission(given_rules, 0)
    logs: dict[int, Log] = {at: [] for at in range(len(given_rules))}
    now = 0
    for gap, tokens in arrivals:
        now += gap
        costs = {"requests": 1, "tokens": tokens}
        after = {
            at: [*logs[at], (now, costs[rule.resource])] for at, rule in enumerate(given_rules)
        }
        fits = all(
            costs[rule.resource] <= rule.capacity and ORACLES[rule.shape](rule, after[at])
            for at, rule in enumerate(given_rules)
        )
        assert (admission.decide(now, costs) is None) == fits
        if fits:
            logs = after


@thorough
@given(arrivals=ARRIVALS, before=rules("bucket"), amount=st.integers(1, 9))
def test_a_changed_bucket_keeps_what_is_owed_in_units(
    arrivals: Log, before: Rule, amount: int
) -> None:
    count = Bucket(before)
    now = 0
    for gap, cost in arrivals:
        now += gap
        if count.wait(now, cost) == 0:
            count.take(now, cost)
    used = count.used(now)
    full_in = count.full_in(now)
    after = Rule("requests", amount, before.per_seconds)
    count.change(after, now)
    assert count.used(now) == used
    # The same debt is paid at the new rate instead of the old one.
    if before.amount:
        assert (full_in - 1) * before.amount <= count.full_in(now) * amount
        assert (count.full_in(now) - 1) * amount <= full_in * before.amount


def test_a_bucket_has_its_burst_at_once_and_then_one_unit_every_step() -> None:
    count = Bucket(Rule("requests", 500, 60.0))
    for _ in range(500):
        assert count.wait(0, 1) == 0
        count.take(0, 1)
    assert count.wait(0, 1) == 120_000 * MICROSECOND
    assert count.wait(119_999 * MICROSECOND, 1) == MICROSECOND
    assert count.wait(120_000 * MICROSECOND, 1) == 0


def test_a_bucket_whose_step_is_no_whole_number_does_not_drift() -> None:
    count = Bucket(Rule("requests", 7, 1.0, burst=1))
    now = 0
    for _ in range(7 * 1000):
        count.take(now, 1)
        now += count.wait(now, 1) or 0
    # Each step is rounded up to a nanosecond, and the rest of it is not lost.
    assert 1000 * SECOND <= now <= 1000 * SECOND + 7000


def test_a_small_burst_paces_a_large_limit() -> None:
    count = Bucket(Rule("requests", 600, 60.0, burst=1))
    count.take(0, 1)
    assert count.wait(0, 1) == SECOND // 10
    assert count.used(0) == 1


def test_a_window_frees_a_slot_one_period_after_it_was_taken() -> None:
    count = Window(Rule("requests", 2, 60.0, "window"))
    count.take(0, 1)
    count.take(10 * SECOND, 1)
    assert count.wait(60 * SECOND - MICROSECOND, 1) == MICROSECOND
    assert count.wait(60 * SECOND, 1) == 0
    assert count.wait(60 * SECOND, 2) == 10 * SECOND


def test_a_window_waits_only_for_as_much_as_the_cost_needs() -> None:
    count = Window(Rule("tokens", 10, 60.0, "window"))
    for at, cost in ((0, 5), (10, 2), (20, 3)):
        count.take(at * SECOND, cost)
    waits = [count.wait(20 * SECOND, cost) for cost in (1, 5, 6, 7, 8, 10, 11)]
    assert waits == [wait and wait * SECOND for wait in (40, 40, 50, 50, 60, 60, None)]


def test_a_fixed_window_ends_where_its_anchor_says() -> None:
    # At the instant 0 the wall clock shows 100 s; windows of 60 s start at 130 s, 190 s, …
    count = Fixed(Rule("requests", 1, 60.0, "fixed", anchor=130.0), 100 * SECOND)
    count.take(0, 1)
    assert count.wait(0, 1) == 30 * SECOND
    assert count.wait(30 * SECOND - MICROSECOND, 1) == MICROSECOND
    assert count.wait(30 * SECOND, 1) == 0


def test_fixed_windows_without_an_anchor_start_at_utc_midnight() -> None:
    day = 86_400 * SECOND
    count = Fixed(Rule("requests", 1, 86_400.0, "fixed"), 20_000 * day + 5)
    count.take(0, 1)
    assert count.wait(0, 1) == day - 5


@pytest.mark.parametrize("shape", ["bucket", "window", "fixed"])
def test_a_limit_of_nothing_never_fits_and_says_never(shape: str) -> None:
    count = count_of(Rule("requests", 0, 60.0, shape), 0)
    assert count.wait(0, 1) is None
    assert count.most(0, 3600 * SECOND) == 0


@pytest.mark.parametrize("shape", ["bucket", "window", "fixed"])
def test_a_limit_lowered_to_nothing_still_answers(shape: str) -> None:
    count = count_of(Rule("tokens", 10, 60.0, shape), 0)
    count.take(0, 10)
    count.change(Rule("tokens", 0, 60.0, shape), 1)
    assert count.wait(1, 1) is None
    assert count.full_in(1) > 0


def test_a_concurrency_limit_counts_what_has_not_ended() -> None:
    admission = Admission([Rule("concurrency", 2, shape="concurrency")], 0)
    costs = {"requests": 1, "tokens": 0}
    assert admission.decide(0, costs) is None
    assert admission.decide(0, costs) is None
    refusal = admission.decide(0, costs)
    assert refusal is not None
    assert refusal.wait_ns is None
    assert not refusal.never
    admission.end()
    assert admission.decide(0, costs) is None


def test_the_rule_that_must_be_waited_for_longest_is_named() -> None:
    minute, day = Rule("requests", 1, 60.0), Rule("tokens", 10, 86_400.0, "window")
    admission = Admission([minute, day], 0)
    assert admission.decide(0, {"requests": 1, "tokens": 10}) is None
    second = Refusal(minute, 1, 1, 60 * SECOND, 60 * SECOND)
    assert admission.decide(0, {"requests": 1, "tokens": 4}) == Refusal(
        day, 10, 4, 86_400 * SECOND, 86_400 * SECOND, (second,)
    )
    never = admission.decide(0, {"requests": 1, "tokens": 11})
    assert never is not None
    assert never.rule is day
    assert never.never


@pytest.mark.parametrize("shape", ["bucket", "window"])
def test_refused_requests_count_only_where_that_is_wanted(shape: str) -> None:
    costs = {"requests": 1, "tokens": 0}
    decided: dict[bool, list[bool]] = {}
    for count_refused in (False, True):
        admission = Admission([Rule("requests", 2, 2.0, shape)], 0, count_refused=count_refused)
        decided[count_refused] = [
            admission.decide(at * SECOND // 2, costs) is None for at in (0, 0, 1, 2, 3, 4, 5, 6, 10)
        ]
    assert decided[False].count(True) > decided[True].count(True)
    # Asking faster than the limit allows keeps it shut; a pause opens it.
    assert decided[True] == [True, True, *[False] * 6, True]


def test_rules_that_differ_in_amount_and_burst_only_go_on_counting() -> None:
    per_minute, paced = Rule("requests", 2, 60.0), Rule("requests", 60, 60.0, burst=1)
    admission = Admission([per_minute, paced], 0)
    costs = {"requests": 1, "tokens": 0}
    assert admission.decide(0, costs) is None
    admission.change([Rule("requests", 4, 60.0), Rule("requests", 60, 60.0, burst=2)], 0)
    assert [admission.decide(0, costs) is None for _ in range(2)] == [True, False]
    admission.change([Rule("requests", 4, 60.0, "window")], 0)
    assert [admission.decide(0, costs) is None for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [
        # Half of 60 is used at 30 s of a window, or paid back in a bucket by then.
        ("60 60 window", "90 60 window", 30),
        ("60 60 window", "20 60 window", 0),
        ("60 60 window", "90 3600 window", 30),
        ("60 60 bucket", "90 60 bucket", 60),
        ("60 60 bucket", "90 3600 bucket", 60),
        ("60 60 bucket", "1440 86400 fixed", 1410),
        ("60 60 window", "1440 86400 fixed", 1380),
        ("60 60 fixed", "90 60 window", 30),
    ],
)
def test_what_was_counted_stays_counted_when_a_limit_becomes_another(
    before: str, after: str, free: int
) -> None:
    def rule(text: str) -> Rule:
        amount, period, shape = text.split()
        return Rule("requests", int(amount), float(period), shape)

    admission = Admission([rule(before)], 0)
    costs = {"requests": 1, "tokens": 0}
    # In the middle of a minute, so that no fixed window ends here.
    assert [admission.decide(20 * SECOND, costs) for _ in range(60)] == [None] * 60
    now = 50 * SECOND
    admission.turn(rule(after), now)
    assert [count.rule for count in admission.rates] == [rule(after)]
    room = 0
    while admission.decide(now, costs) is None:
        room += 1
    assert room == free


def test_stamps_of_a_window_leave_by_the_period_that_holds_now() -> None:
    admission = Admission([Rule("requests", 2, 60.0, "window")], 0)
    costs = {"requests": 1, "tokens": 0}
    assert admission.decide(0, costs) is None
    assert admission.decide(30 * SECOND, costs) is None
    admission.turn(Rule("requests", 2, 40.0, "window"), 35 * SECOND)
    refusal = admission.decide(35 * SECOND, costs)
    assert refusal is not None
    assert refusal.wait_ns == 5 * SECOND
    assert admission.decide(40 * SECOND, costs) is None


def test_a_limit_turns_into_the_one_it_must_mean_or_says_that_it_might_be_several() -> None:
    minute, day = Rule("requests", 10, 60.0), Rule("requests", 100, 86_400.0, "fixed")
    hidden = Rule("requests", 5, 1.0, "window", hidden=True)
    tokens = Rule("tokens", 9)
    admission = Admission([minute, day, hidden], 0)
    less = Rule("requests", 50, 86_400.0, "fixed")
    admission.turn(less, 0)
    admission.turn(tokens, 0)
    admission.turn(Rule("concurrency", 3, shape="concurrency"), 0)
    admission.turn(Rule("concurrency", 2, shape="concurrency"), 0)
    assert [count.rule for count in admission.rates] == [minute, less, hidden, tokens]
    assert [rule.amount for rule in admission.concurrency] == [2]
    vague = Rule("requests", 7, 3600.0)
    with pytest.raises(ValueError, match="'7 requests/3600s bucket': might take the place of '10 "):
        timetable([minute, day], [Change(1.0, vague)])
    # In their order, the second finds only what the first has left.
    later, sooner = Change(2.0, less), Change(1.0, Rule("requests", 70, 86_400.0, "fixed"))
    assert timetable([minute, day], [later, sooner]) == [sooner, later]


def test_a_hidden_limit_refuses_and_is_not_told() -> None:
    hidden = Rule("requests", 1, 1.0, "window", hidden=True)
    shown = Rule("requests", 10, 60.0)
    admission = Admission([hidden, shown], 0)
    told = admission.told("requests")
    assert told is not None
    assert told.rule == shown
    assert admission.told("requests", 1.0) is None
    assert admission.decide(0, {"requests": 1, "tokens": 0}) is None
    refusal = admission.decide(0, {"requests": 1, "tokens": 0})
    assert refusal is not None
    assert refusal.rule == hidden


def test_patience_is_lost_for_a_while_after_more_failures_than_so_many() -> None:
    patience = Patience(2, 30.0)
    for at in (0, 10, 31):
        # The first has left by the time of the third.
        patience.fail(at * SECOND)
        assert not patience.lost(at * SECOND)
    patience.fail(35 * SECOND)
    assert patience.lost(35 * SECOND)
    assert patience.lost(65 * SECOND - 1)
    assert not patience.lost(65 * SECOND)
    # It begins anew: what was forgiven does not count again.
    patience.fail(65 * SECOND)
    assert not patience.lost(65 * SECOND)


def test_a_tally_says_how_many_requests_its_rules_could_have_admitted() -> None:
    admission = Admission(
        [
            Rule("requests", 10, 1.0, "window"),
            Rule("tokens", 100, 1.0),
            Rule("concurrency", 9, shape="concurrency"),
        ],
        0,
    )
    tally = Tally(admission)
    costs = {"requests": 1, "tokens": 30}
    for now in (SECOND, 2 * SECOND):
        for _ in range(4):
            if admission.decide(now, costs) is None:
                tally.admit(now, costs)
            else:
                tally.refuse(now, "10 requests/1s window")
    report = tally.report()
    assert (report["admitted"], report["refused"]) == (6, 2)
    assert report["refused_by"] == {"10 requests/1s window": 2}
    assert (report["first"], report["last"]) == (1.0, 2.0)
    assert [entry["used"] for entry in report["by_rule"]] == [6, 180, 6]
    assert [entry["most"] for entry in report["by_rule"]] == [20, 200, 9]
    # 200 tokens are room for six requests of 30, and the ten a second bind nobody.
    assert report["most"] == 6


def test_a_tally_of_nothing_has_no_instants_and_no_most() -> None:
    report = Tally(Admission([Rule("requests", 10)], 0)).report()
    assert report["most"] is report["first"] is report["last"] is None
    assert report["by_rule"][0]["most"] == 0


def test_every_kind_of_count_is_found_by_its_shape() -> None:
    kinds: dict[str, type[Count]] = {"bucket": Bucket, "window": Window, "fixed": Fixed}
    for shape, kind in kinds.items():
        assert type(count_of(Rule("requests", 1, 1.0, shape), 0)) is kind
    with pytest.raises(ValueError, match="'3 concurrency' is no rate"):
        count_of(Rule("concurrency", 3, shape="concurrency"), 0)
