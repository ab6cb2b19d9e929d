"""What does an utterance ask for, when all there is are transcripts that may be wrong?

Two ways to use n transcripts: all in one prompt; or one prompt each, averaged by posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self, get_args

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.prompting.speech.nbest import NBest, NBestStyle, SpokenTask, nbest_prompt, transcript_prompt
from likely.scoring.choices import Normalise
from likely.scoring.scored import PairScorer
from likely.uncertainty.types import OptionScores, option_scores

Combine = Literal["prompt", "marginal"]
COMBINATIONS = get_args(Combine)
KAPPAS = np.concatenate([[0.0], np.logspace(-4, 2, 49)])


class SpokenIntentClassifier:
    """Classify utterances by the likelihood of the task's answers.

    combine  "prompt": one prompt with n transcripts;  "marginal": Σ_j p(h_j) p(answer | h_j)
    kappa    scale of the recogniser's scores, see `NBest`; `fit_kappa` finds it
    norm     how answers of different length are compared, see `OptionScores`
    A fine-tuned model must be given the n and the style that it was trained with (`prompts` makes both).
    """

    def __init__(
        self,
        lm: PairScorer,
        task: SpokenTask,
        *,
        n: int = 5,
        combine: Combine = "prompt",
        style: NBestStyle = "explained",
        kappa: float = 1.0,
        norm: Normalise = "sum",
    ):
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        check_choice("combine", combine, COMBINATIONS)
        self.lm, self.task, self.n, self.combine = lm, task, n, combine
        self.style, self.kappa, self.norm = style, kappa, norm

    def prompts(self, nbest: NBest) -> tuple[list[str], Floats]:
        """(what the model is asked about one utterance, with which weight each)."""
        if self.combine == "prompt":
            return [nbest_prompt(self.task, nbest, self.n, self.style, kappa=self.kappa)], np.ones(1)
        texts, posteriors = nbest.distinct(self.n, kappa=self.kappa)
        return [transcript_prompt(self.task, text) for text in texts], posteriors

    def option_scores(
        self,
        utterances: Sequence[NBest],
        labels: Sequence[int] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> OptionScores:
        """(N, K) log p(answer | utterance), nats: what a recalibrator is fitted to.

        Of "marginal" it is log Σ_j p(h_j) p(answer | h_j), normalised over the K answers: to be read with norm="sum".
        labels  numbers of the right answers, where they are known
        """
        n, k = len(utterances), len(self.task.answers)
        if labels is not None:
            check_labels(labels, n, k)
        scores, asked = self._ask(utterances, progress)
        first = [rows[0] for rows, _ in asked]
        logprobs = scores.logprobs[first]
        if self.combine == "marginal":
            with np.errstate(divide="ignore"):  # an answer that no transcript allows
                logprobs = np.log([weights @ probs for weights, probs in self._weighed(scores, asked)])
        return OptionScores(
            logprobs, scores.tokens[first], scores.sizes_bytes[first], scores.exists[first],
            labels=None if labels is None else np.array(labels, np.int64),
        )  # fmt: skip

    def predict_proba(self, utterances: Sequence[NBest], *, progress: Callable[[int], None] | None = None) -> Floats:
        """(N, K) probabilities of the task's answers; rows sum to 1."""
        scores = self.option_scores(utterances, progress=progress)
        return scores.probs("sum" if self.combine == "marginal" else self.norm)

    def fit_kappa(self, utterances: Sequence[NBest], labels: Sequence[int]) -> Self:
        """Choose kappa for "marginal" on labelled utterances that are not those it is judged by; returns self."""
        if self.combine != "marginal":
            raise ValueError(f'kappa is fitted for combine="marginal", this is "{self.combine}"')
        check_labels(labels, len(utterances), len(self.task.answers))
        scores, asked = self._ask(utterances, None)
        tables = [probs for _, probs in self._weighed(scores, asked)]
        self.kappa = best_kappa(utterances, tables, labels, n=self.n)
        return self

    def _ask(
        self, utterances: Sequence[NBest], progress: Callable[[int], None] | None
    ) -> tuple[OptionScores, list[tuple[list[int], Floats]]]:
        """(scores of all different prompts, per utterance which of them it has and their weights)."""
        if not len(utterances):
            raise ValueError("no utterances: at least one is needed")
        asked = [self.prompts(nbest) for nbest in utterances]
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for prompts, _ in asked for p in prompts))}
        scores = option_scores(self.lm, list(row), self.task.answers, progress=progress)
        return scores, [([row[p] for p in prompts], weights) for prompts, weights in asked]

    def _weighed(self, scores: OptionScores, asked: Sequence[tuple[list[int], Floats]]) -> list[tuple[Floats, Floats]]:
        """Per utterance (p(h_j), (J, K) p(answer | h_j))."""
        probs = scores.probs(self.norm)
        return [(weights, probs[rows]) for rows, weights in asked]


def check_labels(labels: Sequence[int], n: int, k: int) -> None:
    """ValueError unless there is a label for each of N utterances, every one the number of one of K answers."""
    if len(labels) != n:
        raise ValueError(f"labels must be {n} numbers in 0..{k - 1}, one per utterance, got {len(labels)}")
    for i, label in enumerate(labels):
        if not 0 <= label < k:
            raise ValueError(f"utterance {i}: label {label} is no answer's number (allowed: 0..{k - 1}): leave it out")


def best_kappa(utterances: Sequence[NBest], probs: Sequence[Floats], labels: Sequence[int], *, n: int) -> float:
    """The kappa of 0, 1e-4 .. 100 under which the marginal distribution gives the labels the highest likelihood.

    probs  per utterance (its distinct transcripts, up to n; K): p(answer | transcript).  Ties: the smaller kappa.
    """
    if not len(utterances) or not len(utterances) == len(probs) == len(labels):
        raise ValueError(f"{len(utterances)} utterances, {len(probs)} tables, {len(labels)} labels: as many of each")
    check_labels(labels, len(utterances), min(table.shape[1] for table in probs))

    def nll(kappa: float) -> float:
        right = [u.distinct(n, kappa=kappa)[1] @ p[:, k] for u, p, k in zip(utterances, probs, labels, strict=True)]
        return -float(np.log(np.maximum(right, 1e-12)).mean())

    return float(min(KAPPAS, key=nll))


def training_pairs(
    classifier: SpokenIntentClassifier, utterances: Sequence[NBest], labels: Sequence[int]
) -> list[tuple[str, str]]:
    """(prompt, answer) pairs that teach what `classifier` will be asked; of "marginal" the first prompt of each."""
    answers = classifier.task.answers
    check_labels(labels, len(utterances), len(answers))
    return [
        (classifier.prompts(nbest)[0][0], f" {answers[label]}") for nbest, label in zip(utterances, labels, strict=True)
    ]
