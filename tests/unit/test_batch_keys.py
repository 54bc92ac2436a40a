"""Accounts and priorities of lines: where a pointer points, and what may be there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.batch.keys import Keys
from headway.batch.lines import Line, read_lines
from headway.batch.pointer import MISSING, Pointer

# The document of RFC 6901, section 5.
DOCUMENT = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/foo/1", "baz"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_a_pointer_finds_what_the_standard_says(pointer: str, value: object) -> None:
    assert Pointer(pointer).find(DOCUMENT) == value


@pytest.mark.parametrize(
    "pointer",
    ["/bar", "/foo/2", "/foo/00", "/foo/-", "/foo/-1", "/foo/x", "/foo/" + "9" * 5000, "/foo/٣",
     "/foo/0/0", "//x", "/foo/1/x"],
)  # fmt: skip
def test_where_a_pointer_finds_nothing_it_says_so(pointer: str) -> None:
    assert Pointer(pointer).find(DOCUMENT) is MISSING


def test_a_tilde_is_unescaped_once() -> None:
    assert Pointer("/~01").find({"~1": "yes", "/": "no"}) == "yes"


@pytest.mark.parametrize("pointer", ["foo", "#/foo", "/a~", "/a~2", "/~x"])
def test_what_is_no_pointer_is_told(pointer: str) -> None:
    with pytest.raises(ValueError, match="must be a JSON pointer into the line"):
        Pointer(pointer)


KEYS = Keys(Pointer("/body/metadata/user"), Pointer("/body/metadata/priority"))


def read(metadata: object, keys: Keys = KEYS) -> Line:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"metadata": metadata},
        "team": "red",
    }
    (read,) = read_lines([json.dumps(line).encode()], keys)
    assert isinstance(read, Line)
    return read


@pytest.mark.parametrize(
    ("metadata", "account", "priority"),
    [
        ({"user": "u", "priority": 7}, "u", 7),
        ({"user": "u", "priority": "-12"}, "u", -12),
        ({"user": "é ü/~", "priority": 10**9}, "é ü/~", 10**9),
        ({"user": None, "priority": None}, None, 0),
        ({}, None, 0),
        (None, None, 0),
        ("nothing", None, 0),
    ],
)
def test_a_line_says_its_account_and_its_priority(
    metadata: object, account: str | None, priority: int
) -> None:
    line = read(metadata)
    assert (line.account, line.priority, line.wrong) == (account, priority, None)


def test_a_pointer_is_into_the_line_and_not_into_its_body() -> None:
    assert read({}, Keys(account=Pointer("/team"))).account == "red"
    assert read({"user": "u"}, Keys(account=Pointer("/metadata/user"))).account is None
    assert read({"user": "u"}, Keys()).account is None


@pytest.mark.parametrize("user", [7, True, "", ["u"], {"id": "u"}, "\ud800"])
def test_an_account_that_is_no_name_fails_the_line_with_all_that_is_to_know(user: Any) -> None:
    code, message = read({"user": user}).wrong or ("", "")
    assert code == "invalid_account"
    assert message == (
        f"line 1: --account-key /body/metadata/user: {user!r} must be a string that is not empty "
        "(missing: no account)"
    )


@pytest.mark.parametrize("priority", [1.0, True, "high", "", "1.5", "--1", "٣", [1], 10**9 + 1])
def test_a_priority_that_is_none_fails_the_line_with_all_that_is_to_know(priority: Any) -> None:
    code, message = read({"priority": priority}).wrong or ("", "")
    assert code == "invalid_priority"
    assert message == (
        f"line 1: --priority-key /body/metadata/priority: {priority!r} must be a whole number "
        "from -10**9 to 10**9, or one as a string (missing: 0)"
    )


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len((read({"priority": "x" * 10_000}).wrong or ("", ""))[1]) < 300
