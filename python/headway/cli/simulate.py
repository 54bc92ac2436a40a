"""`headway simulate`: a provider with limits on this machine, to try things against."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from headway.simulate.behaviour import Behaviour
from headway.simulate.dialects import DIALECTS
from headway.simulate.failures import Failure, failure_draws
from headway.simulate.latency import Latency
from headway.simulate.rules import Rule
from headway.simulate.server import SimulatedProvider
from headway.simulate.timetable import Change, parse_after

_SUMMARY = "serve an API like OpenAI's, or another provider's, that enforces limits"
_T = TypeVar("_T")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("simulate", help=_SUMMARY, description=_SUMMARY)
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the subcommand."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=_checked(_port), default=0, help="port to listen on; 0 takes any free one")
    add(
        "--limits",
        metavar="TEXT",
        action="append",
        default=[],
        help='a limit to enforce, as in "500 requests/min", "200_000 tokens/60s window", '
        '"100 requests/s bucket burst 10", "10_000 requests/day fixed" or "32 concurrency"; '
        "without a shape it is a bucket; may be repeated",
    )
    add(
        "--model-limits",
        metavar=("MODEL", "TEXT"),
        nargs=2,
        action="append",
        default=[],
        help="a limit that counts this model only, which --limits then does not; may be repeated",
    )
    add(
        "--hidden",
        metavar="TEXT",
        action="append",
        default=[],
        help="a limit that is enforced beside those of --limits and that no answer tells of, as "
        'in "10 requests/s window"; may be repeated',
    )
    add(
        "--at",
        metavar=("TIME", "TEXT"),
        nargs=2,
        action="append",
        default=[],
        help='this long after the start, as in 30s "300 requests/min", the limit of that resource '
        "is this one; what was counted stays counted; may be repeated",
    )
    add(
        "--latency",
        metavar="SECONDS",
        default="0.05",
        help="seconds from the counting of a request to its answer, or "
        "lognormal:MEDIAN[:SIGMA] (%(default)s)",
    )
    add(
        "--jitter",
        metavar="SECONDS",
        type=_checked(_seconds),
        default=0.0,
        help="latency varies by up to this much either way, uniformly",
    )
    add(
        "--arrival-jitter",
        metavar="SECONDS",
        type=_checked(_seconds),
        default=0.0,
        help="a request is counted up to this long after it has arrived, uniformly",
    )
    add(
        "--fail",
        metavar="STATUS:SHARE",
        type=_checked(Failure.parse),
        action="append",
        default=[],
        help="this share of the admitted requests fails, as in 500:0.02; drop:SHARE closes the "
        "connection without an answer; may be repeated",
    )
    add("--seed", type=int, default=0, help="makes latencies, failures and answers repeatable")
    add("--key", help="the API key that requests must carry; by default any or none will do")
    add("--decisions", action="store_true", help="keep every decision, for /_stats?decisions=1")
    add("--no-headers", action="store_true", help="say nothing about the limits in answers")
    add(
        "--dialect",
        choices=DIALECTS,
        default="openai",
        help="whose paths, headers, events, errors and ways of counting (%(default)s)",
    )
    add("--count-refused", action="store_true", help="a refused request counts as a request too")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM; the exit status."""
    try:
        rules = [parse_rule(text) for text in args.limits]
        rules += [parse_rule(text, hidden=True) for text in args.hidden]
        changes = [_change(after, text) for after, text in args.at]
        by_model: dict[str, list[Rule]] = {}
        for model, text in args.model_limits:
            by_model.setdefault(model, []).append(parse_rule(text))
        failure_draws(args.fail, args.seed)
        behaviour = Behaviour(
            latency=Latency.parse(args.latency, args.jitter),
            arrival_jitter=args.arrival_jitter,
            failures=tuple(args.fail),
            seed=args.seed,
            decisions=args.decisions,
            headers=not args.no_headers,
            key=args.key,
            count_refused=args.count_refused,
            dialect=args.dialect,
        )
        provider = SimulatedProvider(
            rules,
            behaviour,
            host=args.host,
            port=args.port,
            parse_limit=parse_rule,
            by_model=by_model,
            changes=changes,
        )
    except ValueError as error:
        print(f"headway simulate: {error}", file=sys.stderr)
        return 2
    _allow_many_files()
    try:
        asyncio.run(_serve(provider))
    except OSError as error:
        where = f"{args.host}:{args.port}"
        print(f"headway simulate: cannot listen on {where}: {error}", file=sys.stderr)
        return 1
    return 0


def parse_rule(text: str, hidden: bool = False) -> Rule:
    """The rule that a limit's text form states."""
    # Only here, so that the simulator itself needs nothing of the library that it judges.
    from headway import Limit

    return Rule.from_limit(Limit.parse(text), hidden)


def _change(after: str, text: str) -> Change:
    try:
        return Change(parse_after(after), parse_rule(text))
    except ValueError as error:
        raise ValueError(f"--at {after!r} {text!r}: {error}") from None


async def _serve(provider: SimulatedProvider) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:
            # Windows' loops take no signal handlers, but Python does.
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    async with provider:
        print(f"listening on {provider.url}", flush=True)
        await stopped.wait()


def _allow_many_files() -> None:
    """Lets this process hold as many connections as the system allows it at all."""
    try:
        import resource
    except ImportError:
        # Windows has no such limit.
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems say "unlimited" and refuse it; the connections that fit then have to do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _checked(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """`read` for argparse, which shows only the messages of its own errors."""

    def checked(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"port {port}: must be from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    return Latency(float(text)).median
