"""The index of papers: 48 of them, complete entries, and the commands that show and reproduce them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from likely.errors import LikelyError
from likely.evidence import papers

ROOT = Path(__file__).parents[2]
ROOMS = {
    "models", "decoding", "forecasting", "guided", "uncertainty", "calibration", "prompting", "alignment",
    "compression", "sequence", "audit", "serving",
}  # fmt: skip


def test_there_are_48_papers_with_unique_names():
    assert len(papers.papers()) == 48
    ids = [entry.id for entry in papers.index()]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z0-9_]+", name) for name in ids)


@pytest.mark.parametrize("entry", papers.index(), ids=lambda entry: entry.id)
def test_every_entry_is_complete(entry):
    assert entry.title and entry.claim and entry.room in ROOMS
    assert entry.state in papers.STATES
    assert not entry.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", entry.arxiv)
    if entry.kind == "paper":
        assert entry.known_from in ("abstract", "paper", "second-hand") and entry.spec
    if entry.state == "built":
        assert (ROOT / "reproductions" / f"{entry.id}.py").is_file()


def test_the_index_is_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["src/likely"]
    assert (ROOT / "src" / "likely" / "evidence" / "papers.toml").is_file()


def test_find_takes_both_dashes_and_suggests():
    assert papers.find("Runtime-Parity").kind == "study"
    with pytest.raises(LikelyError, match='did you mean "copyspec"'):
        papers.find("copy-spec")
    with pytest.raises(LikelyError, match="likely papers lists them"):
        papers.find("")
