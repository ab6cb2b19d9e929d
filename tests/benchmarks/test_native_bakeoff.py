"""The bake-off's lean forward on a tiny random model: each kind of matrix is the model it claims to be."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from likely.runtimes.machine import machine

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[2] / "benchmarks"
TEXT = [int(token) for token in np.random.default_rng(0).integers(0, 64, 24)]
CONTEXT, CALLS = 16, {1: 1, 4: 1}


@pytest.fixture(scope="module")
def bakeoff():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("native_bakeoff"), importlib.import_module("native_bakeoff_torch")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def folder(bakeoff, tmp_path_factory):
    """Weights and shape of a tiny llama, and its own logits."""
    import transformers
    from tiny_torch import GROUPED

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GROUPED, tie_word_embeddings=True)
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
        reference = module(torch.tensor([TEXT])).logits[0].numpy()
    place = tmp_path_factory.mktemp("bakeoff")
    bakeoff[1].Weights.of(module).save(place / "weights.pt")
    np.save(place / "reference.npy", reference)
    return place


# nats per token of a random model, whose activations have no outliers; a wrong head or position costs whole nats
@pytest.mark.parametrize(
    ("kind", "allowed"),
    [("fp32", 1e-6), ("bf16", 0.02), ("bf16 packed", 0.02), ("int8 per token", 0.05), ("int8 per call", 0.1)],
)
def test_a_lean_forward_is_the_model(bakeoff, folder, kind, allowed):
    script, _ = bakeoff
    if kind.startswith("int8") and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine().flags):
        pytest.skip("oneDNN's sums of bytes saturate on a processor without VNNI: another model")
    try:
        held = script.Held(script.eager(folder, kind=kind), TEXT, CONTEXT)
        found = script.guard(held, np.load(folder / "reference.npy"), CALLS, chunk=8)
    except (RuntimeError, NotImplementedError) as error:  # oneDNN has no bf16 or bytes on this processor
        if kind == "fp32":
            raise
        pytest.skip(str(error).splitlines()[0])
    assert found["rows"] == len(TEXT) and 0 <= max(found["kl_mean"], 0) < allowed
    assert set(found["kl_of_timed_calls"]) == {"prefill", "1", "4"}
    assert all(value < 4 * allowed for value in found["kl_of_timed_calls"].values())
    seconds = script.one_round(held, CALLS)
    assert set(seconds) == {"prefill", "1", "4"} and min(seconds.values()) > 0
    assert script.summary([seconds["1"]] * 3)["rounds"] == 3


def test_a_wrong_forward_is_seen(bakeoff, folder):
    """The same model one position late: fast and finite, and far from the reference."""
    script, _ = bakeoff
    right = script.eager(folder, kind="fp32")

    class Late:
        def extend(self, tokens, past, *, last):
            return np.roll(right.extend(tokens, past, last=last), 1, axis=-1)

    reference = np.load(folder / "reference.npy")
    found = script.guard(script.Held(Late(), TEXT, CONTEXT), reference, CALLS, chunk=8)
    assert found["kl_mean"] > 10 * script.KL_ALLOWED
    with pytest.raises(ValueError, match="finite ones were expected"):
        script.compare(np.full_like(reference, np.nan), reference)


def test_what_cannot_be_imported_has_no_figures(bakeoff, folder, monkeypatch):
    script, _ = bakeoff
    gone = script.Variant(lambda folder: None, libraries=("no_such_engine",))
    with pytest.raises(ModuleNotFoundError, match="no_such_engine"):
        script._answer("build", gone, folder, [])

    class Refuses:
        def __init__(self, name, folder): ...
        def ask(self, word):
            raise ValueError("ModuleNotFoundError: No module named 'no_such_engine'")

        def end(self): ...

    monkeypatch.setattr(script, "VARIANTS", {"gone": gone})
    monkeypatch.setattr(script, "Worker", Refuses)
    found = script.measure(["gone"], folder, rounds=1)
    assert found == {"gone": {"not_measured": "ModuleNotFoundError: No module named 'no_such_engine'"}}
    assert "not measured" in script.line("gone", found["gone"])


def test_names_are_chosen_by_how_they_begin(bakeoff):
    script, _ = bakeoff
    assert script.chosen("native; llama") == ["native, int8", "native, bf16", "llama.cpp, Q4_1"]
    assert script.chosen(None) == list(script.VARIANTS)
    with pytest.raises(SystemExit, match="no variant is called"):
        script.chosen("nativ3")
