"""Draws without replacement: of tokens against enumeration, of sequences against draws over all of them at once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from statistics_of_draws import chi_square_p

from likely.decoding.drafting.trees.draws import gumbel_top_k, log1mexp, stochastic_beam_step

Q = np.array([0.5, 0.3, 0.2])
TABLE = np.log(np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.05, 0.9, 0.05]]))  # log q(next | last), start: row 0


def ordered_law(q: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """P of every ordered draw of k without replacement: Π q(x_i) / (1 - Σ of the earlier ones)."""
    law = {}
    for xs in itertools.permutations(range(len(q)), k):
        left, p = 1.0, 1.0
        for x in xs:
            p, left = p * q[x] / left, left - q[x]
        law[xs] = p
    return law


def beam_leaves(depth: int, width: int, rng: np.random.Generator) -> tuple[list[tuple[int, ...]], list]:
    """(sequences of the last beam, all steps)"""
    phi = perturbed = np.zeros(1)
    beam: list[tuple[int, ...]] = [()]
    steps = []
    for _ in range(depth):
        log_q = np.array([TABLE[s[-1] if s else 0] for s in beam])
        step = stochastic_beam_step(phi, perturbed, log_q, rng.gumbel(size=log_q.shape), width)
        beam = [(*beam[row], int(token)) for row, token in zip(step.parents, step.tokens, strict=True)]
        phi, perturbed = step.phi, step.perturbed
        steps.append(step)
    return beam, steps


def test_log1mexp_against_high_precision():
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    for a in (-1e-12, -1e-3, -0.5, -0.6931, -0.6932, -1.0, -20.0, -300.0):
        exact = float((1 - Decimal(a).exp()).ln())
        assert log1mexp(np.array(a)) == pytest.approx(exact, rel=1e-14)
    assert log1mexp(np.array(0.0)) == -np.inf and log1mexp(np.array(-np.inf)) == 0.0


def test_top_k_of_noise_is_a_draw_without_replacement():
    rng = np.random.default_rng(0)
    law = ordered_law(Q, 2)
    assert law[0, 1] == pytest.approx(0.3)
    draws = [tuple(gumbel_top_k(np.log(Q), 2, g).tolist()) for g in rng.gumbel(size=(20_000, 3))]
    assert chi_square_p(draws, law) > 1e-6
    by_index = [tuple(sorted(d)) for d in draws]  # the order of drawing matters
    assert chi_square_p(by_index, law) < 1e-6


def test_impossible_tokens_are_never_drawn():
    log_q = np.array([-np.inf, 0.0, -np.inf])
    assert gumbel_top_k(log_q, 3, np.zeros(3)).tolist() == [1]


def test_children_have_their_parents_value_as_maximum():
    rng = np.random.default_rng(1)
    for _ in range(200):
        phi, perturbed = rng.normal(size=4), np.sort(rng.normal(size=4) * 3)[::-1]
        log_q = np.log(rng.dirichlet(np.ones(5) / 2, size=4))
        step = stochastic_beam_step(phi, perturbed, log_q, rng.gumbel(size=(4, 5)), 20)
        assert len(step.tokens) == 20 and (np.diff(step.perturbed) <= 0).all()
        for row in range(4):
            assert step.perturbed[step.parents == row].max() == pytest.approx(perturbed[row], abs=1e-6)
        assert np.allclose(step.phi, phi[step.parents] + log_q[step.parents, step.tokens])


def test_leaves_are_draws_of_whole_sequences_without_replacement():
    """Kool et al.: the beam of width W is, in order, W draws without replacement from all V^L sequences."""
    rng = np.random.default_rng(2)
    sequences = list(itertools.product(range(3), repeat=2))
    q = np.array([math.exp(TABLE[0][a] + TABLE[a][b]) for a, b in sequences])
    assert q.sum() == pytest.approx(1)
    law = {tuple(sequences[i] for i in key): p for key, p in ordered_law(q, 2).items()}
    draws = []
    for _ in range(6_000):
        beam, steps = beam_leaves(2, 2, rng)
        assert len(set(beam)) == 2 and steps[-1].perturbed[0] >= steps[-1].perturbed[1]
        draws.append(tuple(beam))
    assert chi_square_p(draws, law) > 1e-6
    swapped = [(b, a) if i % 2 else (a, b) for i, (a, b) in enumerate(draws)]
    assert chi_square_p(swapped, law) < 1e-6


def test_unconditioned_noise_has_another_law():
    """Negative control: fresh Gumbel values at each level, not conditioned on the parent's."""
    rng = np.random.default_rng(3)
    sequences = list(itertools.product(range(3), repeat=2))
    q = np.array([math.exp(TABLE[0][a] + TABLE[a][b]) for a, b in sequences])
    law = {tuple(sequences[i] for i in key): p for key, p in ordered_law(q, 2).items()}
    draws = []
    for _ in range(6_000):
        first = gumbel_top_k(TABLE[0], 2, rng.gumbel(size=3))
        raw = TABLE[0][first][:, None] + TABLE[first] + rng.gumbel(size=(2, 3))
        rows, tokens = np.divmod(gumbel_top_k(raw.ravel(), 2, np.zeros(6)), 3)
        draws.append(tuple((int(first[r]), int(t)) for r, t in zip(rows, tokens, strict=True)))
    assert chi_square_p(draws, law) < 1e-6


def test_width_must_be_positive():
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        stochastic_beam_step(np.zeros(1), np.zeros(1), np.zeros((1, 3)), np.zeros((1, 3)), 0)
