"""The simulated provider: which request is answered how, counted when, and in what time."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from headway.simulate.admission import Admission, Refusal
from headway.simulate.answers import Answers, as_json
from headway.simulate.behaviour import Behaviour
from headway.simulate.dialects import DIALECTS
from headway.simulate.dialects.base import Asked
from headway.simulate.failures import DROP, QUICK, failure_draws
from headway.simulate.http import Exchange
from headway.simulate.patience import Patience
from headway.simulate.rules import Rule
from headway.simulate.streams import Stream
from headway.simulate.tally import Decision, Tally
from headway.simulate.timetable import Change, timetable

JSON = "application/json"
_SUMMED = ("admitted", "refused", "failed", "invalid")


class Ledger:
    """What is counted together: the rules, and the numbers of what they have decided."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.tally = Tally(admission)


@dataclass(frozen=True)
class Call:
    """A well-formed request for an answer, what it costs, and what counts it."""

    exchange: Exchange
    asked: Asked
    costs: dict[str, int]
    ledger: Ledger


class Provider:
    """Answers exchanges in the way of an API of its dialect; for one event loop.

    A request is counted at the instant at which all of it has arrived (plus `arrival_jitter`);
    latency elapses after that. The rules count all models together, but for those that `by_model`
    has rules for: each of these is counted by its own rules alone. `changes` are of the rules of
    all others, and their time runs from `begin()`.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        behaviour: Behaviour,
        parse_limit: Callable[[str], Rule] | None = None,
        by_model: Mapping[str, Iterable[Rule]] | None = None,
        changes: Iterable[Change] = (),
    ) -> None:
        rules = list(rules)
        self._changes = deque(timetable(rules, changes))
        self._begun: int | None = None
        self._ended: list[dict[str, Any]] = []
        self._behaviour = behaviour
        self._speaks = DIALECTS[behaviour.dialect]
        patience = self._speaks.patience
        self._patience = None if patience is None else Patience(*patience)
        self._parse_limit = parse_limit
        epoch_at_zero = time.time_ns() - time.monotonic_ns()

        def ledger(rules: Iterable[Rule]) -> Ledger:
            return Ledger(Admission(rules, epoch_at_zero, count_refused=behaviour.count_refused))

        self._ledger = ledger(rules)
        self._by_model = {model: ledger(own) for model, own in (by_model or {}).items()}
        self._decisions: list[Decision] = []
        self._refusals: list[tuple[float, str, list[str]]] = []
        self._latency = behaviour.latency.draws(behaviour.seed)
        self._failure = failure_draws(behaviour.failures, behaviour.seed)
        self._network = random.Random(f"network {behaviour.seed}")
        self._answers = Answers(behaviour.seed)
        self._now = 0

    def begin(self) -> None:
        """Lets the time of the changes run, if it does not yet."""
        if self._begun is None:
            self._begun = time.monotonic_ns()

    def stats(self, decisions: bool = False) -> dict[str, Any]:
        """What `GET /_stats` answers; `Tally` says what the numbers mean.

        They are of the stretch since the limits last changed; `ended` has those of the stretches
        before, and `total` what was admitted, refused, failed and invalid in all of them. Those of
        a model with rules of its own are in `models`, and in none of the others.
        """
        self._follow_timetable(time.monotonic_ns())
        report = self._ledger.tally.report()
        stretches = [*self._ended, report]
        report["total"] = {name: sum(each[name] for each in stretches) for name in _SUMMED}
        report["ended"] = self._ended
        if self._by_model:
            report["models"] = {
                model: ledger.tally.report() for model, ledger in self._by_model.items()
            }
        if decisions:
            report["decisions"] = self._decisions
            report["refusals"] = self._refusals
        return report

    def set_rules(self, rules: Iterable[Rule]) -> dict[str, Any]:
        """Enforces `rules` from now on and gives the numbers of the stretch that ends here.

        The numbers begin again at 0; the decisions go on. Models with rules of their own keep them.
        Changes that were still to come do not come any more.
        """
        self._follow_timetable(time.monotonic_ns())
        self._changes.clear()
        self._now = max(time.monotonic_ns(), self._now)
        self._ended.append(self._ledger.tally.report())
        self._ledger.admission.change(rules, self._now)
        self._ledger.tally = Tally(self._ledger.admission)
        return self._ended[-1]

    def _follow_timetable(self, now: int) -> None:
        """Makes the changes that are due by `now`, each at its own instant.

        Whoever looks at the limits calls this first: no timer would be as exact.
        """
        while self._changes and self._begun is not None:
            due = _after(self._begun, self._changes[0].after)
            if due > now:
                return
            self._now = max(due, self._now)
            rule = self._changes.popleft().rule
            # Numbers are by the limits that held, so they are taken before these change.
            self._ended.append(self._ledger.tally.report())
            self._ledger.admission.turn(rule, self._now)
            self._ledger.tally = Tally(self._ledger.admission)

    def __call__(self, exchange: Exchange) -> None:
        """Answers `exchange`, now or later."""
        request, speaks = exchange.request, self._speaks
        if request.path == "/_stats" and request.method == "GET":
            wanted = parse_qs(request.query).get("decisions", ["0"])[-1] not in ("", "0")
            exchange.send(200, _typed(JSON), as_json(self.stats(wanted)))
        elif request.path == "/_limits" and request.method == "POST":
            self._change_limits(exchange)
        elif not request.path.startswith(speaks.prefixes):
            self._reject(exchange, 404, self._unknown(exchange), None)
        elif self._behaviour.key not in (None, speaks.key_of(request)):
            self._reject(
                exchange, speaks.key_status, "Incorrect API key provided.", "invalid_api_key"
            )
        elif request.method == "POST" and speaks.takes(request.path):
            self._post(exchange)
        elif request.method == "GET" and speaks.lists_models(request.path):
            exchange.send(200, self._headers(), as_json(speaks.models()))
        else:
            self._reject(exchange, 404, self._unknown(exchange), None)

    def _post(self, exchange: Exchange) -> None:
        try:
            body = json.loads(exchange.request.body)
        except (ValueError, RecursionError) as error:
            self._reject(
                exchange, 400, f"We could not parse the JSON body of your request: {error}", None
            )
            return
        if not isinstance(body, dict):
            self._reject(exchange, 400, "The body of a request must be a JSON object.", None)
            return
        try:
            asked = self._speaks.ask(exchange.request, body)
        except ValueError as error:
            self._reject(exchange, 400, str(error), "invalid_type")
            return
        ledger = self._by_model.get(asked.model, self._ledger)
        call = Call(exchange, asked, self._speaks.costs(asked), ledger)
        if self._behaviour.arrival_jitter > 0:
            delay = self._network.uniform(0.0, self._behaviour.arrival_jitter)
            counted = _after(exchange.arrived, delay)
            self._at(exchange, counted, lambda: self._count(call, counted))
        else:
            self._count(call, exchange.arrived)

    def _count(self, call: Call, arrived: int) -> None:
        # Looked at in this order, so counted in this order, even where stamps are a hair apart.
        self._follow_timetable(arrived)
        now = self._now = max(arrived, self._now)
        if self._patience is not None and self._patience.lost(now):
            self._lose_patience(call, now, self._patience.reason)
            return
        ledger = call.ledger
        refusal = ledger.admission.decide(now, call.costs)
        headers = ""
        if self._behaviour.headers:
            headers = self._speaks.limit_headers(call.asked, ledger.admission, now)
        if refusal is not None:
            reasons = [str(each.rule) for each in (refusal, *refusal.also)]
            ledger.tally.refuse(now, reasons[0])
            self._note(call, now, self._speaks.refusal_status(refusal), reasons)
            self._failed(now)
            self._refuse(call, refusal, headers, now)
            return
        ledger.tally.admit(now, call.costs)
        failure = self._failure()
        self._note(call, now, 200 if failure is None else failure)
        if failure is not None:
            ledger.tally.failed += 1
            self._failed(now)
            self._fail(call, failure, now)
        elif call.asked.streams:
            self._stream(call, headers, now)
        else:
            self._answer(call, headers, now)

    def _answer(self, call: Call, headers: str, now: int) -> None:
        exchange, end = call.exchange, call.ledger.admission.end

        def answer() -> None:
            end()
            body, produced = self._speaks.whole(call.asked, self._answers, int(time.time()))
            self._produce(call, produced)
            exchange.send(200, self._headers() + headers, as_json(body))

        self._at(exchange, _after(now, self._latency()), answer, end)

    def _stream(self, call: Call, headers: str, now: int) -> None:
        events = self._speaks.events(call.asked, self._answers, int(time.time()))
        # The model thinks for half of the time and speaks for the other half.
        half = self._latency() / 2
        end = call.ledger.admission.end
        stream = Stream(
            call.exchange,
            events,
            half / len(events),
            end,
            lambda tokens: self._produce(call, tokens),
        )
        headers = self._headers(self._speaks.events_type(call.asked)) + headers
        begin = _after(now, half)
        self._at(call.exchange, begin, lambda: stream.start(headers), end)

    def _produce(self, call: Call, tokens: int) -> None:
        self._now = max(time.monotonic_ns(), self._now)
        call.ledger.admission.produce(self._now, tokens)
        call.ledger.tally.produce(tokens)

    def _refuse(self, call: Call, refusal: Refusal, headers: str, now: int) -> None:
        speaks, exchange = self._speaks, call.exchange
        headers = self._headers(speaks.error_type) + headers
        if self._behaviour.headers:
            headers += speaks.retry_headers(refusal)
        if self._behaviour.headers and not refusal.rule.hidden:
            body = speaks.refusal_body(refusal, call.asked)
        else:
            body = speaks.silent_refusal_body(call.asked.model)
        status = speaks.refusal_status(refusal)
        answered = _after(now, self._quick())
        self._at(exchange, answered, lambda: exchange.send(status, headers, body))

    def _lose_patience(self, call: Call, now: int, reason: str) -> None:
        call.ledger.tally.refuse(now, reason)
        self._note(call, now, 429, [reason])
        headers = self._headers(self._speaks.error_type)
        if self._behaviour.headers:
            body = self._speaks.impatient_body()
        else:
            body = self._speaks.silent_refusal_body(call.asked.model)
        exchange = call.exchange
        self._at(exchange, _after(now, self._quick()), lambda: exchange.send(429, headers, body))

    def _failed(self, now: int) -> None:
        if self._patience is not None:
            self._patience.fail(now)

    def _fail(self, call: Call, status: int, now: int) -> None:
        exchange, end = call.exchange, call.ledger.admission.end

        def fail() -> None:
            end()
            if status == DROP:
                exchange.drop()
            else:
                headers = self._headers(self._speaks.error_type)
                exchange.send(status, headers, self._speaks.failure_body(status))

        delay = self._quick() if status in QUICK else self._latency()
        self._at(exchange, _after(now, delay), fail, end)

    def _change_limits(self, exchange: Exchange) -> None:
        try:
            entries = json.loads(exchange.request.body)
            if not isinstance(entries, list):
                raise ValueError(f"limits must be a JSON list, not {entries!r}")
            rules = [self._rule(entry) for entry in entries]
        except (ValueError, RecursionError) as error:
            self._reject(exchange, 400, str(error), None)
            return
        exchange.send(200, _typed(JSON), as_json(self.set_rules(rules)))

    def _rule(self, entry: object) -> Rule:
        if isinstance(entry, dict):
            return Rule.from_json(entry)
        if isinstance(entry, str) and self._parse_limit is not None:
            return self._parse_limit(entry)
        raise ValueError(f"a limit must be an object with a rule's fields, not {entry!r}")

    def _reject(self, exchange: Exchange, status: int, message: str, code: str | None) -> None:
        self._ledger.tally.invalid += 1
        self._now = max(time.monotonic_ns(), self._now)
        self._failed(self._now)
        body = self._speaks.error_body(status, message, code)
        exchange.send(status, self._headers(self._speaks.error_type), body)

    def _unknown(self, exchange: Exchange) -> str:
        return f"Invalid URL ({exchange.request.method} {exchange.request.path})"

    def _headers(self, kind: str = JSON) -> str:
        return f"{_typed(kind)}x-request-id: {self._answers.request_id()}\r\n"

    def _quick(self) -> float:
        return self._network.uniform(*self._behaviour.refusal_latency)

    def _note(self, call: Call, now: int, status: int, reasons: Sequence[str] = ()) -> None:
        if self._behaviour.decisions:
            request = call.exchange.request
            name = request.headers.get("x-client-request-id", request.path)
            if reasons:
                self._refusals.append((now / 1e9, name, list(reasons)))
            self._decisions.append((now / 1e9, status, call.costs["tokens"], name))

    def _at(
        self,
        exchange: Exchange,
        instant: int,
        then: Callable[[], None],
        if_lost: Callable[[], None] | None = None,
    ) -> None:
        """Calls `then` at `instant`, or `if_lost` if the client has gone by then."""
        if instant <= time.monotonic_ns():
            then()
            return

        def due() -> None:
            exchange.on_lost = None
            then()

        def lost() -> None:
            timer.cancel()
            if if_lost is not None:
                if_lost()

        # The loop's clock is the one that instants are stamped with, in seconds.
        timer = asyncio.get_running_loop().call_at(instant / 1e9, due)
        exchange.on_lost = lost


def _typed(kind: str) -> str:
    return f"content-type: {kind}\r\n"


def _after(instant: int, seconds: float) -> int:
    return instant + round(seconds * 1e9)
