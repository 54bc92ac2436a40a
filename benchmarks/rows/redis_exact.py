"""redis-exact: admissions a second of one bucket that four processes share through Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.apart import apart
from harness.options import Options
from harness.redis import redis_url
from harness.result import Result

PROCESSES = 4
WAITING = 500
BESIDE_GROUPS = 0.8
BESIDE_EACH = 5.0
MOST_SCRIPTS = 0.1

_LIMITS = ["1_000_000_000 requests/min bucket", "1_000_000_000_000 tokens/min bucket"]
_COST = 100

_METHOD = """
{processes} processes on loopback, {waiting} tasks in each that take 1 request and {cost} tokens of
one bucket of two `bucket` limits, which both have room, and are done at once, again and again;
admissions of all in {seconds:g} s. Floor: the same tasks on bare futures, and a loop that asks
Redis for all who wait, at most {waiting}, by one script (two instants, moved by what all ask).
`each` in `more`: one EVALSHA of that script for each admission. One after another, by redis-py.
Garbage collector on.
"""

# KEYS 1, 2: an instant each, in ns. ARGV: now; of each, by what it is moved, and how far ahead it
# may be.
_SCRIPT = """
local now = tonumber(ARGV[1])
local first = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + tonumber(ARGV[2])
local second = math.max(now, tonumber(redis.call('GET', KEYS[2]) or 0)) + tonumber(ARGV[4])
if first > now + tonumber(ARGV[3]) or second > now + tonumber(ARGV[5]) then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', first), 'PX', 60000)
redis.call('SET', KEYS[2], string.format('%.0f', second), 'PX', 60000)
return 1
"""
_TOLERANCE = 60_000_000_000


def measure(options: Options) -> list[Result]:
    """Ours, the floor, and one script for each, one after another on a server each."""
    seconds = 2.0 if options.quick else 10.0
    ours, scripts = _together(limiter, seconds)
    groups, _ = _together(in_groups, seconds)
    each, _ = _together(one_each, seconds)
    method = _METHOD.format(processes=PROCESSES, waiting=WAITING, cost=_COST, seconds=seconds)
    return [
        Result(
            row="redis-exact",
            cell=f"{PROCESSES} processes, {WAITING} waiting in each",
            unit="admissions a second",
            headway=ours / seconds,
            floor=groups / seconds,
            goal=f"at least {BESIDE_GROUPS} x the floor, {BESIDE_EACH:g} x one script each",
            met=ours >= BESIDE_GROUPS * groups and ours >= BESIDE_EACH * each,
            method=method,
            more={"each": each / seconds},
        ),
        Result(
            row="redis-exact",
            cell="scripts an admission",
            unit="scripts",
            headway=scripts / ours,
            floor=None,
            goal=f"at most {MOST_SCRIPTS}",
            met=scripts <= MOST_SCRIPTS * ours,
            method=method,
        ),
    ]


def _together(
    work: Callable[[str, float, float], tuple[int, int]], seconds: float
) -> tuple[int, int]:
    """Admissions, and scripts, of all processes between two instants of the host's clock."""
    with redis_url() as url, ThreadPoolExecutor(PROCESSES) as pool:
        begin = time.monotonic() + 3.0  # all have started by then
        done = [pool.submit(apart, work, url, begin, seconds) for _ in range(PROCESSES)]
        counts = [each.result() for each in done]
    return sum(count for count, _ in counts), sum(scripts for _, scripts in counts)


async def _count(
    begin: float, seconds: float, admit: Callable[[], Awaitable[None]], scripts: Callable[[], int]
) -> tuple[int, int]:
    done = 0
    over = False

    async def task() -> None:
        nonlocal done
        while not over:
            await admit()
            done += 1

    tasks = [asyncio.ensure_future(task()) for _ in range(WAITING)]
    await asyncio.sleep(begin - time.monotonic())
    before = done, scripts()
    await asyncio.sleep(begin + seconds - time.monotonic())
    after = done, scripts()
    over = True  # a client of redis-py that is cancelled while it writes may never come back
    await asyncio.gather(*tasks)
    return after[0] - before[0], after[1] - before[1]


def limiter(url: str, begin: float, seconds: float) -> tuple[int, int]:
    """Of one process, by a Limiter with a RedisBackend."""
    from headway import Limiter
    from headway.backends import RedisBackend

    async def main() -> tuple[int, int]:
        with RedisBackend(url) as backend:
            shared = Limiter(_LIMITS, backend=backend, name="hot")

            async def admit() -> None:
                (await shared.acquire(1, _COST)).settle()

            return await _count(begin, seconds, admit, lambda: backend._courier.scripts)

    return asyncio.run(main())


def in_groups(url: str, begin: float, seconds: float) -> tuple[int, int]:
    """Of one process: bare futures, and one script for all who wait."""
    import redis.asyncio

    async def main() -> tuple[int, int]:
        client = redis.asyncio.Redis.from_url(url)
        script = await client.script_load(_SCRIPT)
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[None]] = []
        scripts = 0

        async def admit() -> None:
            future = loop.create_future()
            waiting.append(future)
            await future

        async def serve() -> None:
            nonlocal scripts
            while True:
                group = waiting[:WAITING]
                if not group:
                    await asyncio.sleep(0)
                    continue
                del waiting[:WAITING]
                scripts += 1
                assert await _ask(client, script, len(group))
                for future in group:
                    future.set_result(None)

        serving = asyncio.ensure_future(serve())
        counted = await _count(begin, seconds, admit, lambda: scripts)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await client.aclose()
        return counted

    return asyncio.run(main())


def one_each(url: str, begin: float, seconds: float) -> tuple[int, int]:
    """Of one process: one script for each admission."""
    import redis.asyncio

    async def main() -> tuple[int, int]:
        client = redis.asyncio.Redis.from_url(url, max_connections=WAITING)
        script = await client.script_load(_SCRIPT)

        async def admit() -> None:
            assert await _ask(client, script, 1)

        counted = await _count(begin, seconds, admit, lambda: 0)
        await client.aclose()
        return counted

    return asyncio.run(main())


async def _ask(client: Any, script: str, count: int) -> Any:
    # 60 ns a request, and 0.06 a token, as of the limits above.
    moved = 60 * count, 0.06 * _COST * count
    arguments = (time.time_ns(), moved[0], _TOLERANCE, moved[1], _TOLERANCE)
    return await client.evalsha(script, 2, "{hot}:requests", "{hot}:tokens", *arguments)
