"""Steps of state-space models in C++ against the same in torch: every setting, several sequences, token after token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likely.errors import CapabilityError
from likely.runtimes.protocol import Want, Work
from likely.runtimes.recurrent import compiled_step
from likely.runtimes.recurrent.compiled_step import MOST_ROWS, CompiledStep
from likely.runtimes.recurrent.runtime import RecurrentRuntime
from likely.sequence import SequenceConfig, SequenceLM
from likely.sequence.ops.scan import selective_scans_by

pytestmark = pytest.mark.usefixtures("native_library")
VOCAB = 19
MODELS = {  # sizes that no vector divides, and each way to gate
    "mamba2": {"mixers": {"d_state": 20, "head_dim": 8, "groups": 3, "dt_limit": (0.02, 0.5)}},
    "mamba2, norm first": {
        "mixers": {"d_state": 16, "head_dim": 24, "norm": "norm_first", "d_conv": 3, "conv_bias": False, "bias": True},
        "mlp_size": 37, "mlp_bias": True,
    },
    "mamba2, no norm": {
        "mixers": {"d_state": 5, "head_dim": 4, "norm": "none", "d_conv": 2}, "embedding_multiplier": 2.5,
    },
    "mamba": {"mixers": {"d_state": 16}},
    "mamba, odd": {"mixers": {"d_state": 21, "rank": 7, "expand": 3, "bias": True}, "mlp_size": 16, "padded_ids": 2},
}  # fmt: skip


def model_of(name, layers=None, **more):
    how = {**MODELS[name], **more}
    mixer = name.split(",")[0]
    layers = layers or [mixer] * 3
    torch.manual_seed(len(name))
    mixers = {mixer: how.pop("mixers"), **({"attention": {"heads": 2}} if "attention" in layers else {})}
    model = SequenceLM(SequenceConfig(vocab_size=VOCAB, hidden_size=24, layers=layers, mixers=mixers, **how))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def ids_of(*shape, seed=0):
    return torch.randint(VOCAB - 2, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found, wanted):
    assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (3, 1), (MOST_ROWS, 1), (1, 5), (2, 3)])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_tokens_are_read_as_torch_reads_them(name, rows, tokens):
    model = model_of(name)
    step = CompiledStep.of(model)
    assert step is not None
    before = model.backbone(ids_of(rows, 6), return_state=True).state
    kept = [{n: t.clone() for n, t in layer.tensors.items()} for layer in before.layers]
    first = before
    for ids in ids_of(4, rows, tokens, seed=1):
        hidden, after = step(ids, before)
        wanted = model.backbone(ids, state=before, states_at=range(tokens))
        assert_close(hidden, wanted.last_hidden_state)
        assert_same_states(after, wanted.states)
        before = after[-1]
    for held, layer in zip(kept, first.layers, strict=True):
        assert all(torch.equal(layer[n], value) for n, value in held.items()), "a state was changed in place"


def assert_same_states(found, wanted):
    for own, theirs in zip(found, wanted, strict=True):
        for layer, other in zip(own.layers, theirs.layers, strict=True):
            assert layer.tensors.keys() == other.tensors.keys()
            for key in other.tensors:
                assert_close(layer[key], other[key])


@torch.inference_mode()
def test_blocks_of_other_layers_run_in_torch_between_those_that_are_compiled():
    model = model_of("mamba2", ["mamba2", "mamba2", "attention", "mamba2", "retnet"], mlp_size=20)
    step = CompiledStep.of(model)
    state = model.backbone(ids_of(2, 5), return_state=True).state
    hidden, after = step(ids_of(2, 3, seed=2), state)
    wanted = model.backbone(ids_of(2, 3, seed=2), state=state, states_at=range(3))
    assert_close(hidden, wanted.last_hidden_state)
    assert_same_states(after, wanted.states)
    assert CompiledStep.of(model_of("mamba2", ["attention", "retnet"])) is None


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("name", ["mamba", "mamba, odd"])
@torch.inference_mode()
def test_a_scan_is_that_of_torch(name, length):
    """Padding included, which has a step of 0."""
    model = model_of(name)
    scan = CompiledStep.of(model).selective_scan
    before, ids = model.backbone(ids_of(3, 4), return_state=True).state, ids_of(3, length)
    mask = torch.arange(length) < torch.tensor([length, max(1, length // 2), 1])[:, None]
    wanted = model.backbone(ids, mask, state=before, return_state=True)
    used = []
    with selective_scans_by(lambda *given: used.append(1) or scan(*given)):
        found = model.backbone(ids, mask, state=before, return_state=True)
    assert len(used) == 3  # blocks
    assert_close(found.last_hidden_state[mask], wanted.last_hidden_state[mask])
    for own, theirs in zip(found.state.layers, wanted.state.layers, strict=True):
        assert_close(own["h"], theirs["h"])


def test_a_scan_with_gradients_or_documents_is_left_to_torch():
    model = model_of("mamba")

    def never(*given):
        raise AssertionError

    with selective_scans_by(never):
        assert model(ids_of(1, 5), labels=ids_of(1, 5)).loss.requires_grad
        with torch.no_grad():
            model(ids_of(1, 5), seq_idx=torch.tensor([[0, 0, 1, 1, 1]]))
            with pytest.raises(AssertionError):
                model(ids_of(1, 5))


@pytest.mark.parametrize("name", ["mamba2", "mamba"])
def test_a_runtime_gives_the_same_rows_with_and_without_it(name):
    texts = [ids_of(n, seed=n).numpy() for n in (4, 9, 1)]
    rows = {}
    for compiled in (True, False):
        runtime = RecurrentRuntime(model_of(name))
        runtime.compiled = compiled
        sequences = [runtime.open() for _ in texts]
        runtime.forward([Work(s, ids, want=Want.NONE) for s, ids in zip(sequences, texts, strict=True)])
        found = [runtime.forward([Work(s, np.array([t])) for s in sequences]) for t in range(5)]
        rows[compiled] = np.stack([[output.logits[0] for output in outputs] for outputs in found])
        assert (vars(runtime).get("_compiled_step") is not None) == compiled
    np.testing.assert_allclose(rows[True], rows[False], atol=1e-4)


def last_row(runtime):
    return runtime.forward([Work(runtime.open(), np.array([3]))])[0].logits


def test_new_weights_take_a_refresh():
    runtime = RecurrentRuntime(model_of("mamba2"))
    before = last_row(runtime)
    with torch.no_grad():
        runtime.module.backbone.layers[0].mixer.A_log.sub_(3.0)
        runtime.module.backbone.layers[0].mixer.conv1d.weight.mul_(2.0)
    runtime.refresh()
    assert np.abs(last_row(runtime) - before).max() > 1e-3
    found, runtime.compiled = last_row(runtime), False
    np.testing.assert_allclose(found, last_row(runtime), atol=1e-4)


def test_without_a_compiler_torch_computes(monkeypatch):
    def none():
        raise CapabilityError("no C++ compiler")

    monkeypatch.setattr(compiled_step, "library", none)
    assert CompiledStep.of(model_of("mamba2")) is None


def test_a_step_that_computes_otherwise_is_not_used(monkeypatch):
    model = model_of("mamba")
    step = CompiledStep(model, compiled_step.library())
    assert step.difference_from_torch(model) < 1e-5
    with torch.no_grad():
        model.backbone.layers[1].mixer.A_log.sub_(1.0)  # of which the step has a copy
    assert step.difference_from_torch(model) > compiled_step.TOLERANCE
    monkeypatch.setattr(CompiledStep, "difference_from_torch", lambda self, model: 0.5)
    with pytest.warns(UserWarning, match=r"differ from torch by 5.0e-01: torch is used"):
        assert CompiledStep.of(model) is None


def test_a_step_of_nan_is_not_used(monkeypatch):
    model = model_of("mamba")
    step = CompiledStep(model, compiled_step.library())
    right = CompiledStep.__call__

    def wrong(self, ids, state):
        hidden, states = right(self, ids, state)
        states[-1].layers[-1][next(iter(states[-1].layers[-1].tensors))].fill_(float("nan"))
        return hidden, states

    monkeypatch.setattr(CompiledStep, "__call__", wrong)
    assert not step.difference_from_torch(model) <= compiled_step.TOLERANCE


def test_a_scan_of_more_states_than_are_compiled_is_left_to_torch():
    torch.manual_seed(0)
    mixers = {"mamba2": MODELS["mamba2"]["mixers"], "mamba": {"d_state": compiled_step.MOST_STATE + 1}}
    layers = ["mamba2", "mamba"]
    model = SequenceLM(SequenceConfig(vocab_size=VOCAB, hidden_size=24, layers=layers, mixers=mixers)).eval()
    step = CompiledStep.of(model)
    assert step is not None and not compiled_step.can_compile(model.backbone.layers[1])
    ids = ids_of(2, 9)
    with torch.inference_mode():
        wanted = model.backbone(ids).last_hidden_state
        with selective_scans_by(step.selective_scan):
            assert_close(model.backbone(ids).last_hidden_state, wanted)


def test_matrices_of_other_kinds_are_left_to_torch():
    model = model_of("mamba2")
    model.backbone.layers[0].mixer.in_proj = torch.nn.Sequential(model.backbone.layers[0].mixer.in_proj)
    assert not compiled_step.can_compile(model.backbone.layers[0])
    assert compiled_step.can_compile(model.backbone.layers[1])
    assert not compiled_step.can_compile(model.double().backbone.layers[1])
