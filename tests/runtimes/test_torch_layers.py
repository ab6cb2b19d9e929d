"""Layers left out of a call of the torch runtime, against the module taken apart by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_torch import CONFIGS, RECOMPUTED, VOCAB, tiny_module

from likely.errors import CapabilityError
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.torch.layers import LayerParts
from likely.runtimes.torch.runtime import TorchRuntime
from likely.runtimes.toy import ToyRuntime

CACHED = [name for name in CONFIGS if name not in RECOMPUTED]


@pytest.fixture(scope="module")
def runtimes():
    made = {}

    def get(name):
        if name not in made:
            made[name] = TorchRuntime(tiny_module(name), tokens_held=512, tokens_per_call=16, revision=name)
        return made[name]

    return get


@pytest.fixture(params=CACHED)
def runtime(request, runtimes):
    return runtimes(request.param)


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, n)


def pending(runtime, sequence, tokens, plan, parents=None):
    parents = np.arange(sequence.pending - 1, sequence.pending + len(tokens) - 1) if parents is None else parents
    work = Work(sequence, np.asarray(tokens), np.asarray(parents), want=Want.ALL, layers=plan)
    return runtime.forward([work])[0].logits


def silenced(name, plan):
    """Logits of the module with the output weights of the left-out parts set to zero: it adds nothing by itself."""
    module = tiny_module(name)
    parts = LayerParts.of(module)
    for modules, skipped in ((parts._attention, plan.skip_attention), (parts._mlp, plan.skip_mlp)):
        for n in skipped:
            modules[n].register_forward_hook(zeroed)
    return lambda tokens: module(input_ids=torch.tensor([list(map(int, tokens))])).logits[0].detach().numpy()


def zeroed(part, inputs, out):
    return (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0


PLANS = [
    LayerPlan.exit_after(1, 2),
    LayerPlan(frozenset({0}), frozenset({1})),
    LayerPlan(frozenset({1}), frozenset()),
    LayerPlan(frozenset({0, 1}), frozenset({0, 1})),
    LayerPlan(),
]


@pytest.mark.parametrize("plan", PLANS)
def test_a_whole_text_equals_the_module_with_silenced_parts(runtime, plan):
    sequence, tokens = runtime.open(), tokens_of(40)
    rows = pending(runtime, sequence, tokens, plan)
    expected = silenced(runtime.revision, plan)(tokens)
    np.testing.assert_allclose(rows, expected, atol=2e-5 * max(1.0, float(expected.std())))
    runtime.close(sequence)


def test_early_exit_is_the_head_on_a_middle_hidden_state(runtimes):
    runtime, tokens = runtimes("llama"), tokens_of(12)
    with torch.no_grad():
        out = runtime.module(input_ids=torch.tensor([tokens.tolist()]), output_hidden_states=True)
        rows = runtime.module.lm_head(runtime.module.model.norm(out.hidden_states[1]))[0].numpy()
    sequence = runtime.open()
    np.testing.assert_allclose(pending(runtime, sequence, tokens, LayerPlan.exit_after(1, 2)), rows, atol=1e-4)
    runtime.close(sequence)


def test_kept_tokens_are_seen_with_their_exact_keys(runtimes):
    """Early exit of the draft's nodes: the first layer's keys of the kept text are those of the whole model."""
    runtime, tokens = runtimes("llama"), tokens_of(30)
    plan = LayerPlan.exit_after(1, 2)
    alone = runtime.open()
    expected = pending(runtime, alone, tokens, plan)[20:]
    sequence = runtime.open()
    runtime.forward([Work(sequence, tokens[:20], want=Want.NONE)])
    first = pending(runtime, sequence, tokens[20:24], plan)
    rest = pending(runtime, sequence, tokens[24:], plan)  # a later call extends the pending chain
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, atol=1e-4)
    for s in (alone, sequence):
        runtime.close(s)


def test_later_logits_are_bit_equal_after_the_nodes_are_dropped(runtime):
    """The target's state is untouched by drafts made under a plan, whatever the plan."""
    tokens, drafts, more = tokens_of(25), tokens_of(9, seed=1), tokens_of(6, seed=2)
    rows = []
    for plan in (None, PLANS[0], PLANS[1]):
        sequence = runtime.open()
        runtime.forward([Work(sequence, tokens, want=Want.NONE)])
        if plan is not None:
            for start in range(0, 9, 3):
                pending(runtime, sequence, drafts[start : start + 3], plan)
            runtime.commit([(sequence, [])])
        assert (sequence.length, sequence.pending, sequence.plan) == (25, 0, None)
        tree = pending(runtime, sequence, more[:4], None, parents=[-1, 0, 0, 1])
        runtime.commit([(sequence, [0, 1])])
        rows.append([tree, runtime.forward([Work(sequence, more[4:], want=Want.ALL)])[0].logits])
        runtime.close(sequence)
    for after in rows[1:]:
        for found, expected in zip(after, rows[0], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_one_call_may_mix_plans(runtimes):
    runtime, tokens = runtimes("gemma3"), tokens_of(10)
    plans = [None, LayerPlan.exit_after(2, 3), LayerPlan(frozenset({1}), frozenset()), None]
    sequences = [runtime.open() for _ in plans]
    parents = np.arange(-1, 9)
    work = [Work(s, tokens, parents, want=Want.ALL, layers=p) for s, p in zip(sequences, plans, strict=True)]
    together = [output.logits for output in runtime.forward(work)]
    for sequence, plan, found in zip(sequences, plans, together, strict=True):
        runtime.commit([(sequence, [])])
        np.testing.assert_allclose(found, pending(runtime, sequence, tokens, plan), atol=1e-4)
        runtime.close(sequence)
    assert runtime.layer_windows == [8, None, 8]


def test_the_module_is_as_before_after_a_call_and_after_an_error(runtimes):
    runtime = runtimes("qwen3")
    tokens = tokens_of(8)
    before = runtime.plain_logits(tokens)
    sequence = runtime.open()
    pending(runtime, sequence, tokens, PLANS[0])
    runtime.close(sequence)
    parts = runtime._parts
    with pytest.raises(RuntimeError), parts.under(PLANS[3], runtime._call):
        raise RuntimeError
    assert not any("forward" in m.__dict__ for m in runtime.module.modules())
    np.testing.assert_array_equal(runtime.plain_logits(tokens), before)


def test_approximate_nodes_cannot_be_kept_or_mixed(runtimes):
    runtime = runtimes("llama")
    sequence = runtime.open()
    runtime.forward([Work(sequence, tokens_of(4), want=Want.NONE)])
    plan = LayerPlan.exit_after(1, 2)
    with pytest.raises(ValueError, match="cannot be kept"):
        runtime.forward([Work(sequence, tokens_of(2), layers=plan)])
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        pending(runtime, sequence, [1], LayerPlan(frozenset({2})))
    pending(runtime, sequence, [1, 2], plan)
    with pytest.raises(ValueError, match="cannot be kept"):
        runtime.commit([(sequence, [0])])
    with pytest.raises(ValueError, match="another layer plan"):
        pending(runtime, sequence, [3], None)
    with pytest.raises(ValueError, match="another layer plan"):
        pending(runtime, sequence, [3], LayerPlan(frozenset({0})))
    assert (sequence.length, sequence.pending) == (4, 2)
    runtime.commit([(sequence, [])])
    runtime.close(sequence)


def test_runtimes_without_layers_say_so(runtimes):
    for runtime in (ToyRuntime.random(5, seed=0), TorchRuntime(tiny_module("mamba"), tokens_held=64, revision="m")):
        assert runtime.capabilities.layers == 0
        sequence = runtime.open()
        with pytest.raises(CapabilityError, match="torch"):
            runtime.forward([Work(sequence, np.array([1]), np.array([-1]), layers=LayerPlan(frozenset({0})))])
    assert all(runtimes(name).capabilities.layers == len(runtimes(name).layer_windows) for name in CACHED)
