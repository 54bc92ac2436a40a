"""`headway run`: sends the requests of a file as fast as the limits allow."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from headway import Limit
from headway._tokens import RESOURCES
from headway.batch import learnt
from headway.batch.keys import Keys
from headway.batch.lanes import Lanes
from headway.batch.lines import count_lines, read_again, read_lines
from headway.batch.plan import Plan
from headway.batch.pointer import Pointer
from headway.batch.progress import Progress
from headway.batch.results import Results, same_file
from headway.batch.summary import Tally
from headway.batch.table import table
from headway.providers import table_for
from headway.scheduler import SchedulerMode
from headway.scheduler.accounts import LEAST_WEIGHT, MOST_WEIGHT

if TYPE_CHECKING:
    # httpx comes with an extra: what needs it is imported when it is needed.
    from headway.batch.attempt import Attempts

INTERRUPTED = 130

_SUMMARY = "send the requests of a file as fast as the limits allow"
_SPARE_FILES = 64
"""Open files that are left for other things than connections."""

_LONGEST_TIMEOUT = 86400.0

_DESCRIPTION = """\
Sends the lines of an OpenAI batch input file (custom_id, method, url, body) to an
OpenAI-compatible API, as many at once as the limits need, and writes each answer to the file of
results as soon as it is there. The API key is read from OPENAI_API_KEY. A line costs one request,
and in tokens the larger of its max_tokens and a quarter of its characters. Failures that may pass
(408, 409, 429, 5xx, broken connections, time-outs) are tried again within a budget: 10 retries,
and one more for every five requests. All models share the limits of --limits, but for those that
--model-limits names: each of these is counted by its own alone.
"""
_EPILOG = """\
exit codes: 0 all succeeded, 1 a request failed or a line was broken, 2 wrong usage, 130 interrupted
(what was in flight is finished and written; a second interrupt cancels it).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("run", help=_SUMMARY, description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    add("requests", metavar="REQUESTS", help="file of requests, one JSON object a line")
    add("--out", metavar="FILE", required=True, help="file of results; must not exist yet")
    add("--base-url", metavar="URL", required=True, help="as in https://api.openai.com/v1")
    add(
        "--limits",
        metavar="TEXT",
        action="append",
        default=[],
        help='a limit of the provider, as in "500 requests/min", "200_000 tokens/60s window", '
        '"100 requests/s bucket burst 10" or "32 concurrency", of all models together that have '
        "no --model-limits; may be repeated. Without any, each such model's limits are found out "
        "from the answers",
    )
    add(
        "--model-limits",
        metavar=("MODEL", "TEXT"),
        nargs=2,
        action="append",
        default=[],
        help='a limit of this model alone, as in gpt-4o "500 requests/min"; may be repeated',
    )
    add("--concurrency", metavar="N", type=_at_least_one, help="at most N requests at once")
    add(
        "--mode",
        choices=[mode.value for mode in SchedulerMode],
        help="basic: one turn after the other; intelligent, the default: by priority, too; "
        "account: by shares of accounts, too",
    )
    add(
        "--account-key",
        metavar="POINTER",
        type=_pointer,
        help="where a line says whose it is: a JSON pointer into the line, as in "
        "/body/metadata/user; accounts take turns at what they wait for. Implies --mode account",
    )
    add(
        "--account-weight",
        metavar="NAME=WEIGHT",
        type=_weight,
        action="append",
        default=[],
        help="an account's weight, 1 unless told: twice the weight is twice the share; "
        "may be repeated",
    )
    add(
        "--priority-key",
        metavar="POINTER",
        type=_pointer,
        help="where a line says how urgent it is, as in /body/metadata/priority: a whole number, "
        "0 where there is none; higher goes first",
    )
    add(
        "--learnt",
        metavar="FILE",
        help="begin with the limits that are in this file, where it exists, and write there at the "
        "end what has been found out; without --limits only",
    )
    add("--overwrite", action="store_true", help="replace the file of results if it exists")
    add("--summary", metavar="FILE", help="write the numbers of the run there, as JSON")
    add(
        "--max-retries",
        metavar="N",
        type=_not_negative,
        default=3,
        help="attempts after the first, for each request (%(default)s)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=600.0,
        help="how long one attempt may take (%(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Does it; the exit code."""
    try:
        plan = _plan(args)
        _check_files(args)
        attempts = _attempts(args.base_url)
        results = Results(args.out, args.overwrite)
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "httpcore"):
            raise
        return _wrong("httpx is not installed: pip install 'headway[cli]'")
    except (ValueError, OSError, ImportError) as error:
        return _wrong(str(error))
    tally = Tally(count_lines(args.requests), plan)
    with results, open(args.requests, "rb") as file, open(args.requests, "rb") as again:
        lines = plan.check(read_lines(file, plan.keys))
        lanes = Lanes(lines)
        if plan.lane_of is not None:
            read = functools.partial(read_again, again, plan.keys)
            lanes = Lanes(lines, plan.lane_of, read)
        status = asyncio.run(_send(args, plan, lanes, attempts, results=results, tally=tally))
    return _conclude(args, tally) or status


async def _send(
    args: argparse.Namespace,
    plan: Plan,
    lanes: Lanes,
    attempts: Attempts,
    *,
    results: Results,
    tally: Tally,
) -> int:
    """Sends everything; the exit code."""
    from headway.batch.batch import Batch

    most = _most_connections()
    scheduler = plan.scheduler(most, request_timeout=args.timeout, max_retries=args.max_retries)
    with Progress(sys.stderr, tally) as progress, _logged_by(progress):
        async with attempts, scheduler:
            batch = Batch(
                scheduler,
                attempts,
                results,
                tally,
                lambda text: progress.say(f"headway run: {text}"),
                plan=plan,
                most_at_once=most,
            )
            # Until the loop closes, which takes it away again.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, batch.interrupt)
            left = await attempts.credit_left(plan.table)
            if left is not None:
                money = f"a credit of {left:g}" if left > 0 else "no credit"
                progress.say(f"headway run: the key has {money} left")
            try:
                await batch.run(lanes)
            except OSError as error:
                progress.say(f"headway run: stopped: {error}")
                return 1
    # A bucket that has said nothing this time keeps what it said before.
    if args.learnt is not None:
        try:
            learnt.write(args.learnt, scheduler.learnt_limits())
        except OSError as error:
            print(f"headway run: --learnt: {error}", file=sys.stderr)
            return 1
    if batch.interrupted:
        return INTERRUPTED
    return 1 if tally.failed or tally.broken else 0


class _Log(logging.Handler):
    """What the scheduler warns of, in lines of their own."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(f"headway run: {record.getMessage()}")


@contextlib.contextmanager
def _logged_by(progress: Progress) -> Iterator[None]:
    logger, log = logging.getLogger("headway"), _Log(progress)
    logger.addHandler(log)
    try:
        yield
    finally:
        logger.removeHandler(log)


def _conclude(args: argparse.Namespace, tally: Tally) -> int:
    """Shows the table and writes the summary; 1 where that fails."""
    summary = tally.summary()
    bound = tally.binding()
    print(table(summary, tally, None if bound is None else bound[0], args.out), flush=True)
    if args.summary is not None:
        try:
            with open(args.summary, "w", encoding="utf-8") as file:
                json.dump(summary.as_dict(), file, indent=2)
                file.write("\n")
        except OSError as error:
            print(f"headway run: --summary: {error}", file=sys.stderr)
            return 1
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    """What the options say of limits, accounts and priorities."""
    limits = tuple(_limit("--limits", text) for text in args.limits)
    by_model: dict[str, tuple[Limit, ...]] = {}
    for model, text in args.model_limits:
        if not model:
            raise ValueError("--model-limits '': must be the name of a model")
        by_model[model] = (*by_model.get(model, ()), _limit(f"--model-limits {model}", text))
    keys = Keys(args.account_key, args.priority_key)
    mode = SchedulerMode.INTELLIGENT if keys.account is None else SchedulerMode.ACCOUNT
    if args.mode is not None:
        mode = SchedulerMode.parse(args.mode)
    if keys.account is not None and mode is not SchedulerMode.ACCOUNT:
        raise ValueError(f"--mode {mode.value}: --account-key needs --mode account")
    if keys.priority is not None and mode is SchedulerMode.BASIC:
        raise ValueError("--mode basic: --priority-key needs another mode, basic has no priorities")
    if args.account_weight and keys.account is None:
        raise ValueError("--account-weight: needs --account-key, where a line says whose it is")
    if not limits and not by_model and args.concurrency is None and mode is SchedulerMode.BASIC:
        raise ValueError('--mode basic: finds out no limits; --limits as in "500 requests/min"')
    if args.learnt is not None and (limits or mode is SchedulerMode.BASIC):
        given = "--limits" if limits else "--mode basic"
        raise ValueError(f"--learnt {args.learnt}: with {given} nothing is found out")
    weights = dict(args.account_weight)
    if len(weights) < len(args.account_weight):
        raise ValueError("--account-weight: an account is named twice")
    return Plan(
        limits,
        by_model,
        args.concurrency,
        mode,
        keys,
        weights,
        table=table_for(args.base_url),
        learnt={} if args.learnt is None else learnt.read(args.learnt),
    )


def _limit(option: str, text: str) -> Limit:
    limit = Limit.parse(text)
    if limit.resource not in RESOURCES:
        known = ", ".join(RESOURCES)
        raise ValueError(f"{option} '{limit}': the resource must be one of {known}")
    return limit


def _check_files(args: argparse.Namespace) -> None:
    """Sees that the files can be what they are to be, before anything is created."""
    if not stat.S_ISREG(os.stat(args.requests).st_mode):
        raise ValueError(f"{args.requests}: must be a regular file")
    open(args.requests, "rb").close()
    files = (("--out", args.out), ("--summary", args.summary), ("--learnt", args.learnt))
    for option, path in files:
        if path is not None and same_file(path, args.requests):
            raise ValueError(f"{option} {path}: is the file of requests")
    if os.path.exists(args.out) and not args.overwrite:
        raise ValueError(f"--out {args.out}: exists already; --overwrite replaces it")
    for option, path in files[1:]:
        if path is not None and os.path.abspath(path) == os.path.abspath(args.out):
            raise ValueError(f"{option} {path}: is the file of results")
    if args.summary is not None:
        if args.learnt and os.path.abspath(args.summary) == os.path.abspath(args.learnt):
            raise ValueError(f"--summary {args.summary}: is the file of --learnt")
        open(args.summary, "ab").close()
    if args.learnt is not None:
        where = os.path.dirname(os.path.realpath(args.learnt))
        if not args.learnt or not os.access(where, os.W_OK | os.X_OK):
            raise ValueError(f"--learnt {args.learnt!r}: cannot be written there")


def _attempts(base_url: str) -> Attempts:
    from headway.batch.attempt import Attempts
    from headway.batch.endpoint import Endpoint

    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        print("headway run: OPENAI_API_KEY is not set: no key is sent", file=sys.stderr)
    return Attempts(Endpoint(base_url, key))


def _most_connections() -> int:
    """How many connections the system lets this process have, which is raised to the most."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems say "unlimited" and refuse it; what there is then has to do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - _SPARE_FILES)


def _pointer(text: str) -> Pointer:
    try:
        return Pointer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _weight(text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not name or not equals or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be NAME=WEIGHT, with a weight from 0.001 to 1_000_000"
        )
    return name, weight


def _wrong(message: str) -> int:
    print(f"headway run: {message}", file=sys.stderr)
    return 2


def _whole(text: str, least: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number of at least {least}")
    return number


def _at_least_one(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= _LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be seconds, more than 0 and at most {_LONGEST_TIMEOUT:g}"
        )
    return seconds
