"""Every method of the table, end to end from a file: what it loses, what it records, what its exports give back."""

from __future__ import annotations

from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

from likely.compression.calibration_set import CalibrationSet
from likely.compression.evaluate import compare_all
from likely.compression.methods import METHODS, check_target, compress, reference_of
from likely.errors import CapabilityError, ModelError
from likely.models.load import load_local


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("compress") / "tiny.gguf", tied=True)


@pytest.fixture(scope="module")
def reference(model):
    return reference_of(model)


def some(reference, count, length, seed):
    ids = np.random.default_rng(seed).integers(3, reference.tokenizer.vocab_size, (count, length))
    return CalibrationSet(ids, "made up", "random ids", seed)


CASES = [
    ("rtn", "w4g32", {}), ("gptq", "w4g32", {}), ("gptq", "w4g32", {"act_order": True}), ("awq", "w4g32", {}),
    ("smoothquant", "w8a8", {}), ("rotation", "w4g32-sym", {}), ("rotation", "w4g32-sym", {"rounding": "rtn"}),
    ("mergequant", "w8a8", {}), ("rtn", "w8a8-static", {}),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(model, reference):
    chosen = some(reference, 8, 32, 0)
    return [compress(model, method=m, scheme=s, calibration=chosen, **o) for m, s, o in CASES]


def test_each_method_keeps_most_of_the_distribution(reference, made):
    candidates = {f"{n}": found for n, found in enumerate(made)}
    reports = compare_all(reference, candidates, some(reference, 2, 24, 1))
    for (method, scheme, _), report in zip(CASES, reports.values(), strict=True):
        assert 0 < report.kl < (0.3 if scheme.startswith("w4") else 0.02), (method, scheme, report.kl)


def test_settings_are_recorded(made):
    for (method, scheme, _), found in zip(CASES, made, strict=True):
        assert found.settings["method"] == method and found.settings["scheme"] == scheme
        assert ("calibration" in found.settings) == (METHODS[method].calibrates or "static" in scheme)
        assert found.backend == "fake" and found.nbytes > 0


@pytest.mark.parametrize("case", [1, 3, 5])
def test_files_hold_the_same_model(case, made, reference, tmp_path):
    """Untied heads and rewritten norms included: GPTQ, AWQ, rotation."""
    found, data = made[case], some(reference, 2, 24, 1)
    for target in (tmp_path / "x.gguf", tmp_path / "folder"):
        found.export(target)
        loaded = load_local(target, runtime="torch", dtype="float32")
        report = compare_all(found, {"file": loaded}, data)["file"]
        assert report.kl < 2e-4, target  # what was not rounded is fp16 in files
    names = {t.name for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert ("output.weight" in names) == (CASES[case][0] == "rotation")


def test_a_file_of_mergequant_holds_its_weights_as_floats(made, reference, model, tmp_path):
    found, data = made[7], some(reference, 2, 24, 1)
    for target in (tmp_path / "x.gguf", tmp_path / "folder"):
        found.export(target)
        loaded = load_local(target, runtime="torch", dtype="float32")
        assert 0 < compare_all(reference, {"file": loaded}, data)["file"].kl < 0.02
    with pytest.raises(CapabilityError, match="leave out --packed"):
        check_target(model, tmp_path / "x2.gguf", method="mergequant", scheme=None, overwrite=False, packed=True)


@pytest.mark.parametrize(("target", "bits"), [("x.gguf", 2), ("folder", 16)])  # in a GGUF some stay as they were
def test_a_full_disk_is_seen_before_the_work(target, bits, model, tmp_path, monkeypatch):
    tensors = gguf.GGUFReader(model).tensors
    needed = sum(int(np.prod(t.shape)) for t in tensors if len(t.shape) > 1) * bits // 8

    def check(free):
        monkeypatch.setattr("shutil.disk_usage", lambda of: SimpleNamespace(free=free))
        check_target(model, tmp_path / target, method="gptq", scheme="w4g32", overwrite=False)

    check(needed)
    with pytest.raises(ModelError, match="MB needed"):
        check(needed - 1)


def test_smoothquant_and_mergequant_want_activations(model, reference):
    with pytest.raises(ValueError, match="w8a8"):
        compress(model, method="smoothquant", scheme="w4g32", calibration=some(reference, 8, 32, 0))


@pytest.mark.parametrize(
    ("method", "scheme", "packed", "message"),
    [
        ("smoothquant", "w4g32", False, "w8a8"),
        ("mergequant", "w4a4g32", False, "w4a4"),
        ("mergequant", "w8a8-static", True, "w4a4"),
        ("mergequant", "w1a8", False, "bits"),
        ("gptq", "w4g96", False, "groups of 96 do not divide rows of 32"),
        ("additive", "2x8g7", False, "groups of 7 do not divide"),
        ("rtn", "w4g96-sym", True, "groups of 96 do not divide"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused_before_the_work(method, scheme, packed, message, model, tmp_path):
    with pytest.raises((ValueError, CapabilityError), match=message):
        check_target(model, tmp_path / "folder", method=method, scheme=scheme, overwrite=False, packed=packed)


def test_additive_codes_have_no_place_in_a_gguf_file(model, tmp_path):
    with pytest.raises(CapabilityError, match="leave out --packed"):
        check_target(model, tmp_path / "x.gguf", method="additive", scheme="2x8", overwrite=False, packed=True)


def test_codes_are_not_compressed_again(model, tmp_path):
    compress(model, scheme="w4g32-sym").export(tmp_path / "codes", packed=True)
    for target in ("x.gguf", "again"):
        with pytest.raises(ModelError, match="holds codes already"):
            check_target(tmp_path / "codes", tmp_path / target, method="rtn", scheme="w8", overwrite=False)


def test_an_option_of_another_method_is_refused(model, reference):
    with pytest.raises(ValueError, match="gptq takes no alpha, which is an option of smoothquant"):
        compress(model, method="gptq", alpha=0.7, calibration=some(reference, 8, 32, 0))
