"""The study of online preference optimisation at its smallest: games in full, cells that are kept, all its figures."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scripts import script as load_script

pytest.importorskip("torch")
pytest.importorskip("vaderSentiment")

from likely.alignment.scores import Completion
from likely.io.kept import KeptValues


@pytest.fixture(scope="module")
def study():
    return load_script("online_preference")


def test_games_tell_the_methods_apart(study):
    figures, checks = study.of_games(1, tau=0.2)
    assert len(checks) == 2 and all(check.holds for check in checks)
    cycle = {f.subject: f.value for f in figures if f.quantity == "exploitability of the cycle"}
    assert abs(cycle["games: online IPO"]) < 1e-9 and cycle["games: RL on a fitted reward"] > 1e-3


def test_the_judge_is_a_cycle_of_lengths(study):
    judge = study.CyclicJudge((2, 4))
    texts = [Completion((0,), (1,), text=" ".join("a" * n)) for n in (1, 3, 9)]
    assert [judge.bucket(c) for c in texts] == [0, 1, 2]
    assert [judge.bucket(Completion((0,), (1,), text=" ".join("a" * n))) for n in (2, 4, 5)] == [0, 1, 2]
    np.testing.assert_array_equal(judge(texts, texts[1:] + texts[:1]), [0.9] * 3)
    np.testing.assert_array_equal(judge(texts[1:] + texts[:1], texts), [0.1] * 3)


@pytest.mark.slow
@pytest.mark.xdist_group("sentiment lab")
def test_the_study_runs_and_reads_its_cells_again(study, tmp_path, lab_folder, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    sizes, path = study.SMALLEST, tmp_path / "cells.jsonl"
    lab = study.open_lab(lab_folder, sizes.lab)
    said: list[str] = []
    found = study.study(
        lab, study.Cells(KeptValues(path), sizes, said.append), sizes, full=False, started=time.perf_counter()
    )
    assert found.id == "online_preference" and len(said) == 1 + 3 + 1 + 4
    assert len({(f.subject, f.quantity) for f in found.figures}) == len(found.figures)
    assert {f.value for f in found.figures if f.quantity.startswith("share of")} <= set(np.linspace(0, 1, 257)) | {
        f.value for f in found.figures if f.subject.startswith("computed")
    }
    monkeypatch.setattr(study, "fresh_policy", lambda _: pytest.fail("trained again"))
    again = study.study(
        lab, study.Cells(KeptValues(path), sizes, said.append), sizes, full=False, started=time.perf_counter()
    )
    assert again.figures == found.figures and again.checks == found.checks
