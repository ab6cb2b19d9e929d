"""Lengths of a corpus from a file to a table of what unequal groups gain."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from likely.errors import DataError
from likely.sequence.parallel.planner.comparison import (
    BEST,
    compare_plans,
    length_batches,
    plan_rows,
    read_lengths,
)
from likely.sequence.parallel.planner.cost import published_cost
from likely.sequence.parallel.planner.plans import plan

COST = published_cost("gpt-7b")


def test_lengths_are_read_from_lines_packed_or_not(tmp_path):
    plain, packed = tmp_path / "lengths.txt", tmp_path / "lengths.txt.gz"
    plain.write_text("12\n 7 \n")
    packed.write_bytes(gzip.compress(b"12\n7\n"))
    assert read_lengths(plain).tolist() == read_lengths(packed).tolist() == [12, 7]


@pytest.mark.parametrize("text", ["12\n0\n", "12\nsix\n", "12\n-4\n", "12\n1.5\n", "12\n\n3\n", "12\n" + "9" * 5000])
def test_a_line_that_is_no_length_is_named(tmp_path, text):
    file = tmp_path / "lengths.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=r"lengths.txt:2: a whole number"):
        read_lengths(file)


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_lengths(tmp_path / "none.txt")
    with pytest.raises(DataError, match="is no file"):
        read_lengths(tmp_path / "other.txt")


def test_batches_are_full_rounded_up_and_hold_no_longer_ones():
    lengths = [1, 128, 129, 5000, 300, 2]
    batches = [batch.tolist() for batch in length_batches(lengths, 2, longest=1000)]
    assert batches == [[128, 128], [256, 384]]  # the last one is not full
    assert [b.tolist() for b in length_batches([5], 2, multiple=1)] == [[5]]
    with pytest.raises(DataError, match="no length is at most 100"):
        list(length_batches([300], 1, longest=100))


def test_groups_of_one_size_are_compared_where_the_longest_fits():
    rng = np.random.default_rng(0)
    short = rng.integers(1, 40, 60) * 128
    found = compare_plans([short, np.append(short[:-1], 60_032)], 16, COST, solver="greedy")
    rows = {row["groups"]: row for row in found.rows()}
    assert rows["planned"]["batches"] == rows[BEST]["batches"] == rows["all of 16"]["batches"] == 2
    assert rows["all of 4"]["batches"] == 1  # 60,032 tokens need eight devices
    assert rows[BEST]["times_planned"] >= 1 >= rows["no plan is faster"]["times_planned"]
    assert rows["all of 16"]["times_planned"] > rows[BEST]["times_planned"]


def test_rows_of_a_plan_add_up():
    lengths = np.random.default_rng(1).integers(1, 60, 80) * 128
    made = plan(lengths, 16, COST, solver="greedy")
    rows = plan_rows(made, COST)
    assert sum(row["sequences"] for row in rows) == 80
    assert sum(row["tokens"] for row in rows) == lengths.sum()
    assert sum(row["ms"] for row in rows) == pytest.approx(made.predicted_ms)
