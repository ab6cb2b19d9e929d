"""Methods of choosing a prompt: their identities, and a slow form of each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from likely.prompting.selection.criteria import (
    METHODS,
    PER_INPUT,
    PER_PROMPT,
    best_prompt,
    entropy,
    probs_of_choice,
    prompt_values,
)

T, N, K = 5, 13, 3
EPS = 1e-7


def tensor(seed=0, sharp=3.0, shape=(T, N, K)):
    z = np.random.default_rng(seed).normal(0, sharp, shape)
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True)


def h(row):
    return -sum(p * math.log(p + EPS) for p in row)


def mean_row(rows):
    return [sum(row[k] for row in rows) / len(rows) for k in range(len(rows[0]))]


def vote(row):
    best = max(range(len(row)), key=lambda k: (row[k], -k))
    return [float(k == best) for k in range(len(row))]


def slow(P, method, ppl=None):
    """Each formula as it is written down, in loops."""
    P = P.tolist()
    t_range, n = range(len(P)), len(P[0])
    ent = [[h(row) for row in prompt] for prompt in P]
    mean_ent = [sum(e) / n for e in ent]
    of_mean = [h(mean_row(prompt)) for prompt in P]
    of_votes = [h(mean_row([vote(row) for row in prompt])) for prompt in P]
    pseudo = {
        "ZLP": lambda i: mean_row([[math.log(p) for p in P[t][i]] for t in t_range]),
        "ZPM": lambda i: mean_row([P[t][i] for t in t_range]),
        "ZMV": lambda i: mean_row([vote(P[t][i]) for t in t_range]),
    }
    if method in pseudo:
        labels = [vote(pseudo[method](i)) for i in range(n)]
        return [sum(vote(P[t][i]) == labels[i] for i in range(n)) / n for t in t_range]
    return {
        "MI": lambda: [a - b for a, b in zip(of_mean, mean_ent, strict=True)],
        "MI_G": lambda: [a - b for a, b in zip(of_votes, mean_ent, strict=True)],
        "GE": lambda: of_votes,
        "GE_M": lambda: of_mean,
        "LE": lambda: mean_ent,
        "MDL_M": lambda: [-a for a in mean_ent],
        "MDL": lambda: [[-e for e in row] for row in ent],
        "MI_L": lambda: [[of_mean[t] - e for e in ent[t]] for t in t_range],
        "MI_GL": lambda: [[of_votes[t] - e for e in ent[t]] for t in t_range],
        "PPL": lambda: [-sum(row) / n for row in ppl],
        "PPL_L": lambda: [[-v for v in row] for row in ppl],
    }[method]()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_formula(method):
    P, ppl = tensor(), np.random.default_rng(1).uniform(1, 50, (T, N))
    values = prompt_values(P, method, perplexity=ppl)
    assert values.shape == ((T, N) if method in PER_INPUT or method == "PPL_L" else (T,))
    np.testing.assert_allclose(values, slow(P, method, ppl.tolist()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_mutual_information_is_its_two_terms_and_between_0_and_log_k(seed):
    P = tensor(seed, sharp=[0.01, 1, 20][seed % 3])
    mi = prompt_values(P, "MI")
    np.testing.assert_allclose(mi, prompt_values(P, "GE_M") + prompt_values(P, "MDL_M"), atol=1e-15)
    assert (mi >= -K * EPS).all() and (mi <= math.log(K) + K * EPS).all()
    np.testing.assert_allclose(prompt_values(P, "MI_L").mean(1), mi, atol=1e-12)
    np.testing.assert_allclose(prompt_values(P, "MI_GL").mean(1), prompt_values(P, "MI_G"), atol=1e-12)


def test_mutual_information_of_known_cases():
    sure = np.array([[[1.0, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]], [[1, 0], [1, 0]]])
    np.testing.assert_allclose(prompt_values(sure, "MI"), [math.log(2), 0, 0], atol=1e-6)
    assert best_prompt(prompt_values(sure, "LE")) == 1 and best_prompt(prompt_values(sure, "GE")) == 0
    assert entropy(np.array([0.5, 0.5])) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", [*PER_PROMPT, *PER_INPUT])
def test_order_of_inputs_prompts_and_names_of_classes_do_not_matter(method):
    P, rng = tensor(3, shape=(T, N, 2)), np.random.default_rng(5)  # two classes, five prompts: no tied votes
    inputs, prompts, classes = rng.permutation(N), rng.permutation(T), [1, 0]
    plain = prompt_values(P, method)
    moved = prompt_values(P[:, inputs], method)
    np.testing.assert_allclose(moved, plain[:, inputs] if method in PER_INPUT else plain, atol=1e-12)
    np.testing.assert_allclose(prompt_values(P[prompts], method), plain[prompts], atol=1e-12)
    np.testing.assert_allclose(prompt_values(P[:, :, classes], method), plain, atol=1e-12)
    rows = probs_of_choice(P, best_prompt(plain))
    np.testing.assert_allclose(probs_of_choice(P[:, :, classes], best_prompt(plain)), rows[:, classes])


def test_the_lowest_perplexity_wins():
    P = tensor()
    ppl = np.full((T, N), 9.0)
    ppl[2] = 3.0
    ppl[4, 1] = 2.0
    assert best_prompt(prompt_values(P, "PPL", perplexity=ppl)) == 2
    per_input = best_prompt(prompt_values(P, "PPL_L", perplexity=ppl))
    assert per_input[1] == 4 and (np.delete(per_input, 1) == 2).all()


def test_ties_go_to_the_first_prompt():
    P = np.repeat(tensor(shape=(1, N, K)), 3, axis=0)
    for method in (*PER_PROMPT, *PER_INPUT):
        assert (best_prompt(prompt_values(P, method)) == 0).all()


def test_rows_of_the_chosen_prompts():
    P = tensor()
    assert np.array_equal(probs_of_choice(P, np.asarray(3)), P[3])
    choice = np.arange(N) % T
    assert np.array_equal(probs_of_choice(P, choice), [P[t, i] for i, t in enumerate(choice)])


def broken(at, value):
    P = tensor()
    P[at] = value
    return P


@pytest.mark.parametrize(
    ("P", "said"),
    [
        (tensor(shape=(T, N, 1)), "at least 2 are needed, one answer is always right"),
        (tensor(shape=(T, 1, K)), "has 1 input"),
        (tensor(shape=(N, K)), r"got shape \(13, 3\)"),
        (tensor()[0, 0], r"got shape \(3,\)"),
        (np.empty((0, 3, 2)), "got shape"),
        (broken((3, 7, 1), np.nan), "prompt 3, input 7 is not a number"),
        (broken((1, 2), [0.5, 0.4, 0.3]), "prompt 1, input 2 sums to 1.2"),
        (broken((1, 2), [1.5, -0.4, -0.1]), "prompt 1, input 2 has values outside"),
        ([["a"]], "must be numbers"),
    ],
)
def test_what_cannot_be_used_is_named(P, said):
    with pytest.raises(ValueError, match=said):
        prompt_values(P, "MI")


def test_wrong_method_and_missing_perplexity():
    with pytest.raises(ValueError, match='did you mean "MI_GL"'):
        prompt_values(tensor(), "MI-GL")
    with pytest.raises(ValueError, match="perplexity=True"):
        prompt_values(tensor(), "PPL")
    with pytest.raises(ValueError, match=r"shape \(5, 13\)"):
        prompt_values(tensor(), "PPL", perplexity=np.ones((T, 2)))
    ppl = np.full((T, N), 2.0)
    ppl[1, 4] = 0.5
    with pytest.raises(ValueError, match=r"prompt 1, input 4 is 0\.5"):
        prompt_values(tensor(), "PPL_L", perplexity=ppl)
