"""Values that are forgotten after a while: bounded without anything that runs in the background."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

# Each put looks at so many old entries. More than one, so that what has faded goes faster than new
# things come.
_LOOKS = 4


class Fading(Generic[K, V]):
    """A dict whose entries are gone `ttl` seconds after they were put; 0 or less means never.

    most: of more entries than this the ones put first go at once. The caller says what time it is,
    and holds a lock.
    """

    def __init__(self, ttl: float, most: int | None = None) -> None:
        self._ttl = ttl
        self._most = most
        # In the order of putting, which with one time-to-live is that of fading.
        self._entries: dict[K, tuple[V, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, now: float, ttl: float | None = None) -> None:
        """`ttl`: for this entry only; here 0 or less is gone at once."""
        self._entries.pop(key, None)
        if ttl is None:
            fades = now + self._ttl if self._ttl > 0 else math.inf
        else:
            fades = now + max(0.0, ttl)
        self._entries[key] = (value, fades)
        for _ in range(min(_LOOKS, len(self._entries))):
            old = next(iter(self._entries))
            if self._entries[old][1] > now:
                break
            del self._entries[old]
        while self._most is not None and len(self._entries) > self._most:
            del self._entries[next(iter(self._entries))]

    def get(self, key: K, now: float) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, fades = entry
        if fades <= now:
            del self._entries[key]
            return None
        return value

    def drop(self, key: K) -> None:
        self._entries.pop(key, None)

    def keys(self, now: float) -> Iterator[K]:
        return iter([key for key, (_, fades) in self._entries.items() if fades > now])

    def purge(self, now: float) -> None:
        """Lets go of all that has faded. Linear in what is held."""
        self._entries = {key: each for key, each in self._entries.items() if each[1] > now}

    def clear(self) -> None:
        self._entries.clear()


def copied(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)
