"""Nash-MD-PG: exact gradients by enumeration, trl's formula, the tabular direction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from likely.alignment.online.policy_gradient import nash_md_loss
from likely.alignment.online.tabular import nash_md_gradient

STEPS, V = 2, 3


def table(seed: int) -> torch.Tensor:
    """Logits of every prefix of texts of two tokens: row 0 is the empty one, row 1 + v follows token v."""
    return torch.randn(1 + V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def token_logprobs(logits, texts):
    laws = logits.log_softmax(-1)
    return torch.stack([torch.stack([laws[0, a], laws[1 + a, b]]) for a, b in texts])


TEXTS = list(itertools.product(range(V), repeat=STEPS))
EVERY = torch.ones(len(TEXTS), STEPS, dtype=torch.bool)


def expected_gradient(kl, preference, *, tau=1.0):
    """Σ_y π(y) ∇loss(y), over all nine texts."""
    logits, reference = table(0).requires_grad_(), table(1)
    ours, theirs = token_logprobs(logits, TEXTS), token_logprobs(reference, TEXTS)
    chances = ours.sum(1).exp().detach()
    losses = nash_md_loss(ours, theirs, EVERY, preference, tau=tau, kl=kl)
    [gradient] = torch.autograd.grad((chances * losses).sum(), logits)
    return gradient


def exact_kl_gradient():
    logits, reference = table(0).requires_grad_(), table(1)
    ours, theirs = token_logprobs(logits, TEXTS).sum(1), token_logprobs(reference, TEXTS).sum(1)
    [gradient] = torch.autograd.grad((ours.exp() * (ours - theirs)).sum(), logits)
    return gradient


def test_the_sequence_form_has_the_gradient_of_the_kl_and_the_per_token_form_has_not():
    even = torch.full((len(TEXTS),), 0.5, dtype=torch.float64)
    wanted = exact_kl_gradient()
    torch.testing.assert_close(expected_gradient("sequence", even), wanted, atol=1e-12, rtol=0)
    assert (expected_gradient("per_token", even) - wanted).abs().max() > 0.01


def test_expected_step_is_the_tabular_direction():
    """Texts as the answers of a game: the exact direction by probabilities of whole texts, carried to the logits."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(9, 9))
    p, tau = 1 / (1 + np.exp(a.T - a)), 0.3
    logits, reference = table(0).requires_grad_(), table(1)
    ours, theirs = token_logprobs(logits, TEXTS).sum(1), token_logprobs(reference, TEXTS).sum(1)
    direction = nash_md_gradient(p, ours.detach().numpy(), theirs.numpy(), tau)  # = π(y) (gain(y) - its mean)
    [wanted] = torch.autograd.grad((torch.tensor(direction) * ours).sum(), logits)
    wins = torch.tensor(p @ np.exp(ours.detach().numpy()))
    torch.testing.assert_close(-expected_gradient("sequence", wins, tau=tau), wanted, atol=1e-12, rtol=0)


def batch(seed: int):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (-torch.rand(6, 9, generator=generator) * 5 for _ in range(2))
    lengths = torch.randint(1, 10, (6,), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    return ours.requires_grad_(), theirs, mask, torch.rand(6, generator=generator)


@pytest.mark.parametrize("seed", range(4))
def test_per_token_form_is_what_trl_computed(seed):
    """NashMDTrainer._compute_losses of trl's public repository (version 1.16 no longer has the class), written anew:
    beta · Σ_t [lr_t] ℓ_t - (p - ½) Σ_t ℓ_t with lr_t taken without gradient, padding zeroed, mean over rows."""
    ours, theirs, mask, p = batch(seed)
    beta = 0.17
    padded, reference = ours.masked_fill(~mask, 0.0), theirs.masked_fill(~mask, 0.0)
    wanted = (beta * ((padded - reference).detach() * padded).sum(1) - (p - 0.5) * padded.sum(1)).mean()
    found = nash_md_loss(ours, theirs, mask, p, tau=beta, kl="per_token").mean()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(x, ours)[0] for x in (found, wanted)), atol=1e-6, rtol=1e-5)


def test_padding_reaches_nothing_and_texts_of_one_token_know_no_difference():
    ours, theirs, mask, p = batch(0)
    clean = nash_md_loss(ours, theirs, mask, p, tau=0.3)
    dirty = nash_md_loss(ours.masked_fill(~mask, -torch.inf), theirs.masked_fill(~mask, torch.nan), mask, p, tau=0.3)
    torch.testing.assert_close(clean, dirty, atol=0, rtol=0)
    first = mask & (torch.arange(9) == 0)
    torch.testing.assert_close(
        nash_md_loss(ours, theirs, first, p, tau=0.3), nash_md_loss(ours, theirs, first, p, tau=0.3, kl="per_token")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kl": "token"}, "unknown kl.*sequence, per_token"),
        ({"tau": -1.0}, "tau must be >= 0, got -1"),
        ({"preference": torch.tensor([0.5, 1.2, 0.5, 0.5, 0.5, 0.5])}, r"row 2: a preference must lie in \[0, 1\]"),
        ({"preference": torch.tensor([0.5])}, r"one number per row.*\(6,\)"),
        ({"mask": torch.ones(6, 8, dtype=torch.bool)}, "one shape"),
    ],
)
def test_one_line_for_what_does_not_fit(change, said):
    ours, theirs, mask, p = batch(0)
    given = {"mask": mask, "preference": p, "tau": 0.1, **change}
    with pytest.raises(ValueError, match=said):
        nash_md_loss(ours, theirs, given["mask"], given["preference"], tau=given["tau"], kl=given.get("kl", "sequence"))
