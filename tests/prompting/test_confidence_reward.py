"""Rewards, group advantages and the loss of GRPO: tables, optima, gradients, an independent implementation."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from likely.prompting.hints.reward import INVALID, confidence_reward, group_advantages
from likely.training.grpo import grpo_loss


@pytest.mark.parametrize(
    ("correct", "confidence", "expected"),
    [(1, 1.0, 0.0), (1, 0.5, -0.693147), (0, 0.5, -1.693147), (0, 1.0, math.log(1e-10) - 1), (0, 0.0, -1.0),
     (0, 0.9, -3.302585), (1, 0.0, math.log(1e-10))],
)  # fmt: skip
def test_the_published_rewards(correct, confidence, expected):
    assert confidence_reward(correct, confidence) == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_read_is_worst_and_is_not_looked_at():
    found = confidence_reward([1, 0, 7], [0.5, 0.9, np.nan], [True, True, False])
    assert found[2] == INVALID == pytest.approx(-27.631021) and confidence_reward(0, 1.0) > INVALID
    assert found[:2] == pytest.approx([-0.693147, -3.302585], abs=1e-6)


def test_arrays_broadcast_and_the_penalty_is_paid_once():
    rewards = confidence_reward(np.array([[1], [0]]), np.array([0.2, 0.8]), wrong_penalty=3)
    assert rewards == pytest.approx(np.log([[0.2, 0.8], [0.8, 0.2]]) - np.array([[0], [3]]))


@pytest.mark.parametrize("accuracy", np.arange(1, 10) / 10)
@pytest.mark.parametrize("penalty", [0.0, 1.0, 5.0])
def test_honesty_pays_most(accuracy, penalty):
    grid = np.arange(1, 1000) / 1000
    expected = accuracy * confidence_reward(1, grid) + (1 - accuracy) * confidence_reward(
        0, grid, wrong_penalty=penalty
    )
    assert grid[expected.argmax()] == pytest.approx(accuracy)


def test_errors_name_the_row():
    with pytest.raises(ValueError, match=r"confidence: row 1 must lie in 0..1, got 1\.5"):
        confidence_reward([1, 0], [0.5, 1.5])
    with pytest.raises(ValueError, match="correct: row 0 must be 0 or 1"):
        confidence_reward([2, 0], [0.5, 0.5])
    with pytest.raises(ValueError, match="2 samples or more"):
        group_advantages([[1.0]])
    with pytest.raises(ValueError, match=r"rewards: entry \(1, 0\) must be finite"):
        group_advantages([[1.0, 2.0], [np.nan, 1.0]])


def test_advantages_sum_to_zero_in_each_group():
    rewards = np.random.default_rng(0).normal(size=(5, 8)) * [[1], [10], [0.1], [3], [0]]
    found = group_advantages(rewards)
    assert found.sum(axis=1) == pytest.approx(np.zeros(5), abs=1e-12) and found + rewards.mean(
        axis=1, keepdims=True
    ) == pytest.approx(rewards)


# --- the loss ---------------------------------------------------------------------------------------------------------


def drawn(seed=0, texts=6, length=5):
    rng = torch.Generator().manual_seed(seed)
    new, old, reference = (-torch.rand(texts, length, generator=rng, dtype=torch.float64) * 3 for _ in range(3))
    lengths = torch.randint(1, length + 1, (texts,), generator=rng)
    written = (torch.arange(length) < lengths[:, None]).double()
    return new.requires_grad_(), old, reference, written, torch.randn(texts, generator=rng, dtype=torch.float64)


def slowly(new, old, reference, written, advantages, clip, beta):
    total = 0.0
    for row in range(len(new)):
        terms = []
        for t in range(new.shape[1]):
            if written[row, t]:
                ratio = math.exp(new[row, t] - old[row, t])
                cut = min(max(ratio, 1 - clip), 1 + clip)
                gain = min(ratio * advantages[row], cut * advantages[row])
                gap = float(reference[row, t] - new[row, t])
                terms.append(-gain + beta * (math.exp(gap) - gap - 1))
        total += float(sum(terms)) / len(terms)
    return total / len(new)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_the_paper_token_by_token(seed):
    new, old, reference, written, advantages = drawn(seed)
    found = grpo_loss(new, old, reference, written, advantages, clip=0.2, beta=0.3)
    with torch.no_grad():
        assert found.item() == pytest.approx(slowly(new, old, reference, written, advantages, 0.2, 0.3), abs=1e-12)


def test_padding_may_hold_anything():
    new, old, reference, written, advantages = drawn()
    loss = grpo_loss(new, old, reference, written, advantages)
    odd = torch.where(written > 0, new.detach(), -torch.inf).requires_grad_()
    again = grpo_loss(odd, old, reference, written, advantages)
    again.backward()
    assert again.item() == loss.item() and torch.isfinite(odd.grad).all() and (odd.grad[written == 0] == 0).all()


def test_equal_rewards_leave_the_pull_to_the_reference_alone():
    new, old, reference, written, _ = drawn()
    nothing = torch.zeros(len(new), dtype=torch.float64)
    grpo_loss(new, old, reference, written, nothing, beta=0.04).backward()
    pull = (1 - torch.exp(reference - new.detach())) * written / written.sum(dim=1, keepdim=True) / len(new)
    assert torch.allclose(new.grad, 0.04 * pull)
    new.grad = None
    grpo_loss(new, old, reference, written, nothing, beta=0.0).backward()
    assert (new.grad == 0).all()


def test_far_steps_are_cut_in_the_direction_that_gains():
    old = torch.zeros(1, 1, dtype=torch.float64)
    for sign in (1.0, -1.0):
        new = torch.full_like(old, 0.5 * sign).requires_grad_()
        grpo_loss(new, old, old, torch.ones(1, 1), torch.tensor([sign]), beta=0.0).backward()
        assert new.grad.item() == 0.0
        back = torch.full_like(old, -0.5 * sign).requires_grad_()
        grpo_loss(back, old, old, torch.ones(1, 1), torch.tensor([sign]), beta=0.0).backward()
        assert back.grad.item() != 0.0


@pytest.mark.slow
def test_trl_computes_the_same_loss():
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed").GRPOTrainer
    new, old, reference, written, advantages = drawn()
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.04,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None), loss_type="grpo", epsilon_low=0.2,
        epsilon_high=0.2, use_vllm=False, model=SimpleNamespace(training=False), _entropy_bonus_enabled=False,
    )  # fmt: skip
    none = torch.zeros(len(new), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": none, "prompt_mask": none, "completion_ids": written.long(), "completion_mask": written,
        "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference,
    }  # fmt: skip
    try:
        theirs = trainer._compute_loss(stub, None, inputs)
    except (AttributeError, KeyError) as error:  # what follows the loss is bookkeeping of the trainer
        theirs = _loss_in(error)
    ours = grpo_loss(new, old, reference, written, advantages, clip=0.2, beta=0.04)
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-12)


def _loss_in(error):
    """`loss` where the trainer went on to count things that a bare loss does not have."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "_compute_loss":
            return frame.tb_frame.f_locals["loss"]
        frame = frame.tb_next
    raise error
