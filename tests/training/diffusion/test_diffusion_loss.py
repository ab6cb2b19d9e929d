"""The loss of masked diffusion models: both forms have one expectation, which bounds the exact likelihood."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from likely.training.diffusion.loss import (
    diffusion_loss,
    mask_by_count,
    mask_by_time,
    masked_nll,
    stratified_times,
)

MASK, V, L = 0, 4, 4


class Markov(torch.nn.Module):
    """The exact conditionals of a two-state chain on tokens 1 and 2, by brute force over all texts of L tokens."""

    def __init__(self):
        super().__init__()
        first, step = [0.7, 0.3], [[0.9, 0.1], [0.4, 0.6]]
        self.texts = list(itertools.product((1, 2), repeat=L))
        self.law = {
            x: first[x[0] - 1] * math.prod(step[a - 1][b - 1] for a, b in itertools.pairwise(x)) for x in self.texts
        }

    def forward(self, ids):
        out = torch.full((*ids.shape, V), -torch.inf, dtype=torch.float64)
        for row, seen in zip(out, ids.tolist(), strict=True):
            fits = [x for x in self.texts if all(s in (MASK, a) for s, a in zip(seen, x, strict=True))]
            for i, token in itertools.product(range(L), (1, 2)):
                row[i, token] = math.log(sum(self.law[x] for x in fits if x[i] == token) or 1e-300)
        return out


class Guess(torch.nn.Module):
    """Some function of the canvas that is no joint distribution's conditional."""

    def forward(self, ids):
        generator = torch.Generator()
        rows = []
        for seen in ids.tolist():
            generator.manual_seed(hash(tuple(seen)) % 2**31)
            rows.append(torch.randn(len(seen), V, generator=generator, dtype=torch.float64))
        return torch.stack(rows)


def enumerated(network, ids):
    """Σ_l 1/l · mean over |S| = l of Σ_{i in S} -log p(x_i | x outside S), over all masks."""
    total = 0.0
    for count in range(1, L + 1):
        sets = list(itertools.combinations(range(L), count))
        for chosen in sets:
            masked = torch.zeros(1, L, dtype=torch.bool)
            masked[0, list(chosen)] = True
            logits = network(torch.where(masked, MASK, ids))
            total += masked_nll(logits, ids, masked, MASK).item() / count / len(sets)
    return total


@pytest.mark.parametrize("form", ["time", "count"])
@pytest.mark.parametrize("network", [Markov(), Guess()], ids=["markov", "guess"])
def test_both_forms_have_the_enumerated_bound_as_their_mean(form, network):
    ids = torch.tensor([[1, 2, 2, 1]])
    wanted = enumerated(network, ids)
    generator = torch.Generator().manual_seed(1)
    many = ids.expand(32, -1)
    found = [
        L * diffusion_loss(network, many, torch.ones(32, L, dtype=torch.bool), mask_id=MASK, form=form,
                           generator=generator).item()
        for _ in range(60)
    ]  # fmt: skip
    error = np.std(found) / math.sqrt(len(found))
    slack = 0.01 * wanted if form == "time" else 0.0  # p_mask = (1 - ε) t + ε is never below ε
    assert abs(np.mean(found) - wanted) < 5 * error + slack


def test_exact_conditionals_give_the_exact_likelihood():
    chain = Markov()
    for text in chain.texts:
        assert enumerated(chain, torch.tensor([text])) == pytest.approx(-math.log(chain.law[text]), abs=1e-6)


def test_a_swapped_weight_would_be_seen():
    chain, ids = Markov(), torch.tensor([[1, 2, 2, 1]])
    masked = torch.ones(1, L, dtype=torch.bool)
    alone = masked_nll(chain(torch.zeros_like(ids)), ids, masked, MASK).item()  # one term of the bound, unweighted
    assert abs(alone - enumerated(chain, ids)) > 0.05


def test_times_are_stratified():
    for u in (0.0, 0.3, 0.999):
        times = stratified_times(8, torch.tensor(u))
        assert sorted((times * 8).long().tolist()) == list(range(8))
        assert bool((times < 1).all())


def test_masks_leave_prompts_alone_and_counts_are_exact():
    answer = torch.zeros(16, 10, dtype=torch.bool)
    answer[:, 4:] = True
    uniform = torch.rand(16, 10, generator=torch.Generator().manual_seed(0))
    u = stratified_times(16, torch.tensor(0.5))
    masked, weight = mask_by_count(answer, u, uniform)
    counts = masked.sum(1)
    assert not bool(masked[:, :4].any())
    assert counts.tolist() == (1 + (u * 6).long()).tolist() and set(counts.tolist()) == set(range(1, 7))
    assert torch.allclose(weight, 6 / counts)
    masked, weight = mask_by_time(answer, torch.ones(16), uniform)
    assert bool((masked == answer).all()) and torch.allclose(weight, torch.ones(16))


def test_the_mask_is_no_outcome():
    logits = torch.zeros(1, 1, V)
    logits[..., MASK] = 50.0  # an untrained logit
    ids, masked = torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool)
    assert masked_nll(logits, ids, masked, MASK).item() == pytest.approx(math.log(V - 1))


def test_wrong_batches_are_refused():
    network, ids = Guess(), torch.tensor([[1, 2, 2, 1]])
    with pytest.raises(ValueError, match="at least one token"):
        diffusion_loss(network, ids, torch.zeros(1, L, dtype=torch.bool), mask_id=MASK)
    with pytest.raises(ValueError, match="never predicted"):
        diffusion_loss(network, ids, torch.ones(1, L, dtype=torch.bool), mask_id=2)
    with pytest.raises(ValueError, match="unknown form"):
        diffusion_loss(network, ids, torch.ones(1, L, dtype=torch.bool), mask_id=MASK, form="times")  # type: ignore[arg-type]
