"""tools/smoke.py DIR: sees that the headway under DIR imports, and does a small job with it.

Shared by `make wheel` and `make fetch-deps`: each runs it on its own build of the extension.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import headway
import headway._core

# What the extension may bring along, by a part of its path.
NAMES = ("absl", "prometheus", "civetweb")


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    for module in (headway, headway._core):
        path = Path(str(module.__file__)).resolve()
        if not path.is_relative_to(root):
            sys.exit(f"{module.__name__} came from {path}, not from {root}")

    # Whatever of these libraries is in the process came with the package.
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    strangers = [p for p in mapped if any(name in p for name in NAMES) and str(root) not in p]
    if strangers:
        sys.exit(f"loaded from the system: {strangers}")

    limiter = headway.Limiter(["3 requests/s bucket"])
    admitted = [limiter.try_acquire() for _ in range(4)]
    if admitted != [True, True, True, False]:
        sys.exit(f"3 requests/s admitted {admitted}")

    async def wait_for_one() -> None:
        async with limiter.acquire(timeout=5.0):
            pass

    asyncio.run(wait_for_one())
    libraries = sorted(Path(p).name for p in mapped if str(root) in p and ".so" in p)
    print(f"headway works on Python {sys.version.split()[0]}; its libraries:")
    print(f"  {len(libraries)} from the package ({', '.join(libraries[:3])}, …)")


main()
