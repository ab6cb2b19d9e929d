"""Log-probabilities of given options as one table: norms, options that are not there, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from likely.uncertainty.types import OptionScores


def table(logprobs, **more):
    logprobs = np.array(logprobs, float)
    n = np.full(logprobs.shape, 2)
    given = {"tokens": n, "sizes_bytes": 4 * n, "exists": np.ones(logprobs.shape, bool), **more}
    return OptionScores(logprobs, **given)


def test_norms_by_hand():
    p = np.array([[0.4, 0.1]])
    scores = table(
        np.log(p), tokens=np.array([[2, 1]]), sizes_bytes=np.array([[4, 8]]), unconditional=np.log([[0.2, 0.2]])
    )
    assert scores.probs() == pytest.approx(np.array([[0.8, 0.2]]))
    assert scores.logits("token") == pytest.approx(np.log(p) / [2, 1])
    assert scores.logits("byte") == pytest.approx(np.log(p) / [4, 8])
    assert scores.probs("pmi") == pytest.approx(np.array([[0.8, 0.2]]))
    root = np.sqrt(0.4)
    assert scores.probs("token") == pytest.approx(np.array([[root, 0.1]]) / (root + 0.1))


def test_rows_of_different_length():
    scores = table(
        [[-1, -1, np.nan], [-1, -2, -3]], exists=np.array([[True, True, False], [True] * 3]),
        unconditional=np.array([[-1, -2, np.nan], [-1, -1, -1]]),
    )  # fmt: skip
    for norm in ("sum", "token", "byte", "pmi"):
        p = scores.probs(norm)
        assert p.sum(axis=1) == pytest.approx([1, 1]) and p[0, 2] == 0, norm
    assert scores.probs()[0].tolist() == [0.5, 0.5, 0]


def test_very_unlikely_options_do_not_underflow():
    assert table([[-2000, -2000 - np.log(3)]]).probs() == pytest.approx(np.array([[0.75, 0.25]]))
    assert table([[-np.inf, -5]]).probs().tolist() == [[0, 1]]


def test_what_is_wrong_names_its_row():
    for logprobs, more, message in (
        ([[-1, -1], [np.nan, -1]], {}, "row 1 is not a log-probability"),
        ([[-1, -1], [-1, np.inf]], {}, "row 1 is not a log-probability"),
        ([[-1, -1], [-1, -1]], {"unconditional": np.array([[-1, -1], [np.nan, -1]])}, "unconditional: row 1 is not"),
        ([[-1, -1], [-np.inf, -1]], {"unconditional": np.array([[-1, -1], [-np.inf, -1]])}, "unconditional: row 1"),
        ([[-1, -1], [-1, -1]], {"exists": np.array([[True, True], [True, False]])}, "row 1 has fewer than 2 options"),
        ([[-1, -1]], {"tokens": np.ones((1, 3))}, r"tokens has shape \(1, 3\)"),
        ([-1, -1], {}, r"logprobs must be \(N, K\)"),
    ):
        with pytest.raises(ValueError, match=message):
            table(logprobs, **more)
    with pytest.raises(ValueError, match="row 1: every option has probability 0"):
        table([[-1, -1], [-np.inf, -np.inf]]).probs()
    with pytest.raises(ValueError, match='norm="token": row 0 has an option of no tokens'):
        table([[-1, -1]], tokens=np.array([[0, 1]])).probs("token")
    with pytest.raises(ValueError, match="pmi needs the unconditional"):
        table([[-1, -1]]).probs("pmi")
