"""Likelihood bounds: exact on known joints, equal by both estimators, with honest standard errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from likely.decoding.diffusion import (
    HashPredictor,
    JointPredictor,
    diffusion_generate,
    exact_bound,
    likelihood_bound,
    path_likelihood,
)


def markov(length, rng):
    """Joint of a two-state Markov chain, by multiplying out."""
    start, move = rng.dirichlet([1, 1]), rng.dirichlet([1, 1], 2)
    joint = np.zeros((2,) * length)
    for states in np.ndindex(*joint.shape):
        joint[states] = start[states[0]] * math.prod(move[a, b] for a, b in itertools.pairwise(states))
    return joint


def slow_bound(predictor, prompt, answer):
    """Mean over all orders of the sum of log-probabilities: the any-order view."""
    total = 0.0
    orders = list(itertools.permutations(range(len(answer))))
    for order in orders:
        now = [predictor.mask_id] * len(answer)
        for i in order:
            z = predictor.logits(np.array([[*prompt, *now]]))[0, len(prompt) + i].astype(np.float64)
            z[predictor.mask_id] = -np.inf
            total += z[answer[i]] - np.log(np.exp(z).sum())
            now[i] = answer[i]
    return total / len(orders)


def test_exact_bound_is_the_mean_over_all_orders():
    toy = HashPredictor(5, sensitivity=1.0)
    for answer in ([1], [0, 3], [2, 2, 1], [0, 1, 2, 3]):
        found = exact_bound(toy, [3], answer)
        assert found.value == pytest.approx(slow_bound(toy, [3], answer), abs=1e-6)
        assert found.kind == "lower_bound" and found.standard_error == 0 and found.samples == 2 ** len(answer) - 1


@pytest.mark.parametrize("joint", ["chain", "any", "independent"])
def test_of_exact_conditionals_bound_and_every_path_are_the_log_probability(joint):
    rng = np.random.default_rng(2)
    made = {
        "chain": lambda: markov(4, rng),
        "any": lambda: rng.dirichlet(np.ones(27)).reshape(3, 3, 3),
        "independent": lambda: np.einsum("a,b,c->abc", *rng.dirichlet(np.ones(3), 3)),
    }[joint]()
    toy = JointPredictor(made)
    answer = [1] * made.ndim
    truth = math.log(made[tuple(answer)])
    assert exact_bound(toy, [0], answer).value == pytest.approx(truth, abs=1e-5)
    for order in itertools.permutations(range(made.ndim)):
        path = path_likelihood(toy, [0], answer, np.array(order))
        assert path.value == pytest.approx(truth, abs=1e-5) and path.kind == "path"
    # by stratified counts too, within what is left of chance: positions
    found = likelihood_bound(toy, [0], answer, samples=600)
    assert abs(found.value - truth) < 5 * found.standard_error + 1e-5


@pytest.mark.parametrize("form", ["count", "time"])
def test_estimates_and_their_standard_errors(form):
    toy = HashPredictor(6, sensitivity=1.0, scale=6.0)
    prompt, answer = [2], [0, 4, 1, 3, 2]
    exact = exact_bound(toy, prompt, answer).value
    found = [likelihood_bound(toy, prompt, answer, samples=64, form=form, seed=s) for s in range(150)]
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) < 5 * spread / math.sqrt(len(values))  # unbiased
    if form == "count":  # by time the variance has no bound: masks at small t are rare and weigh 1/t
        assert 0.75 * spread < errors.mean() < 3 * spread
        assert (np.abs(values - exact) < 3 * errors).mean() > 0.98


def test_counts_vary_less_than_times():
    toy = HashPredictor(6, sensitivity=1.0, scale=6.0)
    spread = {
        form: np.std([likelihood_bound(toy, [2], [0, 4, 1, 3], samples=32, form=form, seed=s).value for s in range(80)])
        for form in ("count", "time")
    }
    assert spread["count"] < 0.7 * spread["time"]


def test_one_token_is_exact_with_one_sample():
    toy = HashPredictor(6, sensitivity=1.0)
    for form in ("count", "time"):
        found = likelihood_bound(toy, [1, 2], [3], samples=100, form=form)
        assert found.value == pytest.approx(exact_bound(toy, [1, 2], [3]).value, abs=1e-12)
        assert found.samples == 1 and found.standard_error == 0


def test_path_of_a_decoded_answer_is_the_sum_of_its_commits():
    toy = HashPredictor(7, sensitivity=0.8)
    out = diffusion_generate(toy, [1], length=6, steps=3, pinned={2: 4})
    path = path_likelihood(toy, [1], out.answers[0], out.order[0])
    assert path.logprobs[2] == 0 and (np.delete(path.logprobs, 2) < 0).all()
    now, total = np.full(6, 6), 0.0
    now[2] = 4
    for step in range(3):
        z = toy.logits(np.array([[1, *now]]))[0, 1:].astype(np.float64)
        z[:, 6] = -np.inf
        z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
        for i in np.flatnonzero(out.order[0] == step):
            total += z[i, out.answers[0, i]]
        now = np.where(out.order[0] == step, out.answers[0], now)
    assert path.value == pytest.approx(total, abs=1e-6)


def test_an_impossible_answer_is_minus_infinity():
    joint = np.array([[0.5, 0.5], [0.0, 0.0]])
    with np.errstate(all="ignore"):
        assert exact_bound(JointPredictor(joint), [0], [1, 1]).value == -math.inf
        found = likelihood_bound(JointPredictor(joint), [0], [1, 0], samples=8)
    assert found.value == -math.inf and found.standard_error is None


def test_what_does_not_fit_is_refused():
    toy = HashPredictor(6)
    for call, said in (
        (lambda: likelihood_bound(toy, [1], []), "at least one token"),
        (lambda: likelihood_bound(toy, [1], [5]), "not be the mask"),
        (lambda: likelihood_bound(toy, [1], [2], samples=0), "samples and batch"),
        (lambda: likelihood_bound(toy, [1], [2], form="counts"), 'did you mean "count"'),
        (lambda: exact_bound(toy, [1], [2] * 15), "use likelihood_bound"),
        (lambda: path_likelihood(toy, [1], [2, 3], np.array([0])), "one step for each of 2"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
