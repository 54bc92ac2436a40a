"""Lanes: the order of lines, how many are held, and that nothing waits behind a full lane."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest

from headway.batch import lanes as lanes_module
from headway.batch.lanes import READ_AHEAD, Lanes
from headway.batch.lines import Broken, Line


def line(number: int, account: str = "") -> Line:
    return Line(number, str(number), "/", {}, account=account, offset=10 * number)


class File:
    """Lines of these accounts, of which some are read twice."""

    def __init__(self, accounts: Iterable[str]) -> None:
        self.lines = [line(number, account) for number, account in enumerate(accounts)]
        self.read = 0
        self.again: list[int] = []

    def __iter__(self) -> Iterator[Line | Broken]:
        for each in self.lines:
            self.read += 1
            yield each

    def read_again(self, number: int, offset: int) -> Line | Broken:
        assert offset == 10 * number
        self.again.append(number)
        return self.lines[number]

    def lanes(self) -> Lanes:
        return Lanes(self, lambda line: line.account, self.read_again)


def take_all(lanes: Lanes, tries: int = 10**9) -> list[Line]:
    """All that can be taken now, or what so many tries give."""
    taken: list[Line] = []
    while not lanes.done and not lanes.full and (tries := tries - 1) >= 0:
        got = lanes.take()
        if isinstance(got, Line):
            taken.append(got)
    return taken


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("READ_AHEAD", 4), ("ENOUGH", 8), ("FEW", 2), ("MOST_HELD", 12)):
        monkeypatch.setattr(lanes_module, name, value)


def test_one_lane_reads_nothing_before_there_is_room() -> None:
    read = 0

    def source() -> Iterator[Line]:
        nonlocal read
        while True:
            read += 1
            yield line(read)

    lanes = Lanes(source())
    taken = take_all(lanes)
    assert len(taken) == read == READ_AHEAD
    lanes.leave(taken[7])
    assert [each.number for each in take_all(lanes)] == [READ_AHEAD + 1]
    assert read == READ_AHEAD + 1


@pytest.mark.usefixtures("small")
def test_a_lane_that_is_full_is_passed_over_and_goes_on_when_there_is_room() -> None:
    file = File("aaaaaaaaaab")
    lanes = file.lanes()
    taken = take_all(lanes)
    assert [each.number for each in taken] == [0, 1, 2, 3, 10]
    assert file.again == []
    assert not lanes.done
    lanes.leave(taken[0])
    lanes.leave(taken[1])
    assert [each.number for each in take_all(lanes)] == [4, 5]
    assert file.again == [4, 5]


@pytest.mark.usefixtures("small")
def test_broken_and_wrong_lines_take_no_room() -> None:
    wrong = Line(0, "x", "/", {}, wrong=("code", "why"))
    given: list[Line | Broken] = [Broken(9, "no"), wrong] * 20
    lanes = Lanes(given)
    assert [lanes.take() for _ in given] == given
    assert lanes.take() is None
    assert lanes.done


@pytest.mark.usefixtures("small")
def test_what_has_changed_in_the_file_meanwhile_is_broken_and_the_rest_goes_on() -> None:
    file = File("aaaaaab")
    lanes = file.lanes()
    taken = take_all(lanes)
    file.lines[4] = line(4, "somebody else")
    for each in taken:
        lanes.leave(each)
    first = lanes.take()
    assert isinstance(first, Broken)
    assert first.number == 4
    assert "changed" in first.reason
    assert [each.number for each in take_all(lanes)] == [5]
    assert lanes.done


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(200))
def test_every_line_comes_once_in_its_lanes_order_with_no_more_held_than_may_be(seed: int) -> None:
    below = random.Random(seed).randrange
    accounts = ["aaaaaaabbbbccccdefghijklmn"[below(26)] for _ in range(below(150))]
    file = File(accounts)
    lanes = file.lanes()
    held: list[Line] = []
    seen: list[Line] = []
    while not lanes.done:
        fresh = take_all(lanes, below(8))
        seen += fresh
        held += fresh
        assert len(held) <= lanes_module.MOST_HELD
        if lanes.full and len(held) < lanes_module.MOST_HELD:
            # Nobody waits who holds nothing.
            left = {each.account for each in file.lines if each not in seen}
            assert left <= {each.account for each in held}
        for _ in range(below(6)):
            if held:
                lanes.leave(held.pop(below(len(held))))
    assert len(seen) == len(file.lines)
    for account in set(accounts):
        numbers = [each.number for each in seen if each.account == account]
        assert numbers == sorted(numbers)
    for each in held:
        lanes.leave(each)
    assert not lanes._lanes
