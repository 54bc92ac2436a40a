"""`headway run`: sends the requests of a file as fast as the limits allow."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from headway import Limit, Limiter
from headway.batch.lines import Broken, Line, count_lines, read_lines
from headway.batch.progress import Progress
from headway.batch.results import Results, same_file
from headway.batch.summary import Tally
from headway.batch.table import table
from headway.batch.tokens import RESOURCES

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
and one more for every five requests.
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
        '"100 requests/s bucket burst 10" or "32 concurrency"; may be repeated',
    )
    add("--concurrency", metavar="N", type=_at_least_one, help="at most N requests at once")
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
        limiter = Limiter(_limits(args.limits, args.concurrency))
        _check_files(args)
        attempts = _attempts(args.base_url, args.timeout)
        results = Results(args.out, args.overwrite)
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "httpcore"):
            raise
        return _wrong("httpx is not installed: pip install 'headway[cli]'")
    except (ValueError, OSError, ImportError) as error:
        return _wrong(str(error))
    tally = Tally(count_lines(args.requests))
    with results, open(args.requests, "rb") as file:
        lines = read_lines(file)
        status = asyncio.run(_send(args, lines, limiter, attempts, results=results, tally=tally))
    return _conclude(args, limiter, tally) or status


async def _send(
    args: argparse.Namespace,
    lines: Iterator[Line | Broken],
    limiter: Limiter,
    attempts: Attempts,
    *,
    results: Results,
    tally: Tally,
) -> int:
    """Sends everything; the exit code."""
    from headway.batch.batch import Batch

    with Progress(sys.stderr, tally) as progress:
        async with attempts:
            batch = Batch(
                limiter,
                attempts,
                results,
                tally,
                lambda text: progress.say(f"headway run: {text}"),
                max_retries=args.max_retries,
                most_at_once=_most_connections(),
            )
            # Until the loop closes, which takes it away again.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, batch.interrupt)
            try:
                await batch.run(lines)
            except OSError as error:
                progress.say(f"headway run: stopped: {error}")
                return 1
    if batch.interrupted:
        return INTERRUPTED
    return 1 if tally.failed or tally.broken else 0


def _conclude(args: argparse.Namespace, limiter: Limiter, tally: Tally) -> int:
    """Shows the table and writes the summary; 1 where that fails."""
    summary = tally.summary(limiter.limits)
    bound = tally.binding(limiter.limits)
    print(table(summary, tally, None if bound is None else str(bound[0]), args.out), flush=True)
    if args.summary is not None:
        try:
            with open(args.summary, "w", encoding="utf-8") as file:
                json.dump(summary.as_dict(), file, indent=2)
                file.write("\n")
        except OSError as error:
            print(f"headway run: --summary: {error}", file=sys.stderr)
            return 1
    return 0


def _limits(texts: list[str], concurrency: int | None) -> list[Limit]:
    """The limits that are told, with the smaller of the two where --concurrency is another."""
    limits = [Limit.parse(text) for text in texts]
    for limit in limits:
        if limit.resource not in RESOURCES:
            known = ", ".join(RESOURCES)
            raise ValueError(f"--limits '{limit}': the resource must be one of {known}")
    if concurrency is not None:
        told = [limit.amount for limit in limits if limit.resource == "concurrency"]
        limits = [limit for limit in limits if limit.resource != "concurrency"]
        limits.append(Limit.parse(f"{min([concurrency, *told])} concurrency"))
    if not limits:
        raise ValueError('--limits is missing: at least one is needed, as in "500 requests/min"')
    return limits


def _check_files(args: argparse.Namespace) -> None:
    """Sees that the files can be what they are to be, before anything is created."""
    if not stat.S_ISREG(os.stat(args.requests).st_mode):
        raise ValueError(f"{args.requests}: must be a regular file")
    open(args.requests, "rb").close()
    for option, path in (("--out", args.out), ("--summary", args.summary)):
        if path is not None and same_file(path, args.requests):
            raise ValueError(f"{option} {path}: is the file of requests")
    if os.path.exists(args.out) and not args.overwrite:
        raise ValueError(f"--out {args.out}: exists already; --overwrite replaces it")
    if args.summary is not None:
        if os.path.abspath(args.summary) == os.path.abspath(args.out):
            raise ValueError(f"--summary {args.summary}: is the file of results")
        open(args.summary, "ab").close()


def _attempts(base_url: str, timeout: float) -> Attempts:
    from headway.batch.attempt import Attempts
    from headway.batch.endpoint import Endpoint

    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        print("headway run: OPENAI_API_KEY is not set: no key is sent", file=sys.stderr)
    return Attempts(Endpoint(base_url, key), timeout)


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
