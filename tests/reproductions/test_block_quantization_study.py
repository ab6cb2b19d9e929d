"""The study of block formats on a small random model: controls do nothing, the injection is exact, numbers are kept."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scripts import script

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_torch import module_of  # noqa: E402

from likely.compression.architecture import DecoderMap  # noqa: E402
from likely.compression.calibration_set import CalibrationSet  # noqa: E402
from likely.evidence import Source  # noqa: E402


class SomeTokenizer:
    fingerprint, vocab_size = "made up", 64


@pytest.fixture(scope="module")
def study():
    return script("block_quantization")


@pytest.fixture(scope="module")
def module():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
    )  # fmt: skip
    return module_of(config, std=0.1)


def test_the_study_runs_and_keeps_its_numbers(study, module, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "TAIL", 20)
    monkeypatch.setattr(study.long_text, "__defaults__", (20,))
    rng = np.random.default_rng(0)
    ids, long = rng.integers(0, 64, (2, 30)), rng.integers(0, 64, 60)

    def run():
        return study.study(
            module, SomeTokenizer(), CalibrationSet(ids, "t", "t"), 1, CalibrationSet(ids[:1], "t", "t"), long,
            full=False, models=[Source(name="none", sha256="0" * 64)], sources=[], keep=tmp_path, say=lambda line: None,
        )  # fmt: skip

    found = run()
    by = {check.statement: check for check in found.checks}
    assert found.id == "block_quantization" and len(by) == 8
    controls = [check for name, check in by.items() if "control" in name or "head size" in name]
    assert len(controls) == 2 and all(check.holds for check in controls)
    assert by["injected outliers: KL sorted over KL unsorted"].holds
    values = {(f.subject, f.quantity): f.value for f in found.figures}
    assert len(values) == len(found.figures)
    assert values["n=32, BFP16 keys", "mean KL"] < 0.1 * values["n=32, unsorted", "mean KL"]
    bits = {name: values[name, "keys and values"] for name in ("n=32, unsorted", "n=32, BFP16 keys")}
    assert bits == {"n=32, unsorted": 2 * 64 * (4.25 + 32) / 8, "n=32, BFP16 keys": 2 * 64 * (8.25 + 32) / 8}
    monkeypatch.setattr(study, "prepared", lambda *_: pytest.fail("it is measured again"))
    assert run().checks == found.checks


def test_injected_outliers_change_keys_and_nothing_else(study, module):
    changed = copy.deepcopy(module)
    study.inject_outliers(DecoderMap.of(changed))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(changed(input_ids=ids).logits, module(input_ids=ids).logits, rtol=0, atol=1e-4)
    ratio = changed.model.layers[0].self_attn.k_proj.weight / module.model.layers[0].self_attn.k_proj.weight
    assert int((ratio[:, 0] > 29).sum()) == 2 * study.PAIRS
