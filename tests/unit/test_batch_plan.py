"""A plan: which limits hold for which line, and what the scheduler is told of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from headway import Limit
from headway.batch.keys import Keys
from headway.batch.lines import Broken, Line
from headway.batch.plan import Plan
from headway.batch.pointer import Pointer
from headway.providers import provider_tables
from headway.scheduler import SchedulerMode

REQUESTS = (Limit.parse("10 requests/s"),)
TOKENS = (Limit.parse("10 requests/s"), Limit.parse("1000 tokens/s"))


def line(model: str = "m", **fields: Any) -> Line:
    body = {"model": model, "messages": [{"role": "user", "content": "x" * 400}]}
    return Line(3, "a", "/v1/chat/completions", body, **fields)


def test_models_share_a_bucket_but_for_those_that_have_their_own() -> None:
    plan = Plan(REQUESTS, {"m": REQUESTS})
    assert [plan.bucket_of(line(model)) for model in ("m", "n", "", "M")] == [
        "m",
        "every other model",
        "every other model",
        "every other model",
    ]
    assert Plan(REQUESTS).bucket_of(line()) == "every model"


def test_no_model_is_taken_for_all_others() -> None:
    plan = Plan(REQUESTS, {"every other model": REQUESTS})
    assert plan.bucket_of(line("n")) != plan.bucket_of(line("every other model"))


def test_tokens_are_estimated_where_they_are_limited() -> None:
    plan = Plan(REQUESTS, {"m": TOKENS})
    assert plan.amounts_of(line("m")) == {"requests": 1, "concurrency": 1, "tokens": 100}
    assert plan.amounts_of(line("n")) == {"requests": 1, "concurrency": 1}


def test_the_scheduler_is_told_bucket_cost_account_and_priority_and_no_timeout() -> None:
    plan = Plan(REQUESTS, {"m": TOKENS})
    given = line("m", account="u", priority=5)
    metadata = plan.metadata_of(given, plan.amounts_of(given))
    assert (metadata.request_id, metadata.model_id, metadata.client_id) == ("a", "m", "u")
    assert (metadata.priority, metadata.estimated_tokens, metadata.timeout) == (5, 100, None)
    assert metadata.deadline is None


def test_lines_are_told_apart_only_where_it_matters() -> None:
    assert Plan(REQUESTS).lane_of is None
    by_model = Plan(REQUESTS, {"m": REQUESTS}).lane_of
    assert by_model is not None
    assert len({by_model(line(model)) for model in ("m", "n", "o")}) == 2
    by_key = Plan(REQUESTS, keys=Keys(Pointer("/a"), Pointer("/b"))).lane_of
    assert by_key is not None
    given = [line(account=account, priority=n) for account in (None, "u") for n in (0, 1)]
    assert len({by_key(each) for each in given}) == 4


def test_a_model_that_no_limit_holds_for_is_not_sent() -> None:
    given = [Broken(1, "no"), line("m"), line("n")]
    basic = SchedulerMode.BASIC
    broken, own, other = Plan(by_model={"m": REQUESTS}, mode=basic).check(given)
    assert (broken, own) == (given[0], given[1])
    assert isinstance(other, Line)
    assert other.wrong == (
        "no_limits",
        "line 3: model 'n' has no --model-limits, and there are no --limits for all others",
    )
    for plan in (
        Plan(REQUESTS, {"m": REQUESTS}),
        Plan(by_model={"m": REQUESTS}, concurrency=1, mode=basic),
        Plan(by_model={"m": REQUESTS}),  # it finds out
    ):
        assert list(plan.check(given)) == given


def test_without_limits_each_model_is_a_bucket_of_its_own_and_counted_wholly() -> None:
    plan = Plan()
    assert plan.discovers
    assert not Plan(REQUESTS).discovers
    assert [plan.bucket_of(line(model)) for model in ("m", "n")] == ["m", "n"]
    assert plan.amounts_of(line("m"))["tokens"] >= 1
    assert plan.lane_of is not None
    scheduler = plan.scheduler(100, request_timeout=5.0, max_retries=2)
    assert scheduler._asks_first() > 0
    plan.found["m"] = REQUESTS
    taken = {"m": Counter(requests=10**6)}
    assert plan.binding(taken, 0.0, 1.0)[0].endswith(" of m")


def test_the_scheduler_uses_all_of_the_limits() -> None:
    plan = Plan(TOKENS, {"m": REQUESTS}, concurrency=7, mode=SchedulerMode.BASIC)
    scheduler = plan.scheduler(100, request_timeout=5.0, max_retries=2)
    config = scheduler.config
    assert (config.rate_limit_buffer_ratio, config.max_concurrent_executions) == (1.0, 7)
    assert (config.mode, config.request_timeout, config.max_retries) == (
        SchedulerMode.BASIC,
        5.0,
        2,
    )
    for given, limits in ((line("m"), REQUESTS), (line("n"), TOKENS)):
        explained = scheduler.explain(plan.metadata_of(given, plan.amounts_of(given)))
        assert explained is not None
        assert tuple(state.limit for state in explained.limits) == limits
    assert plan.scheduler(3).config.max_concurrent_executions == 3


def test_those_that_go_out_at_once_go_by_priority_and_by_shares() -> None:
    plan = Plan(REQUESTS, weights={"gold": 2.0})
    lines = [line(account=account) for account in [None] * 3 + ["free"] * 3 + ["gold"] * 4]
    lines += [line(priority=-1), line(priority=5, account="free")]
    turns = plan.in_turns(lines)
    assert [each.priority for each in turns] == [5, *[0] * 10, -1]
    assert [each.account for each in turns[1:11]] == [
        *(None, "free", "gold"),
        "gold",
        *(None, "free", "gold"),
        "gold",
        *(None, "free"),
    ]


def test_equals_stay_in_the_order_of_the_file() -> None:
    lines = [line() for _ in range(5)]
    assert [id(each) for each in Plan(REQUESTS).in_turns(lines)] == [id(each) for each in lines]


def test_models_that_share_limits_are_found_out_together() -> None:
    plan = Plan(by_model={"claude-opus-4-1": REQUESTS}, table=provider_tables()["anthropic"])
    assert plan.bucket_of(line("claude-opus-4-8")) == "claude-opus-4"
    assert plan.bucket_of(line("claude-opus-4-1")) == "claude-opus-4-1", "it has its own"
    assert plan.metadata_of(line("claude-opus-4-8"), {}).model_id == "claude-opus-4"


def test_what_is_found_out_is_estimated_and_settled_by_resource() -> None:
    plan = Plan(by_model={"own": TOKENS}, table=provider_tables()["openai"])
    asked = line()
    asked.body["max_tokens"] = 500
    assert plan.amounts_of(asked) == {
        "requests": 1,
        "concurrency": 1,
        "tokens": 500,
        "input_tokens": 100,
        "output_tokens": 256,
    }
    assert plan.metadata_of(asked, plan.amounts_of(asked)).cost == plan.amounts_of(asked)
    answer = {"usage": {"prompt_tokens": 90, "completion_tokens": 20, "total_tokens": 110}}
    used = plan.used_by(asked, answer, plan.amounts_of(asked))
    assert used == {"input_tokens": 90, "output_tokens": 20}, "of tokens nothing is given back"
    assert plan.amounts_of(asked)["output_tokens"] == 20
    assert plan.used_by(asked, "no JSON", {}) == {}
    own = line("own")
    assert plan.metadata_of(own, plan.amounts_of(own)).cost is None


def test_tokens_are_estimated_as_the_provider_counts_them() -> None:
    asked = line()
    asked.body["max_tokens"] = 500
    amounts = [
        Plan(TOKENS, table=provider_tables()[name]).amounts_of(asked)["tokens"]
        for name in ("openai", "azure")
    ]
    assert amounts == [500, 600]
