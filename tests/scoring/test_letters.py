"""Shares of answers from log-probabilities: one form for all, far below what half precision can hold."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from likely.scoring.letters import LowAnswerMass, shares, warn_low_mass

LOG = np.log
NONE = -np.inf


def test_the_form_with_the_largest_total_is_taken_for_all():
    found = shares([LOG([0.5, 0.01]), LOG([0.3, 0.3]), LOG([0.1, 0.1])])  # never 0.5 against 0.3
    assert found.form == 1 and found.mass == pytest.approx(0.6) and found.probs.tolist() == [0.5, 0.5]
    assert shares([LOG([0.2, 0.1]), LOG([0.1, 0.2])]).form == 0  # a tie: the first
    assert shares([[NONE, NONE], LOG([1e-9, 3e-9])]).form == 1


def test_small_probabilities_keep_their_ratio():
    found = shares([[-800.0, -800.0 - LOG(3)]])  # exp of both is 0 in float64
    assert found.probs == pytest.approx([0.75, 0.25]) and found.mass == 0 and not np.isnan(found.probs).any()
    assert shares([[LOG(0.2), NONE]]).probs.tolist() == [1, 0]
    assert shares([LOG([1e-9, 2e-9, 7e-9])]).probs == pytest.approx([0.1, 0.2, 0.7])


def test_nothing_on_any_answer_has_no_shares():
    found = shares([[NONE] * 4, [NONE] * 4])
    assert np.isnan(found.probs).tolist() == [True] * 4 and found.mass == 0


@pytest.mark.parametrize("wrong", [[0.0, -1.0], [[-1.0]], [[-1.0, np.nan]], [[-1.0, np.inf]]])
def test_what_is_refused(wrong):
    with pytest.raises(ValueError, match="logprobs"):
        shares(wrong)


def test_low_mass_is_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_low_mass(np.array([[0.5, 0.9]]), [" A", " B"], None)
        assert not caught
        warn_low_mass(np.array([[0.5, 0.9], [0.01, 0.2]]), [" A", " B"], " The")
    [warning] = caught
    assert warning.category is LowAnswerMass
    assert "1 of 4 prompts" in str(warning.message) and '" The"' in str(warning.message)
