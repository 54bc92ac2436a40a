"""Bodies of errors come from outside: whatever they hold, a table reads them and stays safe."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headway import Limit, ManualClock, Reservation, _core
from headway.backends import MemoryBackend
from headway.providers import ProviderTable, provider_tables
from headway.providers._format import KINDS
from headway.scheduler.answers import read_answer

CORPUS = Path(__file__).parents[1] / "conformance"
BODIES = [
    vector["body"]
    for path in sorted(CORPUS.glob("*.json"))
    for vector in json.loads(path.read_text(encoding="utf-8"))
    if "body" in vector
]
BODIES += [
    step["body"]
    for path in sorted(CORPUS.glob("*.json"))
    for vector in json.loads(path.read_text(encoding="utf-8"))
    for step in vector.get("steps", [])
    if "body" in step
]
NOW = 1_800_000_000.0

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["0", "-1", "1e400", "9" * 5000, "37s", "\ud800", "error", "nan"])
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
tables = st.sampled_from(sorted(provider_tables())).map(lambda name: provider_tables()[name])


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a body."""
    found = [path]
    items = body.items() if isinstance(body, dict) else ()
    items = enumerate(body) if isinstance(body, list) else items
    for name, inner in items:
        found += places(inner, (*path, name))
    return found


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """A body that was recorded, with some of it replaced; or any at all."""
    if draw(st.integers(0, 3)) == 0:
        return draw(values)
    body = copy.deepcopy(draw(st.sampled_from(BODIES)))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(body)[1:] or [("error",)]))
        inner = body
        for name in path:
            inner = inner[name]
        if isinstance(inner, (dict, list)):
            inner[last] = draw(values)
    return body


@given(tables, st.sampled_from([400, 402, 403, 429, 498, 503, 529]), bodies())
@settings(max_examples=400)
def test_no_body_raises_and_what_it_says_is_in_range(
    table: ProviderTable, status: int, body: Any
) -> None:
    assert table.classify(status, {}, body) in (None, *KINDS)
    wait = table.wait(body, NOW)
    assert wait is None or 0 <= wait < 1e9
    for reading in table.read({}, NOW, body).as_list():
        assert 0 <= reading.get("limit", 0) <= 2**53
        assert 0 <= reading.get("remaining", 0) <= 2**53
        assert reading.get("reset", 0) >= 0


@given(tables, st.lists(bodies(), min_size=1, max_size=4))
@settings(max_examples=200)
def test_no_body_admits_more_than_was_given(table: ProviderTable, said: list[Any]) -> None:
    clock = ManualClock(1000.0)
    words = MemoryBackend(clock=clock).make_words("b", [Limit(10, "requests", 60.0)], learns=1.0)
    cost = [int(each == "requests") for each in _core.resources(words)]
    admitted = 0
    for body in said:
        call = words.try_reserve(*cost)
        if isinstance(call, Reservation):
            admitted += 1
            call.sent()
            _core.observe(words, call._record(), table.read({}, NOW, body))
            call.answered(refused=True)
            call.settle()
    while isinstance(words.try_reserve(*cost), Reservation):
        admitted += 1
    assert admitted <= 10


class Failure(Exception):
    def __init__(self, body: object) -> None:
        super().__init__("failed")
        self.status_code = 429
        self.body = body


@given(st.integers(1, 200_000), st.sampled_from(['{"error":', "[", '{"a":[']))
@settings(max_examples=25, deadline=None)
def test_deep_nesting_and_long_bodies_say_nothing(times: int, part: str) -> None:
    answer = read_answer(Failure(part * times))
    assert answer.body is None
    for table in provider_tables().values():
        assert len(table.read({}, NOW, answer.body)) == 0


def test_of_a_long_body_only_so_much_is_looked_at() -> None:
    late = [{}] * 64 + [{"quotaId": "RequestsPerMinute", "quotaValue": "7"}]
    gemini = provider_tables()["gemini"]
    assert len(gemini.read({}, NOW, {"error": {"details": [{"violations": late}]}})) == 0
    assert len(gemini.read({}, NOW, {"error": {"details": [{"violations": late[1:]}]}})) == 1
    words = "on tokens per day (TPD): Limit 100, Used 7"
    groq = provider_tables()["groq"]
    assert len(groq.read({}, NOW, {"error": {"message": " " * 2048 + words}})) == 0
    assert len(groq.read({}, NOW, {"error": {"message": " " * 2000 + words}})) == 1
