"""Models whose next-token law is written down: what a risk must be can be told from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from likely.lm.results import Generation
from likely.scoring.scored import Scored, TopLogprob

Law = Callable[[str, str], float]  # (prompt, answer) -> probability


class Told:
    """Scores pairs as a server does: by the law of a function.  `pairs` holds what it was asked."""

    def __init__(self, law: Law, *, writes: Callable[[str], str] = str):
        self.law, self.writes = law, writes
        self.pairs: list[tuple[str, str]] = []

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, top_logprobs: int = 0, progress=None) -> list[Scored]:
        self.pairs += pairs
        if progress:
            progress(len(pairs))
        return [self._scored(prompt, answer, top_logprobs) for prompt, answer in pairs]

    def _scored(self, prompt: str, answer: str, top: int) -> Scored:
        p = self.law(prompt, answer)
        logprob = math.log(p) if p > 0 else -math.inf
        tops = [[TopLogprob(None, " The", -0.1)]] if top else None
        return Scored(answer, None, [logprob], logprob, logprob, [answer], top_logprobs=tops)

    def generate(self, prompts: Sequence[str], *, max_tokens: int, temperature: float) -> list[Generation]:
        assert temperature == 0
        return [SimpleNamespace(text=self.writes(prompt)) for prompt in prompts]  # type: ignore[misc]


def letters(risk: Callable[[str], float]) -> Law:
    """Puts the true risk on the letter that stands before the option "Above" in the prompt's last question."""

    def law(prompt: str, answer: str) -> float:
        if not answer.startswith(" "):
            return 1e-4
        options = [line for line in prompt.splitlines() if line[1:3] == ". "][-2:]
        above = next(line[0] for line in options if "Above" in line)
        return 0.9 * (risk(prompt) if answer.strip() == above else 1 - risk(prompt))

    return law


def digits(first: dict[str, float], second: dict[str, float]) -> Law:
    """After "0." the first law, after "0.d" the second; digits that are not named share nothing."""

    def law(prompt: str, answer: str) -> float:
        return (first if prompt.endswith("0.") else second).get(answer, 0.0)

    return law
