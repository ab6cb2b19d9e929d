"""The study of MergeQuant on a tiny model: every way, its figures and checks, and integer products that agree."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def study():
    return script("mergequant")


@pytest.fixture(scope="module")
def found(study, tmp_path_factory):
    from tiny_gguf import write_tiny_llama

    from likely.compression.architecture import open_module
    from likely.compression.calibration_set import CalibrationSet

    _, module, tokenizer = open_module(write_tiny_llama(tmp_path_factory.mktemp("study") / "tiny.gguf"))
    ids = np.random.default_rng(0).integers(3, 300, (12, 32))
    sets = [CalibrationSet(part, name, "random ids") for part, name in ((ids[:8], "fitted"), (ids[8:], "held out"))]
    return study.study({"tiny": module}, tokenizer, sets[0], sets[1:], said=lambda line: None)


def test_every_way_is_measured_at_both_bits(study, found):
    kls = {f.subject: f.value for f in found.figures if f.quantity == "KL"}
    assert len(kls) == sum(len(ways) for ways in study.GRID.values()) and min(kls.values()) > 0
    assert all(f.low <= f.value <= f.high and f.n == 4 for f in found.figures)
    for way in study.FEWER:
        assert kls[f"tiny, held out, w4a4: {way}"] > 5 * kls[f"tiny, held out, w8a8: {way}"]


def test_checks_are_ratios_of_the_figures(study, found):
    values = {check.statement: check.value for check in found.checks}
    kls = {f.subject: f.value for f in found.figures if f.quantity == "KL"}
    half = values[f"w4a4: KL of {study.ALL} over one static scale's"]
    expected = kls[f"tiny, held out, w4a4: {study.ALL}"] / kls[f"tiny, held out, w4a4: {study.TENSOR}"]
    assert half == pytest.approx(expected) and len(found.checks) == 6
    assert [check.holds for check in found.checks if "integer" in check.statement] == [True, True]
