"""A language model's last hidden states as features of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from likely.calibration.inputs import Floats
from likely.models.runtime import Want, Work
from likely.models.tokenizer import begin


class HiddenFeatures:
    """texts → (N, D): the hidden state after the last token of each, of a frozen model.

    lm      a model whose runtime gives hidden states (`likely.load(name, runtime="torch")`)
    prompt  what a text is put into; "{}" stands for it
    """

    def __init__(self, lm: Any, prompt: str = "{}"):
        self.lm, self.prompt = lm, prompt

    def __call__(self, texts: Sequence[str]) -> Floats:
        runtime, rows = self.lm.runtime, []
        for text in texts:
            tokens = begin(self.lm.tokenizer, self.lm.tokenizer.encode(self.prompt.replace("{}", text)))
            sequence = runtime.open()
            try:
                work = Work(sequence, np.array(tokens[-runtime.context_length :]), want=Want(rows="last", hidden=True))
                rows.append(runtime.forward([work])[0].hidden[0])
            finally:
                runtime.close(sequence)
        return np.array(rows, np.float64)
