"""Conformal risk control: the expectation that it promises, the smallest setting by trying all, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from likely.calibration.conformal.risk_control import control_risk, wrong_answers_threshold

SETS = 4000


def test_the_expected_loss_of_a_new_item_is_at_most_alpha_and_not_far_below():
    rng, n, alpha = np.random.default_rng(0), 49, 0.1
    losses = []
    for _ in range(SETS):
        c = rng.random(n + 1)
        right = rng.random(n + 1) < c
        found = wrong_answers_threshold(c[:n], right[:n], alpha=alpha)
        losses.append(c[n] >= found.setting and not right[n])
    mean, error = np.mean(losses), np.std(losses) / math.sqrt(SETS)
    assert alpha - 2 / (n + 1) - 5 * error <= mean <= alpha + 5 * error


def test_without_the_correction_the_bound_breaks():
    """Negative control: the largest loss that the items themselves allow, R̂ <= alpha."""
    rng, n, alpha = np.random.default_rng(0), 4, 0.25
    losses = []
    for _ in range(SETS):
        c = rng.random(n + 1)
        wrong = np.sort(c[:n])[::-1]  # every answer is wrong
        losses.append(c[n] > wrong[int(alpha * n)])
    assert np.mean(losses) > alpha + 5 * np.std(losses) / math.sqrt(SETS)


def test_the_threshold_is_the_lowest_by_trying_all_ties_included():
    rng = np.random.default_rng(1)
    for _ in range(100):
        c, right = rng.integers(0, 10, 30) / 10, rng.integers(0, 3, 30) > 0
        found = wrong_answers_threshold(c, right, alpha=0.2)
        settings = np.concatenate([[-1.0], np.nextafter(np.unique(c), 2)])
        losses = (c[:, None] >= settings) & ~right[:, None]
        slow = control_risk(losses, settings, alpha=0.2)
        assert (c >= found.setting).tolist() == (c >= slow.setting).tolist()
        assert found.risk == pytest.approx(slow.risk)


def test_answer_everything_or_nothing():
    assert wrong_answers_threshold([0.5] * 20, [1] * 20, alpha=0.1).setting == -math.inf
    assert wrong_answers_threshold([0.5] * 8, [1] * 8, alpha=0.1) is None
    assert wrong_answers_threshold([0.5] * 9, [1] * 9, alpha=0.1) is not None


def test_the_edge_of_theorem_1():
    losses = np.array([[1.0, 0.0]] * 9)
    assert control_risk(losses, [0, 1], alpha=0.1).setting == 1
    assert control_risk(losses[:8], [0, 1], alpha=0.1) is None
    assert control_risk(2 * losses, [0, 1], alpha=0.2, bound=2).setting == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: control_risk([[0.0, 1.0]], [0, 1], alpha=0.5), "row 0 rises with the setting"),
        (lambda: control_risk([[1.0, 0.0]], [1, 0], alpha=0.5), "settings must rise"),
        (lambda: control_risk([[2.0, 0.0]], [0, 1], alpha=0.5), r"row 0 holds a loss outside 0\.\.1"),
        (lambda: control_risk([[1.0, 0.0]], [0], alpha=0.5), "settings has 1 values, losses 2 columns"),
        (lambda: wrong_answers_threshold([0.5], [1], alpha=0), "alpha must lie between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_input_says_what_and_where(call, said):
    with pytest.raises(ValueError, match=said):
        call()
