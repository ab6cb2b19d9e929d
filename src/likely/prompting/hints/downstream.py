"""A frozen model that answers questions with a hint and states a confidence; hint policies are rewarded by both.

Nothing is parsed from text, so that models of any size can be used: the answer is the likeliest option, the stated
confidence the mean of the model's distribution over the continuations " 10%", " 20%", ... " 90%".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from likely.io.hashes import fingerprint
from likely.io.jsonl import chunked
from likely.io.kept import KeptValues
from likely.metrics.checks import Floats, Ints, softmax
from likely.metrics.proper import brier_binary
from likely.prompting.hints.reward import confidence_reward

LEVELS = tuple(range(10, 100, 10))
STATE = "How sure is this answer, in percent?"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A multiple-choice question; answer is the number of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ChoiceQuestion:
        return cls(record["question"], tuple(record["choices"]), int(record["answer"]))


@dataclass(frozen=True)
class Stated:
    """Answers to M (question, hint) pairs.

    chosen (M,) the likeliest option;  correct (M,) whether it is right;  confidence (M,) as stated
    entropy (M,) of the distribution over options, nats
    """

    chosen: Ints
    correct: Ints
    confidence: Floats
    entropy: Floats

    def summary(self) -> dict[str, float]:
        """Accuracy, mean stated confidence and its Brier score."""
        return {
            "accuracy": float(self.correct.mean()),
            "stated": float(self.confidence.mean()),
            "brier": brier_binary(self.confidence, self.correct),
        }

    def rewards(self, *, wrong_penalty: float = 1.0) -> Floats:
        return confidence_reward(self.correct, self.confidence, wrong_penalty=wrong_penalty)


def augment(question: str, hint: str) -> str:
    """The question with a hint below it, up to where the answer begins; without a hint the plain question."""
    line = f"Hint: {' '.join(hint.split())}\n" if hint.strip() else ""
    return f"Question: {question}\n{line}Answer:"


def hint_features(asked: Sequence[ChoiceQuestion], plain: Stated) -> Floats:
    """(N, 5) features of questions without a hint: entropy, stated confidence, and sizes.

    plain  the answers without a hint
    """
    return np.stack(
        [
            plain.entropy,
            plain.confidence,
            np.log([1 + len(q.question) for q in asked]),
            np.log([1 + np.mean([len(c) for c in q.choices]) for q in asked]),
            np.array([float(len(q.choices)) for q in asked]),
        ],
        axis=1,
    )


class Downstream:
    """Asks the model once for each (question, hint) and keeps the answers.

    lm    a model with `score_pairs`
    kept  a JSON-lines file of answers by hash of model and prompt: read at the start, appended to
    """

    def __init__(self, lm: Any, kept: str | Path | None = None):
        self._lm, self._known = lm, KeptValues(kept)  # per key the log-probabilities of options, and of levels
        revision = str(getattr(getattr(lm, "runtime", None), "revision", ""))  # of weights with adapters
        self._model = [lm.info.name, lm.info.sha256, lm.info.runtime, lm.info.dtype, revision]
        self.asked = 0  # prompts that were not in the file

    def stated(
        self,
        questions: Sequence[ChoiceQuestion],
        hints: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Stated:
        """questions, hints (M,): the answers to these pairs."""
        if len(questions) != len(hints):
            raise ValueError(f"{len(questions)} questions, {len(hints)} hints: one hint per question")
        keys = [self._key(q, h) for q, h in zip(questions, hints, strict=True)]
        new = {key: (q, h) for key, q, h in zip(keys, questions, hints, strict=True) if key not in self._known}
        for chunk in chunked(list(new.items()), 32):
            self._ask(chunk)
            if progress:
                progress(len(chunk))
        options = [softmax(np.array(self._known[key][0])) for key in keys]
        levels = np.array(LEVELS) / 100
        chosen = np.array([p.argmax() for p in options], np.int64)
        answers = np.array([q.answer for q in questions], np.int64)
        return Stated(
            chosen,
            (chosen == answers).astype(np.int64),
            np.array([softmax(np.array(self._known[key][1])) @ levels for key in keys]),
            np.array([-(p[p > 0] * np.log(p[p > 0])).sum() for p in options]),
        )

    def _ask(self, asked: Sequence[tuple[str, tuple[ChoiceQuestion, str]]]) -> None:
        options = self._scores([(augment(q.question, h), [f" {c}" for c in q.choices]) for _, (q, h) in asked])
        second = []
        for (_, (q, h)), values in zip(asked, options, strict=True):
            prompt = f"{augment(q.question, h)} {q.choices[int(np.argmax(values))]}\n{STATE}"
            second.append((prompt, [f" {level}%" for level in LEVELS]))
        levels = self._scores(second)
        self.asked += len(asked)
        self._known.add({key: two for (key, _), *two in zip(asked, options, levels, strict=True)})

    def _scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        pairs = [(prompt, answer) for prompt, answers in asked for answer in answers]
        found = iter(self._lm.score_pairs(pairs))
        return [[next(found).sequence_logprob for _ in answers] for _, answers in asked]

    def _key(self, question: ChoiceQuestion, hint: str) -> str:
        return fingerprint([*self._model, augment(question.question, hint), question.choices, STATE, LEVELS], 32)
