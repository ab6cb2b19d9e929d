"""FreeDave: exactly static decoding's answers, never more calls; drafts, branches and lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from likely.decoding.diffusion import (
    ConfidenceThreshold,
    FreeDave,
    HashPredictor,
    Prophet,
    diffusion_generate,
    longest_agreement,
)
from likely.decoding.diffusion.freedave import DraftLength
from likely.decoding.diffusion.proposal import CONFIDENCES
from likely.errors import CapabilityError

MASK = 9


def settings(rng):
    """Lengths, blocks and tokens a step that fit."""
    block = int(rng.integers(1, 13))
    blocks = int(rng.integers(1, 24 // block + 1))
    each = int(rng.integers(1, 4))
    return {"length": block * blocks, "block_length": block, "steps": blocks * -(-block // each)}


def same(one, other):
    return (one.ids == other.ids).all() and (one.order == other.order).all() and (one.steps == other.steps).all()


def test_a_thousand_toys_are_decoded_as_without_drafts():
    """1,000 prompts, each a toy of its own, over lengths, blocks, tokens a step, K, proposals, and keyed noise."""
    rng, toys, before, after = np.random.default_rng(0), 0, 0, 0
    for trial in range(50):
        how = settings(rng)
        how |= {"proposal": CONFIDENCES[trial % 5], "temperature": 0.7 * (trial % 4 == 3), "seed": trial}
        toy = HashPredictor(8, seed=trial, sensitivity=(0.1, 0.4, 1.0)[trial % 3], scale=8.0)
        prompts = rng.integers(0, 7, (20, 4)).tolist()
        static = diffusion_generate(toy, prompts, **how)
        k = int(rng.integers(1, how["length"] + 1))
        fast = diffusion_generate(toy, prompts, accelerator=FreeDave(k, across_blocks=trial % 2 == 1), **how)
        assert same(fast, static), (trial, how, k)
        assert (fast.row_calls <= static.row_calls).all() and fast.forward_calls <= static.forward_calls
        toys, before, after = toys + 20, before + static.row_calls.sum(), after + fast.row_calls.sum()
    assert toys == 1000 and after < 0.85 * before


def test_one_draft_is_static_decoding_and_more_take_fewer_calls_on_average():
    toy, calls = HashPredictor(8, sensitivity=0.2), []
    prompts = [[n % 7, n // 7] for n in range(49)]
    static = diffusion_generate(toy, prompts, length=16)
    for k in (1, 2, 4, 8, 16):
        fast = diffusion_generate(toy, prompts, length=16, accelerator=FreeDave(k))
        assert same(fast, static)
        calls.append(fast.row_calls.sum())
    assert calls[0] == static.row_calls.sum() == 49 * 16
    assert calls == sorted(calls, reverse=True) and calls[-1] < calls[1] < calls[0]


@pytest.mark.parametrize(("length", "block", "k"), [(16, 16, 4), (12, 4, 3), (12, 12, 5), (9, 3, 8), (8, 8, 1)])
def test_a_predictor_that_ignores_the_canvas_has_all_drafts_accepted(length, block, k):
    """A block's first call predicts it; each further one is of K drafts, and the draft that fills the block needs none.

    Of m positions, K a round: the last round needs no call where one draft is left for it, so 1 + ceil((m - 1) / K).
    """
    toy = HashPredictor(6, sensitivity=0.0)
    static = diffusion_generate(toy, [1], length=length, block_length=block)
    inside = diffusion_generate(toy, [1], length=length, block_length=block, accelerator=FreeDave(k))
    across = diffusion_generate(
        toy, [1], length=length, block_length=block, accelerator=FreeDave(k, across_blocks=True)
    )
    assert same(inside, static) and same(across, static)
    assert inside.forward_calls == length // block * (1 + -(-(block - 1) // k))
    assert across.forward_calls == 1 + -(-(length - 1) // k)


class Contrary:
    """Never the token that it said of the state before: every further draft is wrong."""

    mask_id, vocab_size = 3, 4

    def logits(self, ids):
        found = np.zeros((*ids.shape, 4), np.float32)
        committed = (ids != 3).sum(axis=1) % 3
        found[np.arange(len(ids)), :, committed] = 5.0
        return found


def test_a_predictor_that_contradicts_itself_accepts_one_step_a_call():
    static = diffusion_generate(Contrary(), [0], length=8)
    fast = diffusion_generate(Contrary(), [0], length=8, accelerator=FreeDave(4))
    assert same(fast, static) and fast.forward_calls == 8 and fast.accepted == 0
    assert fast.proposed == 3 * 5 + 2 + 1 and fast.branch_calls == 1 + 4 * 4 + 3 + 2 + 1


def slow_agreement(drafts, targets, rule):
    at = 0
    while True:
        later = [
            j
            for j in range(at + 1, len(drafts))
            if at < len(targets)
            and all(d == t or (rule == "subset" and d == MASK) for d, t in zip(drafts[j], targets[at], strict=True))
        ]
        if not later:
            return at
        at = max(later)


@pytest.mark.parametrize("rule", ["exact", "subset"])
def test_longest_agreement_is_the_plain_loop(rule):
    rng, found = np.random.default_rng(4), set()
    for _ in range(400):
        k, length = int(rng.integers(1, 7)), int(rng.integers(1, 4))
        drafts = rng.choice([0, MASK], (k, length))
        targets = rng.choice([0, MASK], (k - int(rng.integers(0, 2)) or 1, length))
        if len(targets) > k:
            continue
        at = longest_agreement(drafts, targets, rule, mask_id=MASK)
        assert at == slow_agreement(drafts.tolist(), targets.tolist(), rule)
        found.add(at)
    assert len(found) >= 4


def test_longest_agreement_refuses_other_shapes():
    with pytest.raises(ValueError, match="expected drafts"):
        longest_agreement(np.zeros((3, 2)), np.zeros((1, 2)), "exact", mask_id=MASK)
    with pytest.raises(ValueError, match='did you mean "subset"'):
        longest_agreement(np.zeros((3, 2)), np.zeros((3, 2)), "subsets", mask_id=MASK)


@pytest.mark.parametrize("policy", ["prefix", "dual"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_with_kept_states_the_answers_are_those_of_the_same_policy(policy, temperature):
    toy = HashPredictor(7, sensitivity=0.3)
    prompts = [[n] for n in range(6)]
    how = {"length": 12, "block_length": 4, "cache": policy, "temperature": temperature}
    static = diffusion_generate(toy, prompts, **how)
    assert not static.exact
    batch = diffusion_generate(toy, prompts, accelerator=FreeDave(3), **how)
    tree = diffusion_generate(toy, prompts, accelerator=FreeDave(3, "tree"), **how)
    assert same(batch, static) and same(tree, static) and batch.forward_calls == tree.forward_calls
    assert batch.row_calls.sum() < static.row_calls.sum() == 72
    plain = diffusion_generate(toy, prompts, length=12, block_length=4, temperature=temperature)
    assert (plain.ids != static.ids).any()  # kept states are an approximation here, and it shows


def test_a_block_causal_model_keeps_states_exactly():
    toy = HashPredictor(7, sensitivity=0.5, block=(1, 4))
    prompts = [[n] for n in range(6)]
    plain = diffusion_generate(toy, prompts, length=12, block_length=4)
    for accelerator in (None, FreeDave(3), FreeDave(3, "tree")):
        kept = diffusion_generate(
            toy, prompts, length=12, block_length=4, cache="block_causal", accelerator=accelerator
        )  # fmt: skip
        assert same(kept, plain) and kept.exact


def test_shifted_logits_with_kept_states():
    class Shifted(HashPredictor):
        shift_logits = True

    how = {"length": 8, "block_length": 4, "cache": "prefix"}
    static = diffusion_generate(Shifted(7, sensitivity=0.3), [[1], [2]], **how)
    assert same(diffusion_generate(Shifted(7, sensitivity=0.3), [[1], [2]], accelerator=FreeDave(4), **how), static)


def test_more_drafts_than_positions_are_as_many_as_positions():
    toy = HashPredictor(7, sensitivity=0.2)
    static = diffusion_generate(toy, [1], length=9)
    most = diffusion_generate(toy, [1], length=9, accelerator=FreeDave(9))
    far_more = diffusion_generate(toy, [1], length=9, accelerator=FreeDave(10**12))  # no canvas is made for them
    assert same(far_more, static) and far_more.branch_calls == most.branch_calls


def test_a_threshold_with_drafts_takes_fewer_calls_and_commits_all():
    toy = HashPredictor(8, sensitivity=0.15, scale=10.0)
    prompts = [[n] for n in range(7)]
    plain = diffusion_generate(toy, prompts, length=16, schedule=ConfidenceThreshold(0.9))
    fast = diffusion_generate(toy, prompts, length=16, schedule=ConfidenceThreshold(0.9), accelerator=FreeDave(4))
    assert fast.row_calls.sum() < plain.row_calls.sum() and (fast.answers != 7).all()


def test_schedules_other_than_linear_and_endings_and_pins():
    toy = HashPredictor(6, sensitivity=0.3)
    prompts = [[n, n] for n in range(5)]
    for schedule, k in itertools.product(("cosine", "ancestral"), (2, 5)):
        how = {
            "length": 12, "block_length": 6, "steps": 8, "schedule": schedule, "end_id": 2, "end_policy": "last",
            "pinned": {3: 1, 7: 2}, "position_temperature": 0.5,
        }  # fmt: skip
        static = diffusion_generate(toy, prompts, **how)
        assert same(diffusion_generate(toy, prompts, accelerator=FreeDave(k), **how), static)
        assert same(diffusion_generate(toy, prompts, accelerator=FreeDave(k, across_blocks=True), **how), static)


@pytest.mark.parametrize("commit", ["all", "block"])
def test_prophet_stops_where_it_would_without_drafts(commit):
    toy = HashPredictor(8, sensitivity=0.4, scale=9.0)
    prompts = [[n, m] for n in range(6) for m in range(4)]
    stop = Prophet(((0.5, 1.4), (1.0, 1.2)), commit=commit)
    how = {"length": 12, "block_length": 4, "stop": stop}
    static = diffusion_generate(toy, prompts, **how)
    fast = diffusion_generate(toy, prompts, accelerator=FreeDave(4), **how)
    assert same(fast, static) and (fast.stopped_at == static.stopped_at).all()
    assert (static.stopped_at > 0).sum() > 0 and len(set(static.stopped_at.tolist())) > 2
    assert fast.row_calls.sum() < static.row_calls.sum()


def test_the_number_of_drafts_follows_cost_and_acceptance():
    def chosen(per_canvas, accepted):
        policy = DraftLength()
        for n in range(40):
            branches = 2 + n % 5
            policy.observe(branches, 0.01 + per_canvas * branches, [(4, accepted)])
        assert policy.cost is not None
        np.testing.assert_allclose([policy.cost.token_s, policy.cost.constant_s], [per_canvas, 0.01], rtol=1e-6)
        return policy.choose(1)

    assert chosen(1e-6, 4) == 16  # further canvases cost nothing: as many as are allowed
    assert chosen(1.0, 1) == 1  # a canvas costs all: none
    assert chosen(1e-6, 0) < chosen(1e-6, 4) and chosen(1e-3, 1) <= chosen(1e-4, 4)


def test_calls_that_cost_their_canvases_alone_have_no_constant():
    for seed in range(30):  # in some, seconds - seconds / canvases * canvases is below 0
        rng = np.random.default_rng(seed)
        policy = DraftLength()
        for branches in rng.integers(1, 13, 6):
            policy.observe(int(branches), 9e-5 * branches**1.2 * rng.uniform(0.99, 1.01), [])
        assert policy.cost is not None and policy.cost.constant_s >= 0


def test_auto_is_lossless_whatever_it_chooses():
    toy = HashPredictor(8, sensitivity=0.2)
    static = diffusion_generate(toy, [[1], [2], [3]], length=16)
    accelerator = FreeDave("auto")
    for _ in range(3):
        assert same(diffusion_generate(toy, [[1], [2], [3]], length=16, accelerator=accelerator), static)
    assert accelerator.policy is not None and accelerator.policy.cost is not None


def test_what_cannot_be_exact_is_refused_by_name():
    toy = HashPredictor(6)
    with pytest.raises(ValueError, match='without a cache depend on the window: use branch_mode="batch"'):
        diffusion_generate(toy, [1], length=4, accelerator=FreeDave(2, "tree"))
    with pytest.raises(CapabilityError, match="does not look at later blocks"):
        diffusion_generate(toy, [1], length=4, cache="block_causal")
    with pytest.raises(ValueError, match="states of one block"):
        diffusion_generate(toy, [1], length=4, cache="dual", accelerator=FreeDave(2, across_blocks=True))
    with pytest.raises(ValueError, match="prompts of one length"):
        diffusion_generate(toy, [[1], [1, 2]], length=4, cache="dual")
    for wrong in (0, -1, "many", 2.5, float("nan")):
        with pytest.raises(ValueError, match='draft_steps must be a whole number >= 1 or "auto"'):
            FreeDave(wrong)
    with pytest.raises(ValueError, match="chooses draft_steps"):
        FreeDave(3, policy=DraftLength())
    with pytest.raises(ValueError, match='did you mean "batch"'):
        FreeDave(2, "bach")
