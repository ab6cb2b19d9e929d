"""The study of EISL with a few steps, and its translation task: pairs, noise, both decoders."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scripts import script

torch = pytest.importorskip("torch")
for package in ("babel", "num2words", "sacrebleu"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def task():
    return script("toy_translation")


@pytest.fixture(scope="module")
def pairs(task):
    rng = np.random.default_rng(0)
    return [*task.date_pairs(20, rng, task.FORMATS), *task.number_pairs(20, rng)]


def test_pairs_are_translations(task, pairs):
    assert len(pairs[0].references) == 3 and len(pairs[-1].references) == 1
    assert {w for w in pairs[0].source if w.isdigit()} == {w for w in pairs[0].references[2] if w.isdigit()}
    vocabulary = task.Vocabulary(pairs)
    for pair in pairs:
        assert vocabulary.decode([*vocabulary.encode(pair.references[0]), task.EOS, 5]) == " ".join(pair.references[0])


def test_noise_has_the_level_that_is_asked_for(task):
    rng, tokens = np.random.default_rng(0), list(range(10, 20))
    assert task.add_noise(tokens, ("shuffle", "repeat", "blank"), 0, rng) == tokens
    assert sorted(task.add_noise(tokens, ("shuffle",), 5, rng)) == tokens
    many = [task.add_noise(tokens, ("blank",), 5, rng) for _ in range(200)]
    assert np.mean([row.count(task.BLANK) for row in many]) == pytest.approx(5, abs=0.5)
    longer = [len(task.add_noise(tokens, ("repeat",), 3, rng)) for _ in range(200)]
    assert np.mean(longer) == pytest.approx(13, abs=0.4)


@pytest.mark.parametrize("parallel", [0, 6])
def test_outputs_are_one_run_that_ends(task, parallel):
    torch.manual_seed(0)
    model = task.Translator(12, width=8, layers=1, parallel=parallel)
    source = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
    written = model.greedy(source, longest=6)
    seen = written != task.PAD
    assert bool((seen[:, 1:] <= seen[:, :-1]).all()) and not bool((written == task.BOS).any())
    alone = model.greedy(source[1:, :2], longest=6)[0]
    assert alone[alone != 0].tolist() == written[1][seen[1]].tolist()  # padding of the source changes nothing
    if not parallel:  # each token is the most likely one after those before it
        given = torch.cat([torch.full((2, 1), task.BOS), written[:, :-1]], 1)
        best = model(source, given).argmax(-1)
        assert bool((best == written)[seen].all())


def test_every_cell_is_measured_and_kept(tmp_path):
    study = script("eisl")
    size = dataclasses.replace(study.SMOKE, train=40, test=6, first=1, then=1, parallel_first=1, parallel_then=1)
    found = study.study(size, kept=tmp_path / "cells.jsonl", said=lambda line: None)
    subjects = {f.subject for f in found.figures}
    assert {f"noise {level}: {name}" for level in (0, 5) for name in study.CONTINUATIONS} <= subjects
    assert len(found.checks) == 4 and all(f.n == 2 for f in found.figures)
    again = study.study(size, kept=tmp_path / "cells.jsonl", said=pytest.fail)  # nothing is computed twice
    assert [f.value for f in again.figures] == [f.value for f in found.figures]
