"""JSON pointers (RFC 6901): which value of a line is meant."""

from __future__ import annotations

import re
from typing import Final, final

_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]*")


class Missing:
    """There is nothing where a pointer points."""


MISSING: Final = Missing()


@final
class Pointer:
    """A place in a JSON document, as in `/body/metadata/user`; the empty text is all of it.

    ValueError where the text is none.
    """

    def __init__(self, text: str) -> None:
        if (text and not text.startswith("/")) or _ESCAPE.search(text):
            raise ValueError(
                f"{text!r}: must be a JSON pointer into the line, as in '/body/metadata/user', "
                "with '~1' for '/' and '~0' for '~' in a name"
            )
        self.text = text
        steps = text.split("/")[1:]
        self._steps = tuple(step.replace("~1", "/").replace("~0", "~") for step in steps)

    def find(self, document: object) -> object:
        """The value there, or MISSING."""
        value = document
        for step in self._steps:
            if isinstance(value, dict):
                value = value.get(step, MISSING)
            elif isinstance(value, list) and _INDEX.fullmatch(step):
                # Longer than any list: int() refuses what is longer still.
                value = value[int(step)] if len(step) < 20 and int(step) < len(value) else MISSING
            else:
                return MISSING
        return value

    def __str__(self) -> str:
        return self.text
