"""A language model's last hidden states as features of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from likely.calibration.inputs import Floats
from likely.uncertainty.split_hidden import hidden_states


class HiddenFeatures:
    """texts → (N, D): the hidden state after the last token of each, of a frozen model.

    lm      a model whose runtime gives hidden states (`likely.load(name, runtime="torch")`), or CapabilityError
    prompt  what a text is put into; "{}" stands for it

    See `hidden_states`: a text that does not fit the model's context is an error, none is cut.
    """

    def __init__(self, lm: Any, prompt: str = "{}"):
        self.lm, self.prompt = lm, prompt

    def __call__(self, texts: Sequence[str]) -> Floats:
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of strings, got the string {texts!r}")
        return hidden_states(self.lm, [self.prompt.replace("{}", text) for text in texts])
