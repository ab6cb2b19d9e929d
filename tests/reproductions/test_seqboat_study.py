"""The study of SeqBoat toy-sized: its tasks are what it says, every cell runs and is kept, the checks can fail."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script():
    return load_script("seqboat")


def test_questions_have_one_answer_and_noise_stands_nowhere_else(script):
    found, needed, asked = script.recall(20, 0, script.QUICK)
    for ids, targets, question in zip(found.inputs, found.targets, asked, strict=True):
        pairs = dict(zip(ids[: 2 * script.PAIRS : 2], ids[1 : 2 * script.PAIRS : 2], strict=True))
        assert len(pairs) == script.PAIRS and question.sum() == script.PAIRS * script.ASKED
        assert [pairs[key] for key in ids[question]] == targets[question].tolist()
        assert (ids == targets)[2 * script.PAIRS :][~question[2 * script.PAIRS :]].all()
        assert (targets[: 2 * script.PAIRS] == -100).all()
    assert ((found.inputs < script.VOCABULARY) == needed).all()
    assert not np.array_equal(found.inputs, script.recall(20, 0, script.QUICK, "test")[0].inputs)


def test_chunks_see_no_token_outside(script):
    torch.manual_seed(0)
    (layer, _) = script.layers(script.CHUNKED, script.SMOKE, 12)
    x = torch.randn(1, 12, script.WIDTH)
    unit = layer._unit(x, every_token(x), torch.arange(12)[None], layer.init_state(1))[0]
    changed = x.clone()
    changed[:, :4] = 0
    other = layer._unit(changed, every_token(x), torch.arange(12)[None], layer.init_state(1))[0]
    assert torch.equal(unit[:, 4:], other[:, 4:]) and not torch.equal(unit[:, :4], other[:, :4])


def every_token(x):
    from likely.sequence.seqboat import route

    return route(torch.zeros(*x.shape[:2], 2), always=True)


def test_the_study_measures_every_cell_once(script, tmp_path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    cells = script.Cells(tmp_path / "cells.jsonl", {}, lambda line: None)
    found = script.study(cells, script.SMOKE, full=False, say=lambda line: None)
    assert len(found.checks) == 6 and found.mode == "quick"
    quantities = {figure.quantity for figure in found.figures}
    assert quantities >= {"activation, copy", "activation, recall", "accuracy, recall", "text", "activation, text"}
    rates = [figure.value for figure in found.figures if figure.quantity.startswith("activation")]
    assert all(0 <= rate <= 1 for rate in rates)
    kept = (tmp_path / "cells.jsonl").read_text()
    script.study(cells, script.SMOKE, full=False, say=lambda line: None)
    assert (tmp_path / "cells.jsonl").read_text() == kept
