"""Static decoding of diffusion models: equal to a plain loop, each position once, pinned tokens kept, exact laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from slow_diffusion import slow_static
from statistics_of_draws import chi_square_p

from likely.decoding.diffusion import (
    ConfidenceThreshold,
    FreeDave,
    HashPredictor,
    JointPredictor,
    diffusion_generate,
)
from likely.decoding.diffusion.canvas import new_canvas
from likely.decoding.diffusion.predictor import GuidedPredictor
from likely.decoding.diffusion.proposal import CONFIDENCES
from likely.decoding.diffusion.schedule import SCHEDULES, ancestral, commit, cosine, linear, table_of
from likely.errors import CapabilityError


def prompts_of(rng, rows, vocab, length=1):
    return rng.integers(0, vocab - 1, (rows, length)).tolist()


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_equal_to_a_plain_loop(confidence, temperature):
    rng = np.random.default_rng(3)
    for length, block, steps in ((8, 8, 8), (12, 4, 6), (9, 3, 6), (6, 1, 6)):
        toy = HashPredictor(7, seed=length)
        prompts = prompts_of(rng, 3, 7)
        out = diffusion_generate(
            toy, prompts, length=length, block_length=block, steps=steps, proposal=confidence, temperature=temperature
        )
        for prompt, answer, order, calls in zip(prompts, out.answers, out.order, out.row_calls, strict=True):
            slow, slow_order, slow_calls = slow_static(
                toy, prompt, length=length, block_length=block, steps=steps, proposal=confidence,
                temperature=temperature,
            )  # fmt: skip
            assert answer.tolist() == slow and order.tolist() == slow_order and calls == slow_calls == steps


def test_one_token_a_step_commits_each_position_once():
    out = diffusion_generate(HashPredictor(9), [[1], [2], [3]], length=12, block_length=6)
    assert all(sorted(row) == list(range(12)) for row in out.order.tolist())
    assert (out.order[:, :6] < 6).all() and out.forward_calls == 12 and out.branch_calls == 36
    assert (out.answers != 8).all() and (out.ids[:, 0] == [1, 2, 3]).all() and out.exact


def test_blocks_of_one_are_greedy_left_to_right():
    toy = HashPredictor(9, sensitivity=1.0)
    out = diffusion_generate(toy, [4], length=8, block_length=1)
    ids = [4] + [8] * 8
    for i in range(8):
        row = toy.logits(np.array([ids]))[0, i + 1]
        row[8] = -np.inf
        ids[i + 1] = int(row.argmax())
    assert out.ids[0].tolist() == ids and out.order[0].tolist() == list(range(8))


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_a_schedule_commits_all_that_is_masked(schedule):
    for masked, steps in itertools.product(range(1, 65), range(1, 65)):
        counts = schedule(masked, steps)
        assert sum(counts) == masked and min(counts) >= 1 and len(counts) <= steps


def test_counts_of_the_papers():
    assert linear(10, 4) == [3, 3, 2, 2] and linear(2, 4) == [1, 1]
    assert cosine(8, 4) == [1, 2, 2, 3]
    assert ancestral(4, 2) == [1, 3] and ancestral(5, 5)[0] == 1


def test_a_schedule_that_leaves_positions_is_refused():
    with pytest.raises(ValueError, match="commit all of 1"):
        table_of(lambda masked, steps: [], 4, 2)


def test_commit_takes_the_most_confident_and_of_equals_the_left_one():
    ids, tokens = np.full((1, 5), 9), np.arange(5)[None]
    confidence = np.array([[0.5, 0.9, 0.5, -np.inf, 1.0]])
    allowed = np.array([[True, True, True, True, False]])
    for n, expected in ((1, [9, 1, 9, 9, 9]), (2, [0, 1, 9, 9, 9]), (4, [0, 1, 2, 3, 9]), (9, [0, 1, 2, 3, 9])):
        assert commit(ids, tokens, confidence, np.array([n]), allowed)[0].tolist() == expected


def test_threshold_commits_what_is_confident_and_at_least_one():
    toy = HashPredictor(5, scale=12.0)
    prompts = [[0], [1], [2]]
    never = diffusion_generate(toy, prompts, length=8, schedule=ConfidenceThreshold(2.0))
    one = diffusion_generate(toy, prompts, length=8)
    always = diffusion_generate(toy, prompts, length=8, schedule=ConfidenceThreshold(0.0))
    assert (never.order == one.order).all() and (never.ids == one.ids).all()
    assert always.forward_calls == 1 and (always.order == 0).all()
    some = diffusion_generate(toy, prompts, length=8, schedule=ConfidenceThreshold(0.7))
    assert 1 < some.forward_calls < 8
    with pytest.raises(ValueError, match="confidence must be a number, got nan"):
        ConfidenceThreshold(float("nan"))


def test_pinned_tokens_and_prompts_stay():
    pins = [{2: 3, 7: 0}, {}, {0: 1}]
    for schedule in ("linear", ConfidenceThreshold(0.5)):
        out = diffusion_generate(
            HashPredictor(6), [[1], [2, 4], [3, 3, 3]], length=8, block_length=4, pinned=pins, schedule=schedule,
            temperature=1.0,
        )  # fmt: skip
        for row, (pinned, answer) in enumerate(zip(pins, out.answers, strict=True)):
            assert all(answer[i] == token and out.order[row, i] == -1 for i, token in pinned.items())
            assert (out.order[row] == -1).sum() == len(pinned)
        assert out.ids[:, :3].tolist() == [[0, 0, 1], [0, 2, 4], [3, 3, 3]]


def test_a_row_does_not_depend_on_its_batch():
    toy = HashPredictor(6, prompt_length=1)
    prompts = [[1], [2, 4], [3, 3, 3], [1], [0, 0]]
    how = {"length": 8, "block_length": 4, "temperature": 0.8, "seed": 5}
    together = diffusion_generate(toy, prompts, **how)
    for row, prompt in enumerate(prompts):
        alone = diffusion_generate(toy, prompt, **how)
        assert alone.answers[0].tolist() == together.answers[row].tolist()
        assert alone.order[0].tolist() == together.order[row].tolist()
        assert alone.forward_calls == together.row_calls[row]


def test_shifted_logits_are_read_at_the_position_before():
    class Shifted:
        mask_id, vocab_size, shift_logits = 8, 9, True

        def logits(self, ids):
            found = HashPredictor(9).logits(ids)
            return np.concatenate([found[:, 1:], found[:, :1]], axis=1)

    plain = diffusion_generate(HashPredictor(9), [[1], [5]], length=6)
    assert (diffusion_generate(Shifted(), [[1], [5]], length=6).ids == plain.ids).all()


def test_the_mask_is_never_committed():
    class LovesMasks(HashPredictor):
        def logits(self, ids):
            found = super().logits(ids)
            found[..., self.mask_id] = 99.0
            return found

    out = diffusion_generate(LovesMasks(5), [0], length=6, temperature=1.0)
    assert (out.answers != 4).all()


def test_one_step_at_temperature_one_samples_each_position_from_its_conditional():
    """Nothing is seen but masks: positions are independent draws of their marginals."""
    joint = np.random.default_rng(0).dirichlet(np.ones(9)).reshape(3, 3)
    marginals = joint.sum(axis=1), joint.sum(axis=0)
    law = {(a, b): marginals[0][a] * marginals[1][b] for a in range(3) for b in range(3)}
    prompts = [[int(bit) for bit in f"{n:012b}"] for n in range(4000)]
    how = {"length": 2, "steps": 1, "temperature": 1.0, "proposal": "random"}
    out = [diffusion_generate(JointPredictor(joint), prompts, seed=seed, **how) for seed in range(3)]
    assert chi_square_p([tuple(row) for one in out for row in one.answers.tolist()], law) > 1e-6


def test_one_token_a_step_in_random_order_samples_from_the_joint():
    joint = np.random.default_rng(1).dirichlet(np.full(8, 0.4)).reshape(2, 2, 2)
    law = {index: float(joint[index]) for index in np.ndindex(2, 2, 2)}
    prompts = [[int(bit) for bit in f"{n:011b}"] for n in range(2048)]
    how = {"length": 3, "temperature": 1.0, "proposal": "random"}
    out = [diffusion_generate(JointPredictor(joint), prompts, seed=seed, **how) for seed in range(3)]
    draws = [tuple(row) for one in out for row in one.answers.tolist()]
    assert chi_square_p(draws, law) > 1e-6


def test_position_temperature_draws_positions():
    orders = {
        tuple(diffusion_generate(HashPredictor(5), [1], length=3, position_temperature=5.0, seed=s).order[0].tolist())
        for s in range(60)
    }
    assert len(orders) == 6


class Ends(HashPredictor):
    """Says token 0, surely, from position 4 of the canvas on."""

    def logits(self, ids):
        found = super().logits(ids)
        found[:, 4:, 0] = 50.0
        return found


def test_a_block_of_end_tokens_ends_its_row():
    out = diffusion_generate(Ends(6), [[1], [2]], length=12, block_length=3, end_id=0)
    assert (out.answers[:, 3:] == 0).all() and out.forward_calls == 6
    assert (diffusion_generate(Ends(6), [[1], [2]], length=12, block_length=3).ids == out.ids).all()


def test_end_tokens_last_or_never():
    plain = diffusion_generate(Ends(6), [[1]], length=8, end_id=0)
    last = diffusion_generate(Ends(6), [[1]], length=8, end_id=0, end_policy="last")
    ends = last.answers[0] == 0
    assert plain.order[0, :3].min() > plain.order[0, 3:].max() and ends.any()
    assert last.order[0, ends].min() > last.order[0, ~ends].max()
    assert (diffusion_generate(Ends(6), [[1]], length=8, end_id=0, end_policy="forbid").answers != 0).all()


def test_guidance_is_the_formula_in_one_call():
    toy = HashPredictor(6, sensitivity=1.0, prompt_length=2)
    guided = GuidedPredictor(toy, prompt_length=2, weight=1.5)
    ids = np.array([[1, 2, 5, 3], [0, 4, 5, 5]])
    blind = ids.copy()
    blind[:, :2] = 5
    c, u = toy.logits(ids), toy.logits(blind)
    np.testing.assert_allclose(guided.logits(ids), u + 2.5 * (c - u), rtol=1e-5)
    out = diffusion_generate(toy, [[1, 2]], length=4, guidance=1.5)
    assert (out.ids == diffusion_generate(guided, [[1, 2]], length=4).ids).all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"length": 8, "block_length": 3}, "multiple of block_length"),
        ({"length": 8, "block_length": 4, "steps": 7}, "multiple of the number of blocks, 2, got 7"),
        ({"length": 8, "steps": 0}, "multiple of the number of blocks"),
        ({"length": 8, "proposal": "marginal"}, 'did you mean "margin"'),
        ({"length": 8, "schedule": "cosin"}, 'did you mean "cosine"'),
        ({"length": 8, "pinned": {8: 1}}, "pinned position"),
        ({"length": 8, "pinned": {1: 5}}, "not be the mask"),
        ({"length": 8, "pinned": [{}, {}]}, "each of the 1 prompts"),
        ({"length": 8, "end_id": 5}, "end_id"),
        ({"length": 8, "guidance": -1.0}, "guidance"),
        ({"length": 8, "temperature": -1.0}, "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        diffusion_generate(HashPredictor(6), [1], **how)


def test_prompts_that_do_not_fit_are_refused():
    for prompt, said in (([5], "mask id 5"), ([6], "0..5"), ([-1], "0..5")):
        with pytest.raises(ValueError, match=said):
            new_canvas(prompt, length=4, block_length=4, mask_id=5, vocab_size=6)


class Plain:
    mask_id, vocab_size = 5, 6

    def logits(self, ids):
        return HashPredictor(6).logits(ids)


class Wrong(Plain):
    def logits(self, ids):
        return super().logits(ids)[:, :-1]


class Nan(Plain):
    def logits(self, ids):
        return super().logits(ids) * np.nan


@pytest.mark.parametrize("value", [-np.inf, np.inf])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"accelerator": FreeDave(2)}])
def test_a_position_without_a_possible_token_is_refused(value, how):
    """The mask was the arg-max there: decoding never ended."""

    class Hopeless(HashPredictor):
        mask_id = 0

        def logits(self, ids):
            return np.full((*ids.shape, self.vocab_size), value, np.float32)

    with pytest.raises(FloatingPointError, match="largest logit must be finite"):
        diffusion_generate(Hopeless(6), [1], length=3, **how)


def test_three_names_are_a_predictor():
    assert diffusion_generate(Plain(), [1], length=4).ids.shape == (1, 5)
    with pytest.raises(CapabilityError, match='use cache="none"'):
        diffusion_generate(Plain(), [1], length=4, cache="prefix")
    with pytest.raises(ValueError, match="must return logits"):
        diffusion_generate(Wrong(), [1], length=4)
    with pytest.raises(FloatingPointError):
        diffusion_generate(Nan(), [1], length=4)


def test_same_answers_on_every_machine():
    """Frozen trajectories: a change here changes what every seeded call gives."""
    toy, how = HashPredictor(9, sensitivity=0.5, scale=6.0), {"length": 8, "block_length": 4, "seed": 3}
    greedy = diffusion_generate(toy, [[1, 2], [7, 0]], **how)
    drawn = diffusion_generate(toy, [[1, 2], [7, 0]], temperature=0.7, **how)
    assert greedy.answers.tolist() == [[3, 6, 4, 4, 1, 3, 4, 5], [5, 1, 5, 3, 0, 2, 1, 2]]
    assert greedy.order.tolist() == [[0, 2, 3, 1, 7, 6, 5, 4], [2, 1, 0, 3, 4, 7, 6, 5]]
    assert drawn.answers.tolist() == [[3, 6, 6, 4, 3, 0, 0, 2], [5, 1, 5, 3, 0, 2, 1, 2]]
    assert drawn.order.tolist() == [[3, 1, 0, 2, 5, 6, 7, 4], [2, 1, 0, 3, 4, 7, 6, 5]]
