"""Values kept under keys: what was kept is there again, a line that was cut is not."""

from __future__ import annotations

import pytest

from likely.errors import DataError
from likely.io import KeptValues


def test_what_is_kept_is_there_in_the_next_run(tmp_path):
    file = tmp_path / "new" / "kept.jsonl"
    kept = KeptValues(file)
    kept.add({"a": [1.5, 2], "b": "ü\n"})
    again = KeptValues(file)
    assert again["a"] == [1.5, 2] and again["b"] == "ü\n" and "c" not in again
    assert (kept.earlier, again.earlier) == (0, 2)
    assert again.missing(["c", "a", "d", "c"]) == ["c", "d"]


def test_without_a_file_they_are_kept_in_memory():
    kept = KeptValues(None)
    kept.add({"a": 1})
    assert kept["a"] == 1


@pytest.mark.parametrize("left", range(1, 25))
def test_a_cut_line_is_left_out_and_the_next_one_is_whole(tmp_path, left):
    file = tmp_path / "kept.jsonl"
    KeptValues(file).add({"a": 1})
    first = file.read_bytes()
    KeptValues(file).add({"b": "äöü"})
    file.write_bytes(first + file.read_bytes()[len(first) :][:left])
    kept = KeptValues(file)
    assert "a" in kept and "b" not in kept
    kept.add({"c": 3})
    assert KeptValues(file)["c"] == 3 and KeptValues(file)["a"] == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"other.jsonl:1: expected .*choose another file"):
        KeptValues(file)


def test_what_is_no_json_number_is_refused_before_anything_is_written(tmp_path):
    kept = KeptValues(tmp_path / "kept.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        kept.add({"a": float("nan")})
    assert "a" not in kept and not (tmp_path / "kept.jsonl").exists()
