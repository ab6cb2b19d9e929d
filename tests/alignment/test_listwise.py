"""BRAIn's loss against its formula, DPO, exact posteriors and the known Gaussian case."""

from __future__ import annotations

import numpy as np
import pytest

from likely.errors import DataError

torch = pytest.importorskip("torch")
from likely.alignment import (  # noqa: E402
    exponential_goodness,
    posterior_logweights,
    sigmoid_goodness,
    snis_cross_entropy,
)

F = torch.nn.functional


@pytest.fixture
def lists():
    """(policy, reference, proposal, rewards), each (3, 5), tens of nats apart."""
    generator = torch.Generator().manual_seed(0)
    policy, reference, proposal, rewards = (
        torch.randn(3, 5, generator=generator, dtype=torch.float64) * scale for scale in (8, 8, 8, 1)
    )
    return policy.requires_grad_(), reference, proposal, rewards


def gradient(loss, of):
    return torch.autograd.grad(loss, of)[0]


def test_the_gradient_is_the_difference_of_weights(lists):
    policy, reference, proposal, rewards = lists
    found = snis_cross_entropy(policy, proposal, posterior_logweights(reference, proposal, rewards / 0.5))
    alpha = (reference + rewards / 0.5 - proposal).softmax(-1)
    weights = (policy - proposal).softmax(-1)
    torch.testing.assert_close(gradient(found.loss, policy), -(alpha - weights) / 3, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.target, alpha)
    torch.testing.assert_close(found.ess_policy, 1 / (weights**2).sum(-1).detach())
    assert not found.target.requires_grad


def test_without_the_baseline_only_the_targets_pull(lists):
    policy, reference, proposal, rewards = lists
    weights = posterior_logweights(reference, proposal, rewards)
    found = snis_cross_entropy(policy, proposal, weights, baseline=False)
    torch.testing.assert_close(gradient(found.loss, policy), -weights.softmax(-1) / 3, atol=1e-12, rtol=0)


def test_two_candidates_and_a_winner_are_dpo(lists):
    policy, reference, *_ = (values[:, :2] for values in lists)
    winner = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64).expand(3, 2)
    found = snis_cross_entropy(policy, reference, posterior_logweights(reference, reference, winner)).loss
    ratio = policy - reference
    dpo = F.softplus(-(ratio[:, 0] - ratio[:, 1])).mean()
    torch.testing.assert_close(found, dpo, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(found, lists[0]), gradient(dpo, lists[0]), atol=1e-12, rtol=0)


def test_two_candidates_and_rewards_are_dpo_with_soft_labels(lists):
    policy, reference, _, rewards = (values[:, :2] for values in lists)
    found = snis_cross_entropy(policy, reference, exponential_goodness(0.3)(rewards)).loss
    margin = (policy - reference)[:, 0] - (policy - reference)[:, 1]
    label = torch.sigmoid((rewards[:, 0] - rewards[:, 1]) / 0.3)
    dpo = (label * F.softplus(-margin) + (1 - label) * F.softplus(margin)).mean()
    torch.testing.assert_close(found, dpo, atol=1e-12, rtol=0)


def test_the_posterior_has_no_gradient_on_any_samples(lists):
    _, reference, proposal, rewards = lists
    policy = (reference + rewards / 0.4 + 17).requires_grad_()  # up to a constant of the prompt
    found = snis_cross_entropy(policy, proposal, posterior_logweights(reference, proposal, rewards / 0.4))
    assert gradient(found.loss, policy).abs().max() < 1e-14


def test_samples_of_the_policy_weigh_the_same(lists):
    policy, reference, _, rewards = lists
    found = snis_cross_entropy(policy, policy.detach(), posterior_logweights(reference, policy.detach(), rewards))
    torch.testing.assert_close(found.weights, torch.full((3, 5), 0.2, dtype=torch.float64))
    assert not found.stale


def test_constants_of_a_prompt_change_nothing(lists):
    policy, reference, proposal, rewards = lists
    shift = torch.tensor([[3.0], [-40.0], [0.5]], dtype=torch.float64)
    one = snis_cross_entropy(policy, proposal, posterior_logweights(reference, proposal, rewards))
    other = snis_cross_entropy(
        policy + shift, proposal - shift, posterior_logweights(reference + 2 * shift, proposal - shift, rewards - shift)
    )
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(gradient(one.loss, policy), gradient(other.loss, policy))


def test_all_outcomes_lead_to_the_posterior():
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(1, 8, generator=generator, dtype=torch.float64).log_softmax(-1)
    rewards = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    logits = torch.zeros(1, 8, dtype=torch.float64, requires_grad=True)
    proposal = torch.zeros(1, 8, dtype=torch.float64)  # each outcome once: uniform
    target = posterior_logweights(reference, proposal, rewards / 0.5)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def step():
        optimizer.zero_grad()
        loss = snis_cross_entropy(logits.log_softmax(-1), proposal, target).loss
        loss.backward()
        return loss

    optimizer.step(step)
    torch.testing.assert_close(logits.softmax(-1), (reference + rewards / 0.5).softmax(-1), atol=1e-6, rtol=0)


def test_the_gaussian_case_has_its_known_variance():
    """Target N(0, 1), policy N(1, 1), proposal N(m, 1), 8 samples, ∇log π = y − 1."""
    rng = np.random.default_rng(2)
    wanted = {1.0: (1.62, 0.173, -0.77), 0.5: (0.40, 0.19, None), 0.0: (0.12, 0.175, None)}
    for m, (dpg, brain, mean) in wanted.items():
        y = torch.from_numpy(rng.normal(m, 1, size=(40_000, 8)))
        proposal, target = -((y - m) ** 2) / 2, -(y**2) / 2
        policy = (-((y - 1) ** 2) / 2).requires_grad_()
        found = snis_cross_entropy(policy, proposal, target - proposal)
        weighted = gradient(found.loss, policy) * len(y)
        ours = -(weighted * (y - 1)).sum(-1)
        toward = (target - proposal).exp() * (y - 1)
        assert toward.mean(-1).var().item() == pytest.approx(dpg, rel=0.1)
        assert ours.var().item() == pytest.approx(brain, rel=0.1)
        if mean is not None:
            assert ours.mean().item() == pytest.approx(mean, abs=0.02)


def test_goodness_models():
    rewards = torch.tensor([[0.0, 1.0, 3.0]])
    torch.testing.assert_close(exponential_goodness(2.0)(rewards), rewards / 2)
    better = sigmoid_goodness(0.5)(rewards)
    torch.testing.assert_close(better, F.logsigmoid((rewards - 4 / 3) / 0.5))
    assert (better <= 0).all()
    torch.testing.assert_close(sigmoid_goodness(0.5, torch.tensor([[1.0]]))(rewards), F.logsigmoid((rewards - 1) / 0.5))
    assert sigmoid_goodness(1e-3, 0.0)(torch.tensor([[-5.0, 5.0]])).tolist() == [[-5000.0, 0.0]]
    for goodness in (exponential_goodness, sigmoid_goodness):
        with pytest.raises(ValueError, match="beta"):
            goodness(0.0)


def test_masked_candidates_count_nowhere(lists):
    policy, reference, proposal, rewards = lists
    target = posterior_logweights(reference, proposal, rewards)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 3)
    spoiled = [torch.where(mask, values, torch.nan) for values in (proposal, target)]
    found = snis_cross_entropy(policy, *spoiled, mask)
    alone = snis_cross_entropy(policy[:, :3], proposal[:, :3], target[:, :3])
    torch.testing.assert_close(found.loss, alone.loss)
    torch.testing.assert_close(gradient(found.loss, policy), gradient(alone.loss, policy))
    assert (found.weights[:, 3:] == 0).all()


def test_prompts_without_a_possible_candidate_are_dropped(lists):
    policy, _, proposal, rewards = lists
    spoiled = rewards.clone()
    spoiled[1] = -torch.inf
    found = snis_cross_entropy(policy, proposal, spoiled)
    assert found.dropped == 1 and found.ess_policy[1] == 0 == found.ess_target[1]
    kept = [0, 2]
    torch.testing.assert_close(found.loss, snis_cross_entropy(policy[kept], proposal[kept], rewards[kept]).loss)
    assert torch.isfinite(gradient(found.loss, policy)).all()
    with pytest.raises(DataError, match="no prompt"):
        snis_cross_entropy(policy, proposal, torch.full_like(rewards, -torch.inf))


def test_a_policy_far_from_the_proposal_is_stale(lists):
    proposal, rewards = (torch.cat([values, values], -1) for values in lists[2:])
    assert not snis_cross_entropy(proposal, proposal, rewards).stale
    far = proposal.clone()
    far[:, 0] += 50
    assert snis_cross_entropy(far, proposal, rewards).stale


def test_what_is_refused(lists):
    policy, _, proposal, rewards = lists
    with pytest.raises(DataError, match="prompt 0: a list loss needs at least 2"):
        snis_cross_entropy(policy[:, :1], proposal[:, :1], rewards[:, :1])
    with pytest.raises(DataError, match="one shape"):
        snis_cross_entropy(policy, proposal[:, :4], rewards)
    bad = rewards.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(DataError, match="prompt 2: a candidate has a target weight that is NaN"):
        snis_cross_entropy(policy, proposal, bad)
    with pytest.raises(DataError, match="prompt 2: a candidate has no finite proposal"):
        snis_cross_entropy(policy, bad, rewards)
