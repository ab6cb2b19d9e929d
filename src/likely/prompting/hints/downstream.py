"""A frozen model that answers with a hint and states a confidence: what hint policies are rewarded by.

The answer is the likeliest option, and the stated confidence is read as the law over the texts " 10%" to " 90%": so
every output can be read, from a model of any size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import DataError
from likely.metrics.checks import Floats, softmax
from likely.metrics.proper import brier_binary
from likely.prompting.hints.reward import confidence_reward

LEVELS = tuple(range(10, 100, 10))
STATE = "How sure is this answer, in percent?"


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; answer is the number of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Question:
        return cls(record["question"], tuple(record["choices"]), int(record["answer"]))


@dataclass(frozen=True)
class Stated:
    """Answers to M (question, hint) pairs.

    chosen (M,) the likeliest option;  correct (M,) whether it is right;  confidence (M,) the mean of the stated law
    entropy (M,) of the law over options, nats
    """

    chosen: NDArray[np.int64]
    correct: NDArray[np.int64]
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


def names_an_option(hint: str, choices: Sequence[str]) -> bool:
    """Whether a hint names a letter of an option ("B", "option c") or holds the text of one, and may give it away."""
    letters = "".join(chr(65 + i) for i in range(len(choices)))
    # "A" before a word is an article
    if re.search(rf"\b[{letters[1:]}]\b(?!['’])|\(A\)|\bA\b(?=\s*(?:[.,;:)]|$))", hint):
        return True
    if re.search(rf"\b(?:option|choice|answer)\s+(?:is\s+)?\(?[{letters.lower()}](?![\w' ])", hint, re.IGNORECASE):
        return True
    said = _plain(hint)
    return any(_plain(choice) in said for choice in choices if choice.strip())


def _plain(text: str) -> str:
    words = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return f" {words} "


def hint_features(asked: Sequence[Question], plain: Stated) -> Floats:
    """(N, 5) what is known of a question before it gets a hint: how unsure the model is, what it states, and sizes.

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
    """Asks the model once for each (question, hint), and remembers.

    lm    a model with `score_pairs`
    kept  a JSON-lines file of what was asked before, by hash of model and prompt; it grows, and is read at the start
    """

    def __init__(self, lm: Any, kept: str | Path | None = None):
        self._lm, self._kept = lm, None if kept is None else Path(kept)
        self._known: dict[str, tuple[list[float], list[float]]] = {}
        self._model = [lm.info.name, lm.info.sha256, lm.info.runtime, lm.info.dtype, _revision(lm)]
        self.asked = 0  # prompts that the model was really asked
        if self._kept is not None and self._kept.exists():
            self._known = _read_kept(self._kept)

    def stated(
        self, questions: Sequence[Question], hints: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> Stated:
        """questions, hints (M,): the answers to these pairs."""
        if len(questions) != len(hints):
            raise ValueError(f"{len(questions)} questions, {len(hints)} hints: one hint per question")
        keys = [self._key(q, h) for q, h in zip(questions, hints, strict=True)]
        new = {key: (q, h) for key, q, h in zip(keys, questions, hints, strict=True) if key not in self._known}
        for chunk in _chunks(list(new.items()), 32):
            self._ask(chunk)
            if progress:
                progress(len(chunk))
        laws = [softmax(np.array(self._known[key][0])) for key in keys]
        levels = np.array(LEVELS) / 100
        chosen = np.array([law.argmax() for law in laws], np.int64)
        answers = np.array([q.answer for q in questions], np.int64)
        return Stated(
            chosen,
            (chosen == answers).astype(np.int64),
            np.array([softmax(np.array(self._known[key][1])) @ levels for key in keys]),
            np.array([-(law[law > 0] * np.log(law[law > 0])).sum() for law in laws]),
        )

    def _ask(self, asked: Sequence[tuple[str, tuple[Question, str]]]) -> None:
        options = self._scores([(augment(q.question, h), [f" {c}" for c in q.choices]) for _, (q, h) in asked])
        second = []
        for (_, (q, h)), values in zip(asked, options, strict=True):
            prompt = f"{augment(q.question, h)} {q.choices[int(np.argmax(values))]}\n{STATE}"
            second.append((prompt, [f" {level}%" for level in LEVELS]))
        levels = self._scores(second)
        self.asked += len(asked)
        for (key, _), one, two in zip(asked, options, levels, strict=True):
            self._known[key] = (one, two)
        if self._kept is not None:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with self._kept.open("a", encoding="utf-8") as out:
                if _is_cut(self._kept):
                    out.write("\n")
                out.writelines(
                    json.dumps({"key": key, "options": one, "levels": two}) + "\n"
                    for (key, _), one, two in zip(asked, options, levels, strict=True)
                )

    def _scores(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        pairs = [(prompt, answer) for prompt, answers in asked for answer in answers]
        found = iter(self._lm.score_pairs(pairs))
        return [[next(found).sequence_logprob for _ in answers] for _, answers in asked]

    def _key(self, question: Question, hint: str) -> str:
        parts = json.dumps([*self._model, augment(question.question, hint), question.choices, STATE, LEVELS])
        return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _revision(lm: Any) -> str:
    """What a local engine holds, adapters included; "" of a server."""
    return str(getattr(getattr(lm, "runtime", None), "revision", ""))


def _read_kept(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Answers by key; the last line may be cut, any other that is wrong is a DataError."""
    found = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): it does not hold kept answers") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found[str(record["key"])] = ([float(v) for v in record["options"]], [float(v) for v in record["levels"]])
        except (ValueError, KeyError, TypeError):
            if line.startswith('{"key"') or not line:  # cut, here or before an earlier run went on
                continue
            raise DataError(f"{path}:{number} is not a kept answer: choose another file for them") from None
    return found


def _is_cut(path: Path) -> bool:
    """Whether the file ends in the middle of a line."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return False
        file.seek(size - 1)
        return file.read(1) != b"\n"


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
