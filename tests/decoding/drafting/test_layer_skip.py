"""The target drafts for itself with layers left out: exact whatever is left out, and its own state untouched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers_for_loops import run, toy_loop
from tiny_torch import VOCAB, idle_layers, tiny_module

from likely.decoding.drafting.layers import SelfSpeculation, layer_skip
from likely.decoding.drafting.layers.plans import default_skipped, parse_skipped, plan_path, save_plan, saved_plan
from likely.decoding.drafting.protocol import DraftDistribution, SamplingContext, UsesTarget
from likely.decoding.drafting.trees.shapes import Chain
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, processed_logprobs
from likely.errors import CapabilityError
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.torch.runtime import TorchRuntime
from likely.runtimes.toy import ToyRuntime

GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def runtime():
    return idle_layers()


def loop_on(runtime):
    return Loop(runtime, token_bytes=lambda token: b"", end_ids=frozenset())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("sampling", [GREEDY, WARM, replace(WARM, repetition_penalty=1.4)])
@pytest.mark.parametrize("argument", ["2", "2-3", "attn:1-4,mlp:2", ""])
def test_tokens_are_those_of_plain_decoding(runtime, sampling, argument):
    requests = [
        Request((4, 7, 9), sampling, max_tokens=14, draft_budget=5),
        Request((11,), sampling, max_tokens=8, samples=3, draft_budget=3),
    ]
    plain = run(loop_on(runtime), *requests)
    source = SelfSpeculation(layer_skip(argument, runtime).plan, shape=Chain(5, confidence=0.0))
    drafted = run(loop_on(runtime), *(replace(r, drafter=source) for r in requests))
    assert [[f.tokens for f in g] for g in drafted] == [[f.tokens for f in g] for g in plain]
    assert sum(f.proposed for g in drafted for f in g) > 0
    assert not runtime._open and runtime.free_tokens() == 2048


def test_layers_that_do_nothing_can_be_left_out(runtime):
    source = SelfSpeculation(LayerPlan(frozenset({2, 3}), frozenset({2, 3})), shape=Chain(4, 0.0))
    request = Request((4, 7, 9), WARM, max_tokens=18, drafter=source, draft_budget=4)
    [[finished]] = run(loop_on(runtime), request)
    assert finished.rounds == [0, 4, 4, 4, 1]


def test_later_logits_are_bit_equal():
    """After a draft the sequence is what it was: same length, nothing pending, and the same numbers ever after."""
    runtime, tokens = idle_layers(idle=()), np.random.default_rng(0).integers(0, VOCAB, 20)
    rows = []
    for source in (None, SelfSpeculation(parse_skipped("2", 6)), SelfSpeculation(parse_skipped("attn:1-4", 6))):
        sequence, found = runtime.open(), []
        drafter = source.begin(tokens[:10].tolist(), SamplingContext(GREEDY)) if source else None
        runtime.forward([Work(sequence, tokens[:9], want=Want.NONE)])
        for i in range(9, 19):
            if drafter:
                assert isinstance(drafter, UsesTarget)
                drafter.attach(runtime, sequence, int(tokens[i]))
                drafter.propose(1 + i % 4)
                assert (sequence.length, sequence.pending, sequence.plan) == (i, 0, None)
                drafter.observe([int(tokens[i + 1])])
            found.append(runtime.forward([Work(sequence, tokens[i : i + 1])])[0].logits)
        rows.append(np.concatenate(found))
        runtime.close(sequence)
    for found in rows[1:]:
        np.testing.assert_array_equal(found, rows[0])


def test_q_is_the_shortened_model_after_the_requests_settings(runtime):
    plan, sampling = parse_skipped("3", 6), WARM
    source = SelfSpeculation(plan, shape=Chain(3, 0.0))
    drafter = source.begin([5, 6, 7], SamplingContext(sampling, verification="rejection"))
    sequence = runtime.open()
    runtime.forward([Work(sequence, np.array([5, 6]), want=Want.NONE)])
    drafter.attach(runtime, sequence, 7)
    made = drafter.propose(3)
    made.check(budget=3, vocab_size=VOCAB, name="")
    assert made.distribution is DraftDistribution.IID
    text = [7, *made.tokens[:2].tolist()]
    parents = np.arange(-1, 2)
    rows = runtime.forward([Work(sequence, np.array(text), parents, want=Want.ALL, layers=plan)])[0].logits
    for node, row in zip((-1, 0, 1), rows, strict=True):
        np.testing.assert_allclose(made.log_q[node], processed_logprobs(row, sampling), atol=1e-4)
    runtime.close(sequence)


def test_all_texts_share_the_calls(runtime):
    calls = []
    source = SelfSpeculation(parse_skipped("2-3", 6), shape=Chain(3, 0.0))
    drafters, sequences = [], []
    for i in range(4):
        sequences.append(runtime.open())
        runtime.forward([Work(sequences[-1], np.array([i, 1]), want=Want.NONE)])
        drafters.append(source.begin([i, 1, 2], SamplingContext(GREEDY)))
        drafters[-1].attach(runtime, sequences[-1], 2)
    hook = runtime.module.register_forward_pre_hook(
        lambda module, given, named: calls.append(named["input_ids"].numel()), with_kwargs=True
    )
    drafts = source.propose_many(drafters, [3] * 4)
    hook.remove()
    assert calls == [4, 4, 4] and all(len(d) == 3 for d in drafts)
    assert all(not s.pending for s in sequences)
    assert all(len(d) == 0 for d in source.propose_many(drafters, [3] * 4))  # not attached anew
    for s in sequences:
        runtime.close(s)


def test_no_room_is_no_guess():
    runtime = idle_layers()
    runtime = TorchRuntime(runtime.module, tokens_held=70, revision="tight")
    source = SelfSpeculation(parse_skipped("2-3", 6), shape=Chain(6, 0.0))
    requests = [Request((i, 2, 3), WARM, max_tokens=20, drafter=source, draft_budget=6) for i in range(3)]
    found = run(loop_on(runtime), *requests)
    plain = run(loop_on(runtime), *(replace(r, drafter=None) for r in requests))
    assert [g[0].tokens for g in found] == [g[0].tokens for g in plain]
    assert not runtime._open and runtime.free_tokens() == 70


# --- the chain that stops where it is unsure --------------------------------------------------------------------------


def grown(shape, rows, draw, budget=9):
    growth, levels = shape.grow(draw, 0, budget), 0
    try:
        next(growth)
        while True:
            levels += 1
            growth.send(np.log(np.array(rows[levels - 1], np.float32))[None])
    except StopIteration as stop:
        return stop.value, levels


@pytest.mark.parametrize(
    "draw",
    [SamplingContext(GREEDY), SamplingContext(Sampling(seed=1)), SamplingContext(Sampling(seed=1), 0, "rejection")],
)
def test_a_draft_ends_where_it_is_unsure(draw):
    rows = [[0.9, 0.1], [0.3, 0.7], [0.55, 0.45], [0.9, 0.1]]
    draft, calls = grown(Chain(9, 0.6), rows, draw)
    assert len(draft) == 2 and calls == 3
    draft.check(budget=9, vocab_size=2, name="")
    draft, calls = grown(Chain(9, 0.95), rows, draw)
    assert len(draft) == 0 and calls == 1
    assert len(grown(Chain(3, 0.0), rows, draw)[0]) == 3
    assert len(grown(Chain(9, 0.6), rows, draw, budget=1)[0]) == 1


def test_a_greedy_chain_holds_the_best_tokens():
    assert grown(Chain(confidence=0.6), [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]], SamplingContext(GREEDY))[
        0
    ].tokens.tolist() == [0, 1]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="length must be >= 1"):
        Chain(0)
    with pytest.raises(ValueError, match="confidence must lie in"):
        Chain(3, 1.5)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_arguments_become_plans():
    assert parse_skipped("4", 30) == LayerPlan.exit_after(4, 30)
    assert LayerPlan.exit_after(4, 6).skip_attention == {4, 5} == LayerPlan.exit_after(4, 6).skip_mlp
    assert parse_skipped("3,5-7", 30) == LayerPlan(frozenset({3, 5, 6, 7}), frozenset({3, 5, 6, 7}))
    assert parse_skipped("4-4", 30) == LayerPlan(frozenset({4}), frozenset({4}))
    assert parse_skipped("attn:3, mlp:4-5,7", 30) == LayerPlan(frozenset({3, 7}), frozenset({4, 5, 7}))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("0", r"1\.\.29"), ("30", r"1\.\.29"), ("28-30", "0 to 29"), ("9-3", "0 to 29"), ("attn:", "not understood"),
        ("x", "not understood"), ("3,,4", "not understood"), ("ffn:3", "not understood"), ("-3", "not understood"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        parse_skipped(argument, 30)


def test_a_runtime_without_layers_is_refused():
    toy = ToyRuntime.random(5, seed=0)
    with pytest.raises(CapabilityError, match="leave out layers: torch, native"):
        layer_skip("2", toy)
    with pytest.raises(CapabilityError, match="leave out layers: torch, native"):
        request = Request((1,), drafter=SelfSpeculation(LayerPlan(frozenset({0}))), draft_budget=2, max_tokens=5)
        run(toy_loop(toy), request)


def test_a_plan_is_kept_per_model(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    assert saved_plan("skip", "idle", 6) is None
    assert layer_skip("", runtime).plan == default_skipped(6)
    plan = LayerPlan(frozenset({1}), frozenset({2, 3}))
    save_plan(plan, "idle", plan_path("skip", "idle"))
    assert saved_plan("skip", "idle", 6) == plan == layer_skip("", runtime).plan
    assert saved_plan("skip", "idle", 3) is None and saved_plan("skip", "other", 6) is None
    plan_path("skip", "idle").write_text("{")
    assert saved_plan("skip", "idle", 6) is None


def test_a_model_taken_apart_by_hand_gives_the_same_drafts():
    """Early exit after one of two layers: the chain is greedy decoding of the module cut to one layer."""
    runtime = TorchRuntime(tiny_module("llama"), tokens_held=256, revision="x")
    cut = tiny_module("llama")
    cut.model.layers = cut.model.layers[:1]
    cut.config.num_hidden_layers = 1
    text = [3, 9, 4, 17, 5]
    sequence = runtime.open()
    drafter = SelfSpeculation(parse_skipped("1", 2), shape=Chain(6, 0.0)).begin(text, SamplingContext(GREEDY))
    runtime.forward([Work(sequence, np.array(text[:-1]), want=Want.NONE)])
    drafter.attach(runtime, sequence, text[-1])
    found = drafter.propose(6).tokens.tolist()
    expected = []
    for _ in range(6):
        rows = cut(input_ids=torch.tensor([[*text, *expected]])).logits
        expected.append(int(rows[0, -1].argmax()))
    assert found == expected
    runtime.close(sequence)
