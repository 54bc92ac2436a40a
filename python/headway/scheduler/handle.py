"""What `Scheduler.submit` returns, and what `Scheduler.preview` tells."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from headway._core import Limit
from headway.scheduler.chores import running_loop
from headway.scheduler.drain import abandon

if TYPE_CHECKING:
    from headway.limiter import Explanation
    from headway.scheduler.scheduler import Scheduler
    from headway.types import RequestMetadata


@final
class Handle:
    """A request that is on its way: await it for its result, any number of times.

    On the event loop that it was submitted on; `cancel` may be called from any thread.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metadata: RequestMetadata,
        call: Any,
        start: float | None,
    ) -> None:
        self._scheduler = scheduler
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] = self._loop.create_task(call)
        # A loop holds its tasks weakly, and nobody need keep a handle.
        scheduler._handled.add(self._task)
        self._task.add_done_callback(scheduler._handled.discard)
        self.metadata = metadata
        self.estimated_start = start
        """Seconds from its submission until its turn, as far as could be told then; None: not."""

    def cancel(self) -> bool:
        """Takes it back: not executed any more if it waits. Whether it was still on its way."""
        if self._task.done() or self._call.over:
            return False
        if running_loop() is self._loop:
            # At once: in a later step of the loop it might be too late.
            self._task.cancel()
        else:
            self._call._revoke()
            try:
                self._loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:  # it is closed
                abandon(self._call)
        return True

    def done(self) -> bool:
        """Whether it has its result, has failed, or was cancelled."""
        return self._task.done()

    def result(self) -> Any:
        """Its result, or what it raised; InvalidStateError where it is not done."""
        return self._task.result()

    def explain(self) -> Explanation | None:
        """What its bucket would do with such a request now, and why. None: no bucket known yet."""
        metadata = self._call.metadata  # by now classified, where it was a dict
        return None if isinstance(metadata, dict) else self._scheduler.explain(metadata)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def __repr__(self) -> str:
        state = "done" if self._task.done() else "waiting" if self._call.waiting else "running"
        metadata = self._call.metadata
        name = "" if isinstance(metadata, dict) else f"{metadata.request_id!r} "
        return f"<headway.Handle {name}{state}>"


@dataclass(frozen=True)
class Preview:
    """When a batch would be through, if it was submitted now, as far as limits are known.

    admitted_in: seconds until the last of it could go out; inf where something can never fit; None
    where that cannot be told, for the `reason` that is then given. by_bucket: the same for each
    bucket; by model where the provider would have to be asked for the bucket. binds: the limit that
    takes longest. Answers, refunds and others who use the same key are not considered; an account's
    own limits are, as they are used now, for each request by itself.
    """

    admitted_in: float | None
    by_bucket: dict[str, float | None]
    binds: Limit | None
    reason: str | None = None

    @property
    def fits(self) -> bool:
        """Whether all of it can ever be admitted."""
        return self.admitted_in is None or math.isfinite(self.admitted_in)
