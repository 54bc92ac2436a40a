"""Request functions that turn on the very request that runs them. In processes of their own:

what goes wrong there is a crash, or a task that never ends.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

AT_ITSELF = {
    "raises StopIteration in its call": """
        def function():
            raise StopIteration(3)
    """,
    "sends to itself in its call": """
        def function():
            try: box[0].send(None)
            except RuntimeError: pass
            return asyncio.sleep(0, 42)
    """,
    "closes itself in its first step": """
        async def function():
            try: box[0].close()
            except (RuntimeError, ValueError): pass
            return 42
    """,
    "closes itself later": """
        runs = 0
        async def function():
            global runs
            runs += 1
            if runs > 1: os._exit(7)
            await asyncio.sleep(0)
            try: box[0].close()
            except (RuntimeError, ValueError): pass
            return 42
    """,
    "throws into itself": """
        async def function():
            await asyncio.sleep(0)
            try: box[0].throw(KeyError("mine"))
            except (RuntimeError, ValueError): pass
            return 42
    """,
}


@pytest.mark.parametrize("what", AT_ITSELF)
def test_a_function_that_drives_its_own_request_is_told_so(what: str) -> None:
    program = textwrap.dedent(
        """
        import asyncio, os
        from headway import RequestMetadata
        from headway.scheduler import create_scheduler
        box = []
        """
    )
    program += textwrap.dedent(AT_ITSELF[what])
    program += textwrap.dedent(
        """
        async def run():
            async with create_scheduler(None) as scheduler:
                for _ in range(2):
                    box[:] = [scheduler.submit_request(RequestMetadata("r", "m", "text"), function)]
                    globals()["runs"] = 0
                    try: assert await asyncio.create_task(box[0]) == 42
                    except RuntimeError: pass
                assert not scheduler.get_metrics()["active_requests"]
        asyncio.run(asyncio.wait_for(run(), 5))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=8, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
