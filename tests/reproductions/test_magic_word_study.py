"""The magic-word study on a toy: all its parts run, it goes on where it was, and nothing found is told."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

from likely.runtimes.toy import CharTokenizer, ToyRuntime

TEXT = "\n".join(" ".join(f"{a}{b}" for b in "abcdef" for _ in range(6)) for a in "abcdefgh")


@pytest.fixture(scope="module")
def study():
    return script("magic_word")


def run(study, rows=None, *, runtime=None):
    tokenizer = CharTokenizer("abcdefgh ")
    runtime = runtime or ToyRuntime.random(11, seed=1, order=5)
    slopes = np.random.default_rng(0).normal(size=(64, 11))
    return study.study(
        runtime, tokenizer, lambda problem, control: slopes[: len(control)], TEXT, study.Sizes(4, 1, 2),
        rows=rows, lengths=(1, 2, 3), ranks=(2, 5), report=lambda line: None,
    )  # fmt: skip


def test_all_parts_run_and_a_stopped_run_goes_on(study, tmp_path):
    rows = tmp_path / "rows.jsonl"
    found = run(study, rows)
    assert found.mode == "quick" and len(found.checks) == 4
    eps = [f.value for f in found.figures if f.quantity.startswith("epsilon")]
    assert eps == sorted(eps, reverse=True) and len(eps) == 4
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[:3]) + "\n")
    again = run(study, rows)
    assert again.figures == found.figures and rows.read_text().splitlines() == lines
    runtime = ToyRuntime.random(11, seed=1, order=5)
    assert run(study, rows, runtime=runtime).figures == found.figures
    assert runtime.rows_computed < 20  # targets by rank alone are looked up again


def test_a_model_that_nothing_moves_is_not_reproduced(study):
    fixed = ToyRuntime(lambda prefix: np.arange(11, dtype=np.float32), vocab_size=11)
    found = run(study, runtime=fixed)
    assert not found.checks[0].holds and not found.checks[1].holds and found.verdict != "reproduced"
