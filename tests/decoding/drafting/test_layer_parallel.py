"""Drafts with attentions side by side: the text stays the target's, and what a draft computed is never kept."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from helpers_for_loops import run, toy_loop
from statistics_of_draws import chi_square_p
from tiny_torch import GROUPED, VOCAB, module_of, transformers

from likely.decoding.drafting.layers import SelfSpeculation, layer_parallel
from likely.decoding.drafting.layers.plans import (
    default_groups,
    groups_of,
    load_plan,
    parse_groups,
    plan_path,
    save_plan,
    saved_plan,
)
from likely.decoding.drafting.model.drafter import DraftModel, draft_model
from likely.decoding.drafting.protocol import DraftDistribution, SamplingContext, UsesTarget
from likely.decoding.drafting.table import DrafterContext, make_drafter
from likely.decoding.drafting.trees.shapes import Chain, ConstantBranching
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, processed_logprobs
from likely.errors import CapabilityError, DataError
from likely.runtimes.protocol import LayerPlan, Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.torch.runtime import TorchRuntime
from likely.runtimes.toy import ToyRuntime

LAYERS = 4
GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=0.8, top_p=0.9, seed=3)
TOGETHER = LayerPlan(parallel=((0, 1, 2, 3),))  # bad on purpose: random layers have nothing in common


def small(vocab=VOCAB, seed=0, **settings):
    config = transformers.LlamaConfig(**{**GROUPED, "vocab_size": vocab, "num_hidden_layers": LAYERS})
    return TorchRuntime(module_of(config, seed=seed, std=0.2), **{"tokens_held": 2048, "revision": "four"} | settings)


@pytest.fixture(scope="module")
def runtime():
    return small()


def loop_on(runtime):
    return Loop(runtime, token_bytes=lambda token: b"", end_ids=frozenset())


def rows(runtime, tokens, plan=None, kept=()):
    """Logits after each token, computed under the plan behind exactly kept ones."""
    sequence = runtime.open()
    if len(kept):
        runtime.forward([Work(sequence, np.asarray(kept), want=Want.NONE)])
    parents = np.arange(-1, len(tokens) - 1)
    found = runtime.forward([Work(sequence, np.asarray(tokens), parents, want=Want.ALL, layers=plan)])[0].logits
    runtime.close(sequence)
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("sampling", [GREEDY, WARM, replace(WARM, repetition_penalty=1.4)])
@pytest.mark.parametrize("shape", [Chain(4, confidence=0.0), ConstantBranching((2, 2, 1))])
@pytest.mark.parametrize("own", [True, False])
def test_tokens_are_those_of_plain_decoding(runtime, sampling, shape, own):
    requests = [
        Request((4, 7, 9), sampling, max_tokens=12, draft_budget=8, top_logprobs=2),
        Request((11,), sampling, max_tokens=7, samples=3, draft_budget=6),
    ]
    plain = run(loop_on(runtime), *requests)
    draft = small()
    source = SelfSpeculation(TOGETHER, shape=shape) if own else DraftModel(draft, plan=TOGETHER, shape=shape)
    drafted = run(loop_on(runtime), *(replace(r, drafter=source) for r in requests))
    assert [[f.tokens for f in g] for g in drafted] == [[f.tokens for f in g] for g in plain]
    assert sum(f.proposed for g in drafted for f in g) > 0
    for each in (runtime, draft):
        assert not each._open and each.free_tokens() == 2048


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [Chain(4), ConstantBranching((2, 1, 1, 1))])
@pytest.mark.parametrize("accepted", range(5))
def test_the_draft_cache_is_exact_after_every_accepted_count(runtime, shape, accepted):
    """As after a fresh prefill, although each round's drafts were computed with stale inputs."""
    text, more = [4, 7, 9, 1], [30, 31, 5]
    drafter = DraftModel(runtime, plan=TOGETHER, shape=shape).begin(text, SamplingContext(GREEDY))
    for _ in range(2):
        draft = drafter.propose(8)
        path = draft_path(draft)[:accepted]
        assert len(path) == accepted
        text += [*path, 2]
        drafter.observe([*path, 2])
    exact = log_softmax(rows(runtime, text)[-1])
    first = drafter.propose(8)
    assert first.tokens[0] == exact.argmax()  # the first token of a draft is the exact model's
    held = drafter._sequence
    assert held.length == len(text)
    runtime.commit([(held, [])])
    fork = runtime.fork(held)
    found = runtime.forward([Work(fork, np.array(more), want=Want.ALL)])[0].logits
    expected = rows(runtime, more, kept=text)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    stale = rows(runtime, [*text, *more], TOGETHER)[len(text) :]
    assert np.abs(stale - expected).max() > 0.1  # keys that were not computed anew would be seen
    runtime.close(fork)
    drafter.end()
    assert not runtime._open


def draft_path(draft):
    """Tokens of the first child of each node from the root down."""
    tokens, node = [], -1
    while len(below := np.flatnonzero(draft.parents == node)):
        node = int(below[0])
        tokens.append(int(draft.tokens[node]))
    return tokens


def test_the_targets_own_numbers_are_bit_equal_after_its_drafts(runtime):
    tokens, found = np.random.default_rng(0).integers(0, VOCAB, 16), []
    for source in (None, SelfSpeculation(TOGETHER, shape=Chain(3))):
        sequence, logits = runtime.open(), []
        drafter = source.begin(tokens[:8].tolist(), SamplingContext(GREEDY)) if source else None
        runtime.forward([Work(sequence, tokens[:7], want=Want.NONE)])
        for i in range(7, 15):
            if drafter:
                assert isinstance(drafter, UsesTarget)
                drafter.attach(runtime, sequence, int(tokens[i]))
                assert len(drafter.propose(3)) == 3
                assert (sequence.length, sequence.pending, sequence.plan) == (i, 0, None)
                drafter.observe([int(tokens[i + 1])])
            logits.append(runtime.forward([Work(sequence, tokens[i : i + 1])])[0].logits)
        found.append(np.concatenate(logits))
        runtime.close(sequence)
    np.testing.assert_array_equal(found[1], found[0])


# --- the law ----------------------------------------------------------------------------------------------------------


def test_q_is_the_distribution_that_was_drawn_from(runtime):
    """The first token's is exact (a draft model) or the plan's (the target itself), all others are the plan's."""
    context = SamplingContext(WARM, verification="rejection")
    text, plan = [5, 6, 7], LayerPlan(parallel=((1, 2, 3),))
    of_model = DraftModel(runtime, plan=plan, shape=Chain(3)).begin(text, context)
    made = of_model.propose(3)
    made.check(budget=3, vocab_size=VOCAB, name="")
    assert made.distribution is DraftDistribution.IID
    drawn = made.tokens[:2].tolist()
    expected = [rows(runtime, text)[-1], *rows(runtime, drawn, plan, kept=text)]
    for node, row in zip((-1, 0, 1), expected, strict=True):
        np.testing.assert_allclose(made.log_q[node], processed_logprobs(row, WARM), atol=1e-3)
    of_model.end()
    sequence = runtime.open()
    runtime.forward([Work(sequence, np.array(text[:-1]), want=Want.NONE)])
    own = SelfSpeculation(plan, shape=Chain(3)).begin(text, context)
    own.attach(runtime, sequence, text[-1])
    made = own.propose(3)
    expected = rows(runtime, [text[-1], *made.tokens[:2]], plan, kept=text[:-1])
    for node, row in zip((-1, 0, 1), expected, strict=True):
        np.testing.assert_allclose(made.log_q[node], processed_logprobs(row, WARM), atol=1e-3)
    runtime.close(sequence)


TOKENS, START = 3, 2


@pytest.fixture(scope="module")
def four_tokens():
    """A model of four tokens, and the law of its texts of three."""
    runtime = small(vocab=4, seed=5, tokens_held=20_000)
    law = dict.fromkeys(itertools.product(range(4), repeat=TOKENS), 0.0)
    for text in law:
        found = log_softmax(rows(runtime, [START, *text])[:-1])
        law[text] = float(np.exp(found[np.arange(TOKENS), list(text)].sum()))
    return runtime, law


class Lying:
    """A source whose drafts claim that they were drawn from the exact model, which they were not."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def propose_many(self, drafters, budgets):
        kept = [(d.runtime, d._held, d._root) for d in drafters]
        plan, self._source.plan = self._source.plan, LayerPlan(parallel=((0,),))
        drafts = []
        for draft, (runtime, held, root) in zip(self._honest(drafters, budgets, plan), kept, strict=True):
            own = np.array([root, *draft.tokens[:-1]])
            row = runtime.forward([Work(held, own, np.arange(-1, len(own) - 1), want=Want.ALL)])[0].logits
            runtime.commit([(held, [])])
            claimed = {node: log_softmax(row[i]) for i, node in enumerate(draft.log_q)}
            drafts.append(replace(draft, log_q=claimed))
        return drafts

    def _honest(self, drafters, budgets, plan):
        self._source.plan = plan
        return self._source.propose_many(drafters, budgets)


def draws(runtime, source, n):
    request = Request(
        (START,), Sampling(seed=11), max_tokens=TOKENS, samples=256, drafter=source, draft_budget=2,
        verification="rejection",
    )  # fmt: skip
    found = []
    for seed in range(n // 256):
        [group] = run(loop_on(runtime), replace(request, sampling=Sampling(seed=seed)))
        found += [tuple(each.tokens) for each in group]
    return found


@pytest.mark.parametrize(
    "shape", [Chain(2), pytest.param(ConstantBranching((2, 1)), marks=pytest.mark.slow)], ids=["chain", "tree"]
)
def test_sampled_texts_follow_the_target_under_a_bad_plan(four_tokens, shape):
    runtime, law = four_tokens
    found = draws(runtime, SelfSpeculation(TOGETHER, shape=shape), 768)
    assert chi_square_p(found, law) > 1e-6


def test_a_claimed_q_that_was_not_drawn_from_is_seen(four_tokens):
    """The control of the test above: with the exact model's q in place of the plan's the law is another one."""
    runtime, law = four_tokens
    found = draws(runtime, Lying(SelfSpeculation(TOGETHER, shape=Chain(2))), 512)
    assert chi_square_p(found, law) < 1e-6


# --- by name ----------------------------------------------------------------------------------------------------------


def test_arguments_become_groups():
    assert parse_groups("4", 30) == groups_of(4, 30)
    assert parse_groups("8-11, 12-13", 30) == LayerPlan(parallel=((8, 9, 10, 11), (12, 13)))
    assert groups_of(4, 11).parallel == ((1, 2, 3, 4), (5, 6, 7, 8), (9,))
    assert default_groups(30).parallel == (*((n, n + 1) for n in range(8, 28, 2)), (28,))
    assert groups_of(4, 2).parallel == () and groups_of(4, 30).attention_depth(30) == 9


@pytest.mark.parametrize(
    ("argument", "message"),
    [("1", r"groups of 2\.\.30"), ("31", r"groups of 2\.\.30"), ("8", None), ("3-30", "0 to 29"), ("5-3", "0 to 29"),
     ("3,4", "not understood"), ("attn:1-2", "not understood"), ("x", "not understood"),
     ("1-3,3-4", "two groups")],
)  # fmt: skip
def test_wrong_arguments_are_refused(argument, message):
    if message is None:
        assert parse_groups(argument, 30).parallel[0] == tuple(range(1, 9))
        return
    with pytest.raises(ValueError, match=message):
        parse_groups(argument, 30)


def test_a_plan_is_kept_per_model(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    assert layer_parallel("", runtime).plan == default_groups(LAYERS)
    plan = LayerPlan(parallel=((1, 2, 3),))
    save_plan(plan, "four", plan_path("layer_parallel", "four"), agreement={"overlap": 0.5})
    assert layer_parallel("", runtime).plan == plan and saved_plan("skip", "four", LAYERS) is None
    file = save_plan(plan, "four", tmp_path / "plan.json")
    assert layer_parallel(str(file), runtime).plan == plan
    with pytest.raises(DataError, match="a plan for the model four, not for five"):
        load_plan(file, "five", LAYERS)
    for text in ("{", "[]", json.dumps({**json.loads(file.read_text()), "parallel": [[1, 9]]}), ""):
        file.write_text(text)
        with pytest.raises(DataError, match="no layer plan"):
            load_plan(file, "four", LAYERS)


def test_by_name_with_a_draft_model_and_a_shape(runtime):
    tokenizer = PieceTokenizer([bytes([33 + i]) for i in range(VOCAB)])
    asked = []

    def load(name, kind=None):
        asked.append((name, kind))
        return runtime, tokenizer

    context = DrafterContext(runtime, tokenizer, load=load)
    own = make_drafter("layer_parallel:0-1,2-3,shape=chain-3", context)
    assert isinstance(own, SelfSpeculation) and own.shape == Chain(3) and own.plan.parallel == ((0, 1), (2, 3))
    second = make_drafter("layer_parallel:2,model=tiny", context)
    assert isinstance(second, DraftModel) and second.plan == groups_of(2, LAYERS) and asked == [("tiny", "torch")]
    with pytest.raises(ValueError, match="layer_parallel,model=NAME"):
        make_drafter("layer_parallel", DrafterContext(None, None))


def test_what_cannot_draft_so_is_refused(runtime):
    toy = ToyRuntime.random(6, seed=0)
    with pytest.raises(CapabilityError, match="leave out layers: torch, native"):
        layer_parallel("2", toy)
    with pytest.raises(CapabilityError, match="leave out layers"):
        DraftModel(toy, plan=TOGETHER)
    with pytest.raises(CapabilityError, match="leave out layers"):
        run(toy_loop(toy), Request((1,), drafter=SelfSpeculation(TOGETHER), draft_budget=2, max_tokens=5))
    ours, theirs = (PieceTokenizer([bytes([first + i]) for i in range(VOCAB)]) for first in (33, 97))
    with pytest.raises(CapabilityError, match="must use the target's tokenizer"):
        draft_model(runtime, ours, theirs, name="x", plan=TOGETHER)
