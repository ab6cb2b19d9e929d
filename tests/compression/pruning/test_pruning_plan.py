"""Plans: what stays, applied to a model; masking equals cutting; JSON; recovery; the choice of a calibration set."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from byte_tokenizer import PieceTokenizer
from tiny_torch import module_of, tiny_module
from window_sets import random_windows

from likely.compression.architecture import DecoderMap
from likely.compression.pruning.nirvana import deal, make_plan, select_calibration
from likely.compression.pruning.plan import PruningPlan, with_equal_layers
from likely.compression.pruning.recovery import mean_kl, recover
from likely.compression.pruning.scores import magnitude
from likely.errors import DataError, ModelError
from likely.runtimes.protocol import Want, Work
from likely.runtimes.torch.runtime import TorchRuntime

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 64, (2, 16)))
UNEVEN = (((0,), (0, 1), (1,)), (tuple(range(8)), tuple(range(3, 59)), tuple(range(64))))


def logits(module):
    with torch.no_grad():
        return module(input_ids=IDS).logits


def plan_of(module, groups=None, neurons=None):
    """Different in every layer, so that nothing hides behind symmetry."""
    scores = magnitude(module)
    layers = scores.sizes.layers
    kept_groups, kept_neurons = groups or UNEVEN[0][-layers:], neurons or UNEVEN[1][-layers:]
    if scores.sizes.groups == 1:
        kept_groups = ((0,),) * layers
    parameters = sum(p.numel() for p in module.parameters())
    return PruningPlan(scores.model, parameters, scores.sizes, kept_groups, kept_neurons)


def masked(module, plan):
    """The slow obvious version: rows and columns of what goes become zero."""
    full, sizes = copy.deepcopy(module), plan.sizes
    width = sizes.heads_per_group * sizes.head_dim
    with torch.no_grad():
        for block, groups, neurons in zip(DecoderMap.of(full).blocks, plan.groups, plan.neurons, strict=True):
            for group in set(range(sizes.groups)) - set(groups):
                queries = slice(group * width, (group + 1) * width)
                keys = slice(group * sizes.head_dim, (group + 1) * sizes.head_dim)
                for linear, rows in ((block.q, queries), (block.k, keys), (block.v, keys)):
                    linear.weight[rows] = 0
                    if linear.bias is not None:
                        linear.bias[rows] = 0
                block.o.weight[:, queries] = 0
            gone = sorted(set(range(sizes.neurons)) - set(neurons))
            block.gate.weight[gone] = 0
            block.up.weight[gone] = 0
            block.down.weight[:, gone] = 0
    return full


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_cutting_is_masking(name):
    module = tiny_module(name)
    plan = plan_of(module)
    cut = plan.apply(module)
    assert (logits(cut) - logits(masked(module, plan))).abs().max() < 1e-4
    assert (logits(cut) - logits(module)).abs().max() > 1e-2  # and it is not nothing
    assert plan.parameter_count() == sum(p.numel() for p in cut.parameters()) < plan.parameters
    assert not plan.uniform and 0 < plan.sparsity < 1


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_layers_filled_up_with_zeros_are_the_same_function(name):
    module = tiny_module(name)
    cut = plan_of(module).apply(module)
    equal = with_equal_layers(cut)
    assert equal is not cut and (logits(equal) - logits(cut)).abs().max() < 1e-4
    widths = {block.gate.out_features for block in DecoderMap.of(equal).blocks}
    assert widths == {equal.config.intermediate_size} and with_equal_layers(equal) is equal


def test_a_layer_that_is_filled_keeps_what_it_had_first():
    module = tiny_module("llama")
    cut = plan_of(module, ((1,), (0, 1)), (tuple(range(40)), tuple(range(8)))).apply(module)
    equal = with_equal_layers(cut)
    assert equal.config.intermediate_size == 40 and equal.config.num_key_value_heads == 2
    down = equal.model.layers[1].mlp.down_proj.weight
    assert torch.equal(down[:, :8], module.model.layers[1].mlp.down_proj.weight[:, :8]) and not down[:, 8:].any()


def test_heads_that_do_not_divide_the_hidden_size_are_filled_up():
    """transformers refuses such a Llama when it reads the file."""
    module = module_of(transformers.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=16, head_dim=8,
                       num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=4))  # fmt: skip
    cut = plan_of(module, ((0, 1, 3),), (tuple(range(16)),)).apply(module)
    assert cut.config.num_attention_heads == 6 and magnitude(module).sizes.loadable == (1, 2, 4)
    equal = with_equal_layers(cut)
    assert equal.config.num_attention_heads == 8 and (logits(equal) - logits(cut)).abs().max() < 1e-4
    transformers.LlamaConfig(**equal.config.to_dict())


def test_heads_of_a_qwen2_fill_the_hidden_size():
    """llama.cpp refuses other files."""
    module = tiny_module("qwen2")
    assert magnitude(module).sizes.loadable == (2,)
    equal = with_equal_layers(plan_of(module, ((0,), (1,))).apply(module))
    assert equal.config.num_key_value_heads == 2 and equal.config.head_dim == 8


def test_a_unit_of_zeros_is_pruned_without_a_change():
    module = tiny_module("llama")
    scores = magnitude(module)
    with torch.no_grad():
        for block in DecoderMap.of(module).blocks:
            block.gate.weight[9] = block.up.weight[9] = 0
            block.down.weight[:, 9] = 0
    plan = plan_of(module, ((0, 1),) * 2, (tuple(i for i in range(64) if i != 9),) * 2)
    assert (logits(plan.apply(module)) - logits(module)).abs().max() < 1e-5 and scores.model != plan.model


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_torch_runtime_holds_keys_of_layers_that_differ(name):
    """With the cache, piece by piece, the same numbers as without."""
    module = tiny_module(name)
    cut = plan_of(module).apply(module)
    whole, runtime = logits(cut)[0].numpy(), TorchRuntime(cut)
    text, rows = runtime.open(), []
    for piece in (IDS[0, :5], IDS[0, 5:6], IDS[0, 6:]):
        [output] = runtime.forward([Work(text, piece.numpy(), want=Want.ALL)])
        rows.append(output.logits)
    assert runtime.cached and np.abs(np.concatenate(rows) - whole).max() < 1e-4


def test_applied_in_place_or_to_a_copy():
    module = tiny_module("llama")
    plan, before = plan_of(module), logits(module)
    assert torch.equal(logits(module), before)
    other = tiny_module("llama")
    assert plan.apply(other, inplace=True) is other and torch.equal(logits(other), logits(plan.apply(module)))


def test_a_plan_fits_only_its_own_model():
    plan = plan_of(tiny_module("llama"))
    with pytest.raises(ModelError, match=r"made for other weights .* make a plan of this model"):
        plan.apply(tiny_module("llama", seed=1))
    with pytest.raises(ModelError, match="made for other weights"):
        plan.apply(plan.apply(tiny_module("llama")))


def test_layers_that_differ_are_not_scored():
    module = tiny_module("llama")
    with pytest.raises(ModelError, match="layer 1 has other sizes than layer 0"):
        magnitude(plan_of(module).apply(module))


def test_json_round_trip_gives_the_same_model():
    module = tiny_module("llama")
    plan = plan_of(module)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and torch.equal(logits(again.apply(module)), logits(plan.apply(module)))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(format="other"),
        lambda r: r.pop("groups"),
        lambda r: r.update(more=1),
        lambda r: r.update(groups=[[0], [2]]),
        lambda r: r.update(groups=[[0], []]),
        lambda r: r.update(groups=[[0], [1, 0]]),
        lambda r: r.update(groups=[[0], [True]]),
        lambda r: r.update(groups=[[0], [0, 0]]),
        lambda r: r.update(groups=[[0]]),
        lambda r: r.update(groups=5),
        lambda r: r.update(neurons=[["a"], [1]]),
        lambda r: r.update(parameters="1"),
        lambda r: r["sizes"].update(neurons=-1),
        lambda r: r["sizes"].pop("hidden"),
        lambda r: r.update(model=3),
    ],
)
def test_what_is_no_plan_is_an_error(change):
    record = json.loads(plan_of(tiny_module("llama")).to_json())
    change(record)
    with pytest.raises(DataError, match="plan"):
        PruningPlan.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000])
def test_other_texts_are_an_error(text):
    with pytest.raises(DataError, match="not a pruning plan"):
        PruningPlan.from_json(text)


@pytest.mark.parametrize("target", ["distill", "loss"])
def test_recovery_lowers_its_loss_and_leaves_plain_matrices(target):
    pytest.importorskip("peft")
    module, data = tiny_module("llama"), random_windows(count=8)
    cut = plan_of(module).apply(module)
    names = list(dict(cut.named_parameters()))
    losses = recover(cut, module, data, target=target, steps=30, batch=4, lr=2e-2)
    assert len(losses) == 30 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert list(dict(cut.named_parameters())) == names and not cut.training
    assert {type(m) for m in cut.modules() if "Lora" in type(m).__name__} == set()
    again = plan_of(module).apply(module)
    if target == "distill":
        with torch.no_grad():
            ids = torch.from_numpy(data.input_ids)
            theirs = module(input_ids=ids).logits
            before, after = (mean_kl(theirs, m(input_ids=ids).logits) for m in (again, cut))
        assert after < 0.9 * before  # what was learned is in the weights


def test_recovery_refuses_bad_settings():
    module = tiny_module("llama")
    with pytest.raises(ValueError, match='unknown target "los"'):
        recover(module, module, random_windows(), target="los")
    with pytest.raises(ValueError, match="steps must be > 0, got 0"):
        recover(module, module, random_windows(), steps=0)


def test_mean_kl_is_the_sum_over_the_vocabulary():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    by_hand = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    assert torch.allclose(mean_kl(p, q), by_hand.mean()) and mean_kl(p, p) == 0


def test_the_calibration_set_of_the_lowest_divergence_is_chosen():
    module, tokenizer = tiny_module("llama"), PieceTokenizer([bytes([b]) for b in range(64)])
    *candidates, holdout = deal(random_windows(count=16), 4)
    found = select_calibration(module, tokenizer, candidates, holdout, 0.3, multiple_of=8)
    assert len(found.kl) == len(found.plans) == 3 and found.kl[found.best] == min(found.kl)
    ids = torch.from_numpy(holdout.input_ids)
    with torch.no_grad():
        theirs = module(input_ids=ids).logits[:, :-1]
        for plan, kl in zip(found.plans, found.kl, strict=True):
            ours = plan.apply(module)(input_ids=ids).logits[:, :-1]
            assert kl == pytest.approx(float(mean_kl(theirs, ours)), rel=1e-3)
    with pytest.raises(ValueError, match="holdout shares a window"):
        select_calibration(module, tokenizer, candidates, candidates[1], 0.3)
    with pytest.raises(ValueError, match="at least 2 calibration sets"):
        select_calibration(module, tokenizer, candidates[:1], holdout, 0.3)


def test_windows_are_dealt_out_once_each():
    data = random_windows(count=10)
    parts = deal(data, 3)
    assert [len(p) for p in parts] == [4, 3, 3] and parts[0].name == data.name
    assert {r.tobytes() for p in parts for r in p.input_ids} == {r.tobytes() for r in data.input_ids}
    with pytest.raises(ValueError, match="10 windows cannot be dealt out to 11"):
        deal(data, 11)


def test_a_plan_of_other_counts_is_an_error():
    plan = plan_of(tiny_module("llama"))
    with pytest.raises(DataError, match="layer 1: neurons must be some of 0 to 63"):
        replace(plan, neurons=(plan.neurons[0], (64,)))
    with pytest.raises(DataError, match="of 2 layers lists groups of 1"):
        replace(plan, groups=plan.groups[:1])


def test_the_plan_of_scores_removes_what_was_asked():
    module = tiny_module("llama")
    plan = make_plan(module, magnitude(module), 0.25, multiple_of=8)
    assert plan.uniform and 0.25 <= plan.sparsity < 0.4
    assert make_plan(module, magnitude(module), 0.0).parameter_count() == plan.parameters
