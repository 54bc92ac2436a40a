"""What is handed to a scheduler: what could not work is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from headway import ConfigurationError, MemoryBackend, create_scheduler


@pytest.mark.parametrize(
    "verb",
    [
        "check_and_reserve_capacity",
        "release_reservation",
        "release_streaming_reservation",
        "check_capacity",
    ],
)
def test_a_verb_that_would_not_be_asked_cannot_be_overridden(verb: str) -> None:
    async def mine(self: Any, *_: Any) -> Any: ...

    with pytest.raises(ConfigurationError, match=f"of type Mine: overrides {verb}.*BaseBackend"):
        create_scheduler(None, backend=type("Mine", (MemoryBackend,), {verb: mine})())
    patched = MemoryBackend()
    setattr(patched, verb, mine)
    with pytest.raises(ConfigurationError, match=verb):
        create_scheduler(None, backend=patched)


def test_other_methods_of_a_backend_in_memory_may_be_overridden() -> None:
    class Mine(MemoryBackend):
        async def start(self) -> None: ...

        async def set_state(self, key: str, state: dict[str, Any]) -> None: ...

    backend = Mine()
    assert create_scheduler(None, backend=backend).backend is backend
