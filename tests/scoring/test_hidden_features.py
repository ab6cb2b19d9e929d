"""Hidden states as features: those of the runtime, whatever else is asked, and a harmonizer on top."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from likely.errors import CapabilityError, DataError
from likely.runtimes.protocol import Output
from likely.scoring.hidden import HiddenFeatures
from likely.weak_supervision.harmonizer import Harmonizer


class Runtime:
    """Hidden state: (sum of the tokens so far, their number)."""

    context_length = 6

    def __init__(self, hidden=True):
        self.capabilities = SimpleNamespace(hidden=hidden)
        self.held, self.calls, self.turn = 0, 0, nullcontext()

    def free_tokens(self):
        return 1000

    def open(self):
        self.held += 1

    def close(self, sequence):
        self.held -= 1

    def forward(self, work):
        assert all(one.want.hidden and one.want.rows == "last" for one in work)
        self.calls += 1
        if max(len(one.tokens) for one in work) > self.context_length:
            raise DataError("too long")
        return [Output(hidden=np.array([[one.tokens.sum(), len(one.tokens)]], np.float32)) for one in work]


def model(first=(), **options):
    def encode(text):
        return [*first, *(ord(c) - 96 for c in text)]

    return SimpleNamespace(runtime=Runtime(**options), encode_prompt=encode)


def test_the_state_after_the_last_token_of_all_texts_together():
    lm = model(first=[0])
    np.testing.assert_array_equal(HiddenFeatures(lm)(["abc", "z"]), [[6, 4], [26, 2]])
    assert lm.runtime.calls == 1 and lm.runtime.held == 0
    np.testing.assert_array_equal(HiddenFeatures(lm, "b{}b")(["a"]), [[5, 4]])


def test_what_cannot_be_answered_is_refused():
    lm = model()
    with pytest.raises(DataError, match="too long"):
        HiddenFeatures(lm)(["a", "abcdefgh"])
    assert lm.runtime.held == 0
    with pytest.raises(TypeError, match="list of strings"):
        HiddenFeatures(lm)("abc")
    with pytest.raises(CapabilityError, match="hidden states; runtimes that do: torch, native"):
        HiddenFeatures(model(hidden=False))(["abc"])


@pytest.mark.slow
def test_a_harmonizer_learns_from_them():
    texts = ["a", "b", "y", "z"] * 20
    votes = np.array([[0, -1], [0, 0], [1, -1], [1, 1]] * 20)
    h = Harmonizer(2, HiddenFeatures(model())).fit(texts, votes).predict_proba(["a", "z"])
    assert h[0, 0] > 0.8 and h[1, 1] > 0.8
