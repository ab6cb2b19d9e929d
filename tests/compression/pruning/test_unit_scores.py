"""Scores of units: sums over their weights, of what the output loses to first order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from tiny_torch import module_of, tiny_module
from window_sets import random_windows

from likely.compression.architecture import DecoderMap
from likely.compression.pruning.scores import UnitScores, magnitude, saliency
from likely.compression.pruning.sizes import BlockSizes, by_unit, unit_parameters
from likely.errors import ModelError


def max_logit(module, data):
    """The functional, written out."""
    ids = torch.from_numpy(data.input_ids)
    return torch.stack([module(input_ids=row[None]).logits[0].max(dim=0).values.mean() for row in ids]).mean()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_the_sum_over_units_is_the_sum_over_all_their_weights(name):
    module, data = tiny_module(name), random_windows()
    scores = saliency(module, data)
    max_logit(module, data).backward()
    by_hand = sum((p * p.grad).abs().sum().item() for p in unit_parameters(DecoderMap.of(module)))
    assert scores.groups.sum() + scores.neurons.sum() == pytest.approx(by_hand, rel=1e-4)


def test_each_unit_is_the_sum_over_its_own_rows_and_columns():
    module, data = tiny_module("llama"), random_windows()
    scores = saliency(module, data)
    max_logit(module, data).backward()
    layer = module.model.layers[1]

    def effect(linear):
        return (linear.weight * linear.weight.grad).abs().detach()

    mlp, heads = layer.mlp, layer.self_attn
    neuron = effect(mlp.gate_proj)[7].sum() + effect(mlp.up_proj)[7].sum() + effect(mlp.down_proj)[:, 7].sum()
    assert scores.neurons[1, 7] == pytest.approx(float(neuron), rel=1e-4)
    # the second of two groups: heads 2 and 3 of queries, head 1 of keys and values, each 8 wide
    group = effect(heads.q_proj)[16:].sum() + effect(heads.o_proj)[:, 16:].sum()
    group += effect(heads.k_proj)[8:].sum() + effect(heads.v_proj)[8:].sum()
    assert scores.groups[1, 1] == pytest.approx(float(group), rel=1e-4)


def test_of_a_linear_map_the_score_is_the_size_of_each_summand():
    """f = Σ W x: the gradient of a weight is its input, so that S = Σ |w x|."""
    linear, x = torch.nn.Linear(3, 2, bias=False), torch.tensor([1.0, -2.0, 0.5])
    linear(x).sum().backward()
    assert torch.allclose((linear.weight * linear.weight.grad).abs(), (linear.weight * x).abs())


@pytest.mark.parametrize("objective", ["max_logit", "loss"])
def test_micro_batches_do_not_change_scores(objective):
    module, data = tiny_module("llama"), random_windows()
    one, three = (saliency(module, data, objective=objective, micro_batch=n) for n in (1, 3))
    assert np.allclose(one.groups, three.groups, rtol=1e-4) and np.allclose(one.neurons, three.neurons, rtol=1e-4)


def test_the_module_is_left_as_it_was():
    module = tiny_module("llama")
    module.lm_head.weight.requires_grad_(False)
    kept = module.model.norm.weight.grad = torch.ones_like(module.model.norm.weight)
    module.train()
    saliency(module, random_windows())
    assert module.training and module.model.norm.weight.grad is kept
    assert not module.lm_head.weight.requires_grad and module.model.norm.weight.requires_grad
    assert module.model.layers[0].mlp.up_proj.weight.grad is None


def test_scaling_up_and_down_moves_magnitudes_and_not_the_first_order_effect():
    """up · c and down / c are the same function: w ∂f/∂w of each stays, |w| does not."""
    module, data = tiny_module("llama"), random_windows()
    before, size_before = saliency(module, data), magnitude(module)
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[3] *= 8
        module.model.layers[0].mlp.down_proj.weight[:, 3] /= 8
    after, size_after = saliency(module, data), magnitude(module)
    assert np.allclose(before.neurons, after.neurons, rtol=1e-3)
    assert size_after.neurons[0, 3] > 1.5 * size_before.neurons[0, 3]


def test_permuting_neurons_permutes_their_scores():
    module, data = tiny_module("llama"), random_windows()
    before, order = saliency(module, data), torch.randperm(64, generator=torch.Generator().manual_seed(1))
    mlp = module.model.layers[0].mlp
    with torch.no_grad():
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.copy_(linear.weight[order])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order])
    after = saliency(module, data)
    assert np.allclose(after.neurons[0], before.neurons[0, order.numpy()], rtol=1e-3)
    assert np.allclose(after.neurons[1], before.neurons[1], rtol=1e-3)


def test_a_unit_of_zeros_scores_zero():
    module = tiny_module("llama")
    with torch.no_grad():
        for linear in (module.model.layers[0].mlp.gate_proj, module.model.layers[0].mlp.up_proj):
            linear.weight[5] = 0
        module.model.layers[0].mlp.down_proj.weight[:, 5] = 0
    scores = saliency(module, random_windows())
    assert scores.neurons[0, 5] == 0 and (np.delete(scores.neurons[0], 5) > 0).all()


def test_the_first_order_effect_of_the_divergence_to_itself_would_be_nothing():
    """Why KL is no objective."""
    module, data = tiny_module("llama"), random_windows(1)
    ids = torch.from_numpy(data.input_ids)
    with torch.no_grad():
        p = module(input_ids=ids).logits.log_softmax(-1)
    q = module(input_ids=ids).logits.log_softmax(-1)
    (p.exp() * (p - q)).sum(-1).mean().backward()
    weight = module.model.layers[0].mlp.up_proj.weight
    assert float((weight * weight.grad).abs().sum()) < 1e-4 * float(saliency(module, data).neurons[0].sum())


def test_biases_belong_to_their_units():
    module = tiny_module("qwen2")
    sizes = BlockSizes.of(DecoderMap.of(module))
    assert sizes.group_weights == 2 * 16 * 32 + 2 * 8 * 32 + 16 + 2 * 8
    groups, _ = by_unit(DecoderMap.of(module), torch.ones_like, sizes)
    assert (groups == sizes.group_weights).all()


def test_a_quantised_matrix_is_an_error():
    module = tiny_module("llama")
    layer = module.model.layers[0].mlp

    class Codes(torch.nn.Linear):
        pass

    layer.up_proj = Codes(32, 64, bias=False)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj\.weight is quantised \(Codes\): prune first"):
        magnitude(module)


def test_bad_settings_and_scores_are_errors():
    module = tiny_module("llama")
    with pytest.raises(ValueError, match='unknown objective "los"; did you mean "loss"'):
        saliency(module, random_windows(), objective="los")
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        saliency(module, random_windows(), micro_batch=0)
    scores = magnitude(module)
    with pytest.raises(ValueError, match="not one for each"):
        UnitScores(scores.groups[:1], scores.neurons, scores.sizes, scores.model)
    with pytest.raises(ValueError, match="negative or not a finite"):
        UnitScores(scores.groups, scores.neurons * np.nan, scores.sizes, scores.model)


def test_a_model_that_is_no_decoder_known_here_is_an_error():
    with pytest.raises(ModelError, match="parts of GPT2LMHeadModel are not known"):
        magnitude(tiny_module("gpt2"))


def test_gradients_that_are_not_finite_are_an_error():
    module = module_of(transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
                       num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2))  # fmt: skip
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match="prune in float32"):
        saliency(module, random_windows())
