"""Runs one measurement for every peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from harness.apart import apart
from peers import NAMES, NOT_INSTALLED

_P = ParamSpec("_P")


class CannotError(Exception):
    """Says why a peer cannot run a row."""


def each(
    function: Callable[Concatenate[str, _P], float], *args: _P.args, **kwargs: _P.kwargs
) -> dict[str, float | str]:
    """What `function(name, ...)` says of each peer, in a process of its own, or why none."""
    found: dict[str, float | str] = {}
    for name in NAMES:
        try:
            found[name] = apart(function, name, *args, **kwargs)
        except ImportError:
            found[name] = NOT_INSTALLED
        except CannotError as why:
            found[name] = f"cannot: {why}"
        except (TimeoutError, asyncio.TimeoutError):
            found[name] = "did not finish in the time it was given"
        except Exception as error:
            # Other people's code: whatever it says is its result.
            found[name] = f"failed: {type(error).__name__}: {error}"
    return found
