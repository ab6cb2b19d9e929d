"""Models that score answers by what stands in the prompt: what an audit must find out about them is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

from likely.scoring.scored import Scored


class ReadingModel:
    """An answer that stands in the part of the prompt that this model reads is likely, any other is not.

    reads   the beginning of the line that it looks at ("Context"); None: it looks at nothing
    """

    def __init__(self, reads=None, name="reading"):
        self.reads, self.calls = reads, 0
        self.info = SimpleNamespace(name=name, sha256=name, runtime="toy", dtype="f64", tokenizer="toy", template=None)
        self.prompts: list[str] = []

    def score_pairs(self, pairs, *, progress=None):
        self.calls += 1
        self.prompts += [prompt for prompt, _ in pairs]
        return [self._scored(*pair) for pair in pairs]

    def _scored(self, prompt, answer):
        lines = [line for line in prompt.splitlines() if self.reads and line.startswith(self.reads)]
        logprob = math.log(0.9 if any(answer.strip() in line for line in lines) else 0.05) - 0.01 * len(answer)
        return Scored(answer, None, [logprob], logprob, logprob, [answer])
