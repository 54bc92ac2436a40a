"""The file of results: its shape, and that nothing of it waits in a buffer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway.batch.results import Outcome, Results, same_file


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_answer_has_openais_shape(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(str(path)) as results:
        results.write("a", Outcome(status=200, request_id="req_1", body={"x": [1, "é\ud800"]}))
    (result,) = written(path)
    assert result.pop("id").startswith("batch_req_")
    assert result == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"x": [1, "é\ud800"]}},
        "error": None,
    }


def test_what_was_never_answered_has_an_error_instead(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(str(path)) as results:
        results.write("a", Outcome(error=("timeout", "no answer within 5 s")))
    (result,) = written(path)
    assert result["response"] is None
    assert result["error"] == {"code": "timeout", "message": "no answer within 5 s"}


def test_a_result_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Results(str(path)) as results:
        for number in range(3):
            results.write(str(number), Outcome(status=200))
            assert [result["custom_id"] for result in written(path)][-1] == str(number)


def test_a_result_that_the_system_takes_in_pieces_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"

    class InPieces:
        def __init__(self) -> None:
            self.file = path.open("wb", buffering=0)
            self.close = self.file.close

        def write(self, data: memoryview) -> int:
            return self.file.write(data[:7])

    with Results(str(path)) as results:
        results._file.close()
        monkeypatch.setattr(results, "_file", InPieces())
        results.write("a", Outcome(status=200, body="x" * 100))
    assert written(path)[0]["response"]["body"] == "x" * 100


def test_ids_are_unique_also_among_runs(tmp_path: Path) -> None:
    ids: set[str] = set()
    for run in range(3):
        path = tmp_path / f"{run}.jsonl"
        with Results(str(path)) as results:
            for number in range(100):
                results.write(str(number), Outcome(status=200))
        ids.update(result["id"] for result in written(path))
    assert len(ids) == 300


def test_a_file_that_exists_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(FileExistsError):
        Results(str(path))
    assert path.read_text() == "precious\n"
    Results(str(path), overwrite=True).close()
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("status", "succeeded"), [(200, True), (299, True), (302, False), (400, False), (None, False)]
)
def test_only_a_2xx_is_a_success(status: int | None, succeeded: bool) -> None:
    assert Outcome(status=status).succeeded is succeeded


def test_one_file_is_recognised_by_another_name(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    assert not same_file(str(one), str(other))
    other.symlink_to(one)
    assert same_file(str(one), str(other))
