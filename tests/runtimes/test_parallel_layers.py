"""Attentions of consecutive layers side by side in the torch runtime, against the formula written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_torch import GROUPED, VOCAB, module_of, tiny_module, transformers

from likely.errors import CapabilityError, ModelError
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.torch.runtime import TorchRuntime

LAYERS = 5
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 24)
PLANS = [((1, 2),), ((0, 1), (3, 4)), ((0, 1, 2, 3, 4),), ((0,), (1, 2, 3), (4,))]


def module():
    return module_of(transformers.LlamaConfig(**{**GROUPED, "num_hidden_layers": LAYERS}), std=0.2)


@pytest.fixture(scope="module")
def runtime():
    return TorchRuntime(module(), tokens_held=512, tokens_per_call=16, revision="five")


def pending(runtime, sequence, tokens, plan, parents=None):
    parents = np.arange(sequence.pending - 1, sequence.pending + len(tokens) - 1) if parents is None else parents
    work = Work(sequence, np.asarray(tokens), np.asarray(parents), want=Want.ALL, layers=plan)
    return runtime.forward([work])[0].logits


def rows(runtime, plan, tokens=TOKENS):
    sequence = runtime.open()
    found = pending(runtime, sequence, tokens, plan)
    runtime.close(sequence)
    return found


def by_hand(groups, tokens=TOKENS):
    """x = h; for j in group: x += a_j; x += mlp_j(norm'_j(x)), with a_j = attention_j(norm_j(h))."""
    model = module().model
    in_groups = {n for group in groups for n in group}
    with torch.no_grad():
        h = model.embed_tokens(torch.tensor(tokens)[None])
        positions = torch.arange(len(tokens))[None]
        angles = model.rotary_emb(h, position_ids=positions)
        mask = torch.full((len(tokens),) * 2, -torch.inf).triu(1)[None, None]
        for group in sorted([*groups, *((n,) for n in range(LAYERS) if n not in in_groups)]):
            layers = [model.layers[n] for n in group]
            added = [
                layer.self_attn(layer.input_layernorm(h), position_embeddings=angles, attention_mask=mask)[0]
                for layer in layers
            ]
            for layer, a in zip(layers, added, strict=True):
                h = h + a
                h = h + layer.mlp(layer.post_attention_layernorm(h))
        return module().lm_head(model.norm(h))[0].numpy()


@pytest.mark.parametrize("groups", PLANS)
def test_a_text_equals_the_formula(runtime, groups):
    np.testing.assert_allclose(rows(runtime, LayerPlan(parallel=groups)), by_hand(groups), atol=5e-5)
    assert groups == () or np.abs(by_hand(groups) - by_hand(())).max() > 0.1


def test_groups_of_one_are_the_whole_model_to_the_bit(runtime):
    exact = rows(runtime, None)
    for groups in (tuple((n,) for n in range(LAYERS)), ((2,),), ()):
        np.testing.assert_array_equal(rows(runtime, LayerPlan(parallel=groups)), exact)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "gpt2"])
def test_layers_whose_attention_adds_nothing_may_stand_together(name):
    """Where the later attentions of a group add nothing, their stale input does not matter; elsewhere it does."""
    whole, silent = tiny_module(name), tiny_module(name)
    later = (silent.transformer.h if name == "gpt2" else silent.model.layers)[1:]
    for layer in later:
        attention = layer.attn.c_proj if name == "gpt2" else layer.self_attn.o_proj
        for parameter in attention.parameters():
            parameter.data.zero_()
    for module, changes in ((silent, False), (whole, True)):
        runtime = TorchRuntime(module, tokens_held=256, tokens_per_call=16, revision=name)
        assert runtime.capabilities.parallel_layers
        plan = LayerPlan(parallel=(tuple(range(runtime.capabilities.layers)),))
        found = np.abs(rows(runtime, plan) - rows(runtime, None)).max()
        assert (found > 1e-2) == changes


@pytest.mark.parametrize("groups", PLANS[1:3])
def test_threads_give_the_same_bits(runtime, groups):
    threaded = TorchRuntime(module(), tokens_held=512, tokens_per_call=16, revision="five", attention_threads=3)
    plan = LayerPlan(parallel=groups)
    np.testing.assert_array_equal(rows(threaded, plan), rows(runtime, plan))
    assert threaded.layer_windows == runtime.layer_windows == [None] * LAYERS
    sequence = threaded.open()
    kept = threaded.forward([Work(sequence, TOKENS, want=Want.ALL)])[0].logits  # keys went to their own layers
    np.testing.assert_allclose(kept, rows(runtime, None), atol=1e-5)
    threaded.close(sequence)


def test_pieces_of_a_tree_and_mixed_plans_are_the_same(runtime):
    plan = LayerPlan(parallel=((1, 2, 3),))
    expected = rows(runtime, plan)
    sequence = runtime.open()
    found = [pending(runtime, sequence, TOKENS[i : i + 6], plan) for i in range(0, len(TOKENS), 6)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)
    other = runtime.open()
    branch = pending(runtime, other, [*TOKENS[:3], 1, 2], plan, parents=[-1, 0, 1, 0, 3])
    np.testing.assert_allclose(branch[:3], expected[:3], atol=1e-4)
    np.testing.assert_allclose(branch[3:], rows(runtime, plan, [TOKENS[0], 1, 2])[1:], atol=1e-4)
    for each in (sequence, other):
        runtime.commit([(each, [])])
    work = [
        Work(each, TOKENS[:4], np.arange(-1, 3), want=Want.ALL, layers=layers)
        for each, layers in ((sequence, plan), (other, LayerPlan(frozenset({0}), parallel=((1, 2),))))
    ]
    mixed = runtime.forward(work)
    np.testing.assert_allclose(mixed[0].logits, expected[:4], atol=1e-4)
    np.testing.assert_allclose(
        mixed[1].logits, rows(runtime, LayerPlan(frozenset({0}), parallel=((1, 2),)), TOKENS[:4]), atol=1e-4
    )
    for each in (sequence, other):
        runtime.close(each)
    assert not any("forward" in m.__dict__ for m in runtime.module.modules())


def test_an_error_in_a_group_leaves_the_module_as_it_was(runtime):
    def fail(*_):
        raise RuntimeError("stop")

    hook = runtime.module.model.layers[2].mlp.register_forward_pre_hook(fail)
    sequence = runtime.open()
    with pytest.raises(RuntimeError, match="stop"):
        pending(runtime, sequence, TOKENS[:3], LayerPlan(parallel=((1, 2, 3),)))
    hook.remove()
    runtime.close(sequence)
    assert not any("forward" in m.__dict__ for m in runtime.module.modules())


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"parallel": ((1, 3),)}, r"consecutive layers, got \[1, 3\]"),
        ({"parallel": ((2, 1),)}, "consecutive"),
        ({"parallel": ((),)}, "consecutive"),
        ({"parallel": ((0, 1), (1, 2))}, "layer 1 .* also in two groups"),
        ({"parallel": ((0, 1),), "skip_mlp": frozenset({1})}, "layer 1 .* also left out"),
    ],
)
def test_wrong_groups_are_refused(plan, message):
    with pytest.raises(ValueError, match=message):
        LayerPlan(**plan)


def test_what_cannot_run_so_is_refused(runtime):
    with pytest.raises(ValueError, match=r"layer 5 is outside 0\.\.4"):
        rows(runtime, LayerPlan(parallel=((4, 5),)))
    both = TorchRuntime(tiny_module("gpt_neox"), tokens_held=64, revision="attention and MLP from one input")
    assert both.capabilities.layers == 2 and not both.capabilities.parallel_layers
    with pytest.raises(CapabilityError, match="can: torch, for models whose MLP reads"):
        rows(both, LayerPlan(parallel=((0, 1),)), TOKENS[:3])


def test_the_depth_counts_attentions_in_sequence():
    assert LayerPlan().attention_depth(8) == 8
    assert LayerPlan(parallel=((1, 2, 3, 4), (5, 6))).attention_depth(8) == 4
    assert LayerPlan(frozenset({0}), parallel=((1, 2),)).attention_depth(8) == 6


def test_threads_are_counted():
    with pytest.raises(ModelError, match="attention_threads must be >= 1, got 0"):
        TorchRuntime(tiny_module("llama"), attention_threads=0)
