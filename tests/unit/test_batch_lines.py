"""Lines of a batch: what is a request, and what is said about everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway.batch.keys import Keys
from headway.batch.lines import Broken, Line, count_lines, read_again, read_lines
from headway.batch.pointer import Pointer


def request(custom_id: str = "a", **changed: object) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m"},
        **changed,
    }


def read(*lines: object) -> list[Line | Broken]:
    return list(read_lines(json.dumps(line).encode() + b"\n" for line in lines))


LENGTH = len(json.dumps(request()).encode()) + 1


def reason(line: bytes) -> str:
    (broken,) = read_lines([line])
    assert isinstance(broken, Broken)
    return broken.reason


def test_a_line_is_a_request_with_its_number() -> None:
    assert read(request("a"), request("b")) == [
        Line(1, "a", "/v1/chat/completions", {"model": "m"}),
        Line(2, "b", "/v1/chat/completions", {"model": "m"}, offset=LENGTH),
    ]


def test_empty_lines_and_a_byte_order_mark_say_nothing_but_count_as_lines() -> None:
    text = json.dumps(request()).encode()
    assert [line.number for line in read_lines([b"\xef\xbb\xbf" + text, b"\n", b" \r\n"])] == [1]
    assert [line.number for line in read_lines([b"\r\n", b"\n", text + b"\r\n"])] == [3]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'"\xff"', "not UTF-8: byte 2 is 0xff"),
        (b"[1]", "[1]: must be an object with custom_id, method, url, body"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_what_is_no_json_object_is_broken(line: bytes, said: str) -> None:
    assert said in reason(line)


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
def test_a_missing_field_is_named(name: str) -> None:
    line = request()
    del line[name]
    assert reason(json.dumps(line).encode()) == f"{name} is missing"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("custom_id", "", "custom_id '': must be a string that is not empty"),
        ("custom_id", 7, "custom_id 7: must be a string that is not empty"),
        ("method", "GET", "method 'GET': must be 'POST'"),
        ("url", "v1/chat", "url 'v1/chat': must be a path as in '/v1/chat/completions'"),
        ("url", "https://else.where/v1", "must be a path"),
        ("url", "/v1\n", "must be a path"),
        ("body", [], "body []: must be an object"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_rule(
    name: str, value: object, said: str
) -> None:
    assert said in reason(json.dumps(request(**{name: value})).encode())


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(reason(json.dumps(request(method="G" * 10_000)).encode())) < 120


def test_a_custom_id_that_was_there_before_is_broken_and_says_where() -> None:
    lines = read(request("a"), request("b"), request("a"), request("a"))
    assert [str(line) for line in lines if isinstance(line, Broken)] == [
        "line 3: custom_id 'a' is that of line 1; not sent",
        "line 4: custom_id 'a' is that of line 1; not sent",
    ]


def test_lines_are_read_only_as_they_are_asked_for() -> None:
    taken = 0

    def source() -> Any:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield json.dumps(request(str(number))).encode()

    lines = read_lines(source())
    next(lines)
    next(lines)
    assert taken == 2


def test_only_lines_that_are_not_empty_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"a\n\n  \nb\nlast")
    assert count_lines(str(path)) == 3


def test_a_line_is_read_again_by_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    keys = Keys(priority=Pointer("/urgent"))
    text = b"".join(json.dumps(request(str(i), urgent=i)).encode() + b"\n\n" for i in range(5))
    path.write_bytes(b"\xef\xbb\xbf" + text)
    with path.open("rb") as file, path.open("rb") as again:
        lines = list(read_lines(file, keys))
        assert [line.number for line in lines] == [1, 3, 5, 7, 9]
        for line in reversed(lines):
            assert isinstance(line, Line)
            assert read_again(again, keys, line.number, line.offset) == line


def test_the_model_of_a_line_is_its_bodys() -> None:
    bodies = [{"model": "m"}, {"model": 7}, {}]
    assert [Line(1, "a", "/", body).model for body in bodies] == ["m", "", ""]
