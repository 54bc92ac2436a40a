"""What a log record says to programs: named fields beside its text, which is for people."""

from __future__ import annotations


def fields(event: str, **more: object) -> dict[str, object]:
    """The `extra` of a log call: `headway_event`, and `headway_NAME` for each of `more`.

    No attribute that logging gives a record begins so. They are names, numbers and what is ours;
    never what an error or an answer has said, in which a secret may be.
    """
    return {"headway_event": event, **{f"headway_{name}": value for name, value in more.items()}}
