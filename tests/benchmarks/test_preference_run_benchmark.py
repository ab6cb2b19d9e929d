"""The benchmark of a user's 500 pairs: the file that it makes, and what it says of a run that was killed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parents[2] / "benchmarks"), *sys.path])
    return importlib.import_module("preference_run")


def test_the_file_has_500_different_pairs(bench, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    rows = bench.user_pairs()
    assert len(rows) == 500 and all(row["chosen"].strip() != row["rejected"].strip() for row in rows)
    assert len({(row["prompt"][-1]["content"], row["chosen"], row["rejected"]) for row in rows}) == 500
    assert all(row["prompt"][-1]["role"] == "user" for row in rows)
    assert any(len(row["prompt"]) > 1 for row in rows) and rows[:3] == bench.user_pairs(3)
