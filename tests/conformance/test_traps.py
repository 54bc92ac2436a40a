"""What answers make of limits, errors and requests: the vectors beside, by each provider's table.

A vector has `headers`, an error's `status` and `body`, and what they must come to: `class`, `wait`
and `retried`; or `models` and their buckets; or an answer's `usage`, or its `stream`, and what was
`used` by that; or `steps`: calls that are sent and answered one after another, and what is known of
limits meanwhile. `trap` is the number of a trap in which others were caught, as listed below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway import Limit, ManualClock, Reservation, _core
from headway._bodies import UsageReader
from headway._tokens import read_usage
from headway.backends import MemoryBackend
from headway.limiter import UNLIMITED
from headway.providers import ProviderTable, provider_tables
from headway.retry import told_wait
from headway.scheduler.answers import Answer
from headway.scheduler.failures import classed, is_retried

HERE = Path(__file__).parent
NOW = 1_800_000_000.0
TRAPS = {
    1: "look-alike names, six ways to write a reset",
    2: "a reset is when all is there again, not when the next request fits",
    3: "a minute and a day look alike but for their resets",
    4: "answers come in another order than they were counted",
    5: "what remains does not know of what is in flight",
    6: "rounded, negative and zero numbers, and headers that are there only sometimes",
    7: "not each 429 is a limit, and not each limit a 429",
    8: "what the server says of a retry comes first",
    9: "clocks differ",
    10: "tokens that are billed are not those that count",
    11: "what failed counts all the same",
    12: "limits change",
    13: "models share limits",
    14: "a stream says at its end what it used, or never",
}


def vectors(*kinds: str) -> list[Any]:
    return [
        pytest.param(path.stem, vector, id=f"{path.stem}: {vector['why']}")
        for path in sorted(HERE.glob("*.json"))
        for vector in json.loads(path.read_text(encoding="utf-8"))
        if any(kind in vector for kind in kinds)
    ]


def test_each_trap_has_a_vector() -> None:
    there = {each.values[1].get("trap") for each in vectors("why")}
    assert there - {None} == set(TRAPS)


@pytest.mark.parametrize(("name", "vector"), vectors("class", "wait", "retried"))
def test_an_error_comes_to(name: str, vector: dict[str, Any]) -> None:
    table = provider_tables()[name]
    headers = vector.get("headers", {})
    answer = classed(Answer(vector["status"], headers, vector.get("body")), table)
    told = told_wait(headers, NOW)
    found = {
        "class": answer.kind,
        "wait": answer.wait if told is None else told,
        "retried": is_retried(answer, None),
    }
    expected = {key: vector[key] for key in found if key in vector}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(("name", "vector"), vectors("models"))
def test_models_are_counted_in(name: str, vector: dict[str, Any]) -> None:
    table = provider_tables()[name]
    assert {model: table.bucket_for(model) for model in vector["models"]} == vector["models"]


@pytest.mark.parametrize(("name", "vector"), vectors("used"))
def test_an_answer_has_used(name: str, vector: dict[str, Any]) -> None:
    if "usage" in vector:
        assert read_usage(vector["usage"]) == vector["used"]
        return
    reader = UsageReader()
    reader.feed(vector["stream"].encode())
    assert reader.read() == vector["used"]


class Bucket:
    """A bucket that learns, and the calls that are under way in it."""

    def __init__(self, table: ProviderTable, given: list[str]) -> None:
        self.table = table
        self.clock = ManualClock(1000.0)
        self.words = MemoryBackend(clock=self.clock).make_words(
            "b", [Limit.parse(text) for text in given], learns=1.0, proportional=table.proportional
        )
        self.calls: dict[str, Reservation] = {}

    def send(self, name: str, cost: dict[str, int]) -> None:
        amounts = {"requests": 1, **cost}
        reserved = self.words.try_reserve(
            *(amounts.get(each, 0) for each in _core.resources(self.words))
        )
        assert isinstance(reserved, Reservation), f"{name} does not fit"
        reserved.sent()
        self.calls[name] = reserved

    def answer(self, name: str, vector: dict[str, Any]) -> None:
        call = self.calls.pop(name)
        now = NOW + self.clock.now() - 1000
        readings = self.table.read(vector.get("headers", {}), now, vector.get("body"))
        _core.observe(self.words, call._record(), readings)
        call.answered(refused=vector.get("status") == 429)
        call.settle()

    def limits(self) -> list[str]:
        return [str(each) for each in _core.limits(self.words) if each.amount < UNLIMITED]

    def fits(self, resource: str) -> int:
        """How many units of a resource could be admitted one by one now."""
        fitting = []
        cost = [int(each == resource) for each in _core.resources(self.words)]
        while isinstance(reserved := self.words.try_reserve(*cost), Reservation):
            fitting.append(reserved)
        for each in fitting:
            each.cancel()
        return len(fitting)


@pytest.mark.parametrize(("name", "vector"), vectors("steps"))
def test_what_is_known_after(name: str, vector: dict[str, Any]) -> None:
    bucket = Bucket(provider_tables()[name], vector.get("given", []))
    for step in vector["steps"]:
        if "after" in step:
            bucket.clock.advance(step["after"])
        if "send" in step:
            for each in step["send"].split():
                bucket.send(each, step.get("cost", {}))
        if "answer" in step:
            bucket.answer(step["answer"], step)
        if "limits" in step:
            assert bucket.limits() == step["limits"]
        for resource, amount in step.get("fits", {}).items():
            # A window keeps its last slot back at first, and a bucket rounds to the safe side.
            assert max(0, amount - 1) <= bucket.fits(resource) <= amount
