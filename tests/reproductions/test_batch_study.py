"""The study of batches on a tiny model: what it must find equal, what it must notice, and that replaying is exact."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

import likely
from likely.decoding.drafting.lookup import PromptLookup

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script():
    return load_script("batch_speculation")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("batch") / "tiny.gguf")


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [tuple(np.tile(rng.integers(3, 250, 5), 6)[: 6 + i % 4].tolist()) for i in range(12)]


def test_the_study_on_a_tiny_model(script, path, texts):
    size = replace(script.QUICK, tokens=10, calibration=8, batches=(2, 4), contexts=(16, 32), rounds=2, timed_prompts=4)
    found = script.study(
        lambda dtype: likely.load(str(path), runtime="torch", dtype=dtype),
        size, texts=texts, natural=texts[-1], recorded=[([*t], [*t[::-1]]) for t in texts], report=lambda line: None,
    )  # fmt: skip
    by_statement = {check.statement: check for check in found.checks}
    for kind in script.KINDS:
        assert by_statement[f"fp32, B=8, {kind}: prompts whose text differs from plain decoding"].value == 0
    assert next(c for s, c in by_statement.items() if "broken control" in s).holds
    assert any(s.startswith("grouped share") for s in by_statement)
    assert found.mode == "quick" and len(found.checks) == 12
    shares = [f for f in found.figures if f.quantity == "keeping rows in step"]
    assert len(shares) == 2 * 3 * 2 and all(0 <= f.value < 1 for f in shares)


def test_recorded_scheduling_is_that_of_the_model(script, path, texts):
    """Grouped rows, counted by the runtime that really stacks them, and on recorded answers."""
    with likely.load(str(path), runtime="torch") as lm:
        drafted, runtime = script.requests_of(texts, 10, PromptLookup()), script.GroupTorchRuntime(lm.runtime.module)
        live = script.decode(runtime, lm.tokenizer, drafted, batch=3, window=9)
        whole = [[*t, *done.tokens] for t, done in zip(texts, live, strict=True)]
        recorded = script.Recorded(whole, lm.runtime.vocab_size)
        again = script.decode(recorded, lm.tokenizer, drafted, batch=3, window=9)
        assert [d.tokens for d in again] == [d.tokens for d in live]
        assert [d.rounds for d in again] == [d.rounds for d in live]
        assert (recorded.rows, recorded.grouped) == (runtime.alignment.rows, runtime.alignment.grouped)
        assert 0 < recorded.grouped < recorded.rows


def test_a_difference_is_explained_by_its_gap_alone(script):
    """The plain run preferred its token by 0.1 nats in one text, by 3 in another; a third one agrees."""

    def plain(gap):
        return SimpleNamespace(tokens=[5, 6], logprobs=[-1.0, -0.5], tops=[[(5, -1.0), (9, -1.0 - gap)], [(6, -0.5)]])

    others = [SimpleNamespace(tokens=tokens) for tokens in ([9, 1], [9, 1], [5, 6])]
    found = script.compare([plain(0.1), plain(3.0), plain(1.0)], others)
    assert found.identical == 1 and found.gaps == pytest.approx([0.1, 3.0]) and found.kept == [0.0, 0.0, 1.0]
    assert (found.unexplained(0.2), found.unexplained(0.05), found.unexplained(5)) == (1, 2, 0)
    unlisted = script.compare([plain(0.1)], [SimpleNamespace(tokens=[7, 1])])
    assert unlisted.gaps == pytest.approx([0.1])  # at least the gap to the last of the listed ones


def test_the_prompts_are_fixed(script, path, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    with likely.load(str(path), runtime="torch") as lm:
        found = script.prompts(lm, script.QUICK)
        assert len(found) == 12 and len(set(found)) == 12 and max(map(len, found)) < 2 * script.QUICK.trim
        recorded = script.conversations(lm, 5)
        assert len(recorded) == 5 and {len(answer) for _, answer in recorded} == {script.ANSWER_TOKENS}


def test_a_difference_of_medians_holds_the_true_one(script):
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.3, 0.02, 30), rng.normal(0.2, 0.02, 30)
    low, high = script.difference_of_medians(one, other)
    assert low < 0.1 < high and low > 0.05 and high < 0.15
