"""The parity study on a tiny model and three strings: its comparisons, its bounds, and what it must notice."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

from likely.evidence import Evidence

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
TEXTS = ["the cat sat", "on the mat and", "def f(x):"]


@pytest.fixture(scope="module")
def parity():
    return script("runtime_parity")


@pytest.fixture(scope="module")
def found(parity, tmp_path_factory) -> Evidence:
    source = write_tiny_llama(tmp_path_factory.mktemp("parity") / "tiny.gguf")
    return parity.study(source, TEXTS, report=lambda line: None)


def figures(evidence: Evidence, quantity: str) -> dict[str, float]:
    return {f.subject: f.value for f in evidence.figures if f.quantity == quantity}


@pytest.mark.slow
def test_the_study_holds_on_a_tiny_model(parity, found):
    assert found.verdict == "reproduced" and found.mode == "quick" and len(found.checks) == 2
    largest, kl = figures(found, "max of |difference|"), figures(found, "mean KL")
    assert set(largest) == {parity.TORCH, parity.F32, parity.Q8, parity.PACKAGED}
    for form in (parity.TORCH, parity.F32, parity.PACKAGED):  # the file itself holds fp32 weights here
        assert largest[form] < 1e-4 and abs(kl[form]) < 1e-8
    assert 1e-4 < largest[parity.Q8] < 1 and 1e-6 < kl[parity.Q8] < 0.1  # rounded weights are seen
    assert all(f.low is not None or "maximum" in f.note or f.value == 0 for f in found.figures)


@pytest.mark.slow
def test_a_wrong_number_is_noticed(parity, found, tmp_path, monkeypatch):
    """One row of the reference with its columns reversed breaks both bounds."""
    original = parity.reference_rows

    def shifted(folder, items, store):
        original(folder, items, store)
        rows = np.load(store / "0.npy", allow_pickle=False)
        rows[1] = rows[1, ::-1]
        np.save(store / "0.npy", rows, allow_pickle=False)

    monkeypatch.setattr(parity, "reference_rows", shifted)
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    assert parity.study(source, TEXTS, report=lambda line: None).verdict == "not reproduced"


def test_the_interval_resamples_strings_not_tokens(parity):
    """Two strings that are constant in themselves: resampled means can only be 0, 1/2 or 1."""
    value, low, high = parity.bootstrap([np.zeros(50), np.ones(50)], lambda v: float(v.mean()))
    assert (value, low, high) == (0.5, 0.0, 1.0)


def test_the_strings_are_fixed(parity, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    full, quick = parity.strings(full=True), parity.strings(full=False)
    assert len(full) == 200 and len(quick) == 60 and set(quick) <= set(full)
    assert max(map(len, full)) <= 64 and all(full)
