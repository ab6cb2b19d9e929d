"""Hidden states as features: those of the runtime, whatever else is asked, and a harmonizer on top."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from likely.calibration.harmonizer import Harmonizer
from likely.calibration.hidden_features import HiddenFeatures
from likely.models.runtime import Output


class Runtime:
    """Hidden state: (sum of the tokens so far, their number)."""

    context_length = 6

    def __init__(self):
        self.held = 0

    def open(self):
        self.held += 1

    def close(self, sequence):
        self.held -= 1

    def forward(self, work):
        (one,) = work
        assert one.want.hidden and one.want.rows == "last"
        return [Output(hidden=np.array([[one.tokens.sum(), len(one.tokens)]], np.float32))]


@pytest.fixture
def lm():
    tokenizer = SimpleNamespace(encode=lambda text: [ord(c) - 96 for c in text])
    return SimpleNamespace(runtime=Runtime(), tokenizer=tokenizer)


def test_the_state_after_the_last_token(lm, monkeypatch):
    monkeypatch.setattr("likely.calibration.hidden_features.begin", lambda tokenizer, tokens: [0, *tokens])
    np.testing.assert_array_equal(HiddenFeatures(lm)(["abc", "z"]), [[6, 4], [26, 2]])
    np.testing.assert_array_equal(HiddenFeatures(lm, "b{}b")(["a"]), [[5, 4]])
    np.testing.assert_array_equal(HiddenFeatures(lm)(["abcdefgh"]), [[33, 6]])  # the last six tokens fit
    assert lm.runtime.held == 0


def test_a_harmonizer_learns_from_them(lm, monkeypatch):
    monkeypatch.setattr("likely.calibration.hidden_features.begin", lambda tokenizer, tokens: tokens)
    texts = ["a", "b", "y", "z"] * 20
    votes = np.array([[0, -1], [0, 0], [1, -1], [1, 1]] * 20)
    h = Harmonizer(2, HiddenFeatures(lm)).fit(texts, votes).predict_proba(["a", "z"])
    assert h[0, 0] > 0.8 and h[1, 1] > 0.8
