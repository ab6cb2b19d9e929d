"""Multiple choice by likelihood: which of the given answers does the model find most likely?

Two styles of prompt (the answers' own words, or lettered options) and four ways to compare answers of different
length.  A tie at the top counts as wrong: whoever breaks ties by order finds the right answer wherever the data put it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from likely.errors import DataError, names_in, nearest
from likely.io.jsonl import chunked
from likely.metrics.grading import LETTERS, choice_index, choices_of
from likely.metrics.intervals import Accuracy

if TYPE_CHECKING:
    from likely.scoring.scored import Scored

ChoiceStyle = Literal["answers", "letters"]
Normalise = Literal["sum", "token", "byte", "pmi"]
STYLES = ("answers", "letters")
NORMALISATIONS = ("sum", "token", "byte", "pmi")
UNCONDITIONAL = "Answer:"  # what stands before an answer when the question is left out


@dataclass(frozen=True)
class ChoiceItem:
    """One question; `answer` is the 0-based number of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceResult:
    """One question decided.

    sequence_logprobs  of each answer given the question, nats;  token_logprobs: their parts
    unconditional      of each answer given only "Answer:" (pmi), else None
    values             what was compared, see `normalised`
    prediction         the choice of the largest value; None: a tie, which counts as wrong
    raw_confidence     the largest softmax(values): the model's confidence before any calibration
    """

    label: int
    sequence_logprobs: list[float]
    token_logprobs: list[list[float]]
    unconditional: list[float] | None
    values: list[float]
    prediction: int | None
    correct: bool
    raw_confidence: float

    @property
    def tie(self) -> bool:
        return self.prediction is None

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label, "prediction": self.prediction, "correct": int(self.correct), "tie": self.tie,
            "confidence": None, "raw_confidence": self.raw_confidence, "values": self.values,
            "sequence_logprobs": self.sequence_logprobs, "unconditional": self.unconditional,
            "token_logprobs": self.token_logprobs,
        }  # fmt: skip


@dataclass(frozen=True)
class ChoiceReport:
    """All questions of a run."""

    style: ChoiceStyle
    normalise: Normalise
    results: list[ChoiceResult]

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy(sum(r.correct for r in self.results), len(self.results))

    @property
    def ties(self) -> int:
        return sum(r.tie for r in self.results)


def choice_item(record: Mapping[str, Any], where: str = "record") -> ChoiceItem:
    """{"question", "choices": [...], "answer": 0-based number, letter, or a choice's text}; DataError names `where`."""
    for name in ("question", "choices", "answer"):
        if record.get(name) is None:
            raise DataError(f'{where}: field "{name}" is missing (found: {names_in(record)})')
    if not isinstance(record["question"], str) or not record["question"].strip():
        raise DataError(f'{where}: field "question" must be a text that is not empty')
    choices = choices_of(record, where)
    assert choices is not None
    try:
        return ChoiceItem(record["question"], tuple(choices), choice_index(record["answer"], choices))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def lettered(question: str, choices: Sequence[str]) -> str:
    """The question and its options, one a line, as "A. ..."."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))])


def choice_pairs(item: ChoiceItem, *, style: ChoiceStyle, normalise: Normalise) -> list[tuple[str, str]]:
    """What to score: (prompt, answer) per choice; for pmi, then the same answers without the question."""
    if style == "letters":
        prompt = f"Question: {lettered(item.question, item.choices)}\nAnswer:"
        answers = [f" {letter}" for letter in LETTERS[: len(item.choices)]]
    else:
        prompt = f"Question: {item.question}\nAnswer:"
        answers = [f" {choice}" for choice in item.choices]
    pairs = [(prompt, answer) for answer in answers]
    return pairs + [(UNCONDITIONAL, answer) for answer in answers] if normalise == "pmi" else pairs


def normalised(
    sums: Sequence[float],
    *,
    normalise: Normalise,
    tokens: Sequence[int],
    sizes_bytes: Sequence[int],
    unconditional: Sequence[float] | None = None,
) -> list[float]:
    """The value of each of K answers by which they are compared, in nats.

    sum    log p(y|x)
    token  log p(y|x) / tokens of the answer
    byte   log p(y|x) / bytes of the choice, its leading space not counted (for ASCII the usual "acc_norm")
    pmi    log p(y|x) − log p(y|"Answer:"): how much the question raises the answer.  Holtzman et al. 2021,
           arXiv:2104.08315, eq. 2, with "Answer:" as domain premise
    """
    if normalise == "sum":
        return list(sums)
    if normalise == "token":
        return [s / n for s, n in zip(sums, tokens, strict=True)]
    if normalise == "byte":
        return [s / n for s, n in zip(sums, sizes_bytes, strict=True)]
    if unconditional is None:
        raise ValueError("pmi needs the unconditional log-probabilities")
    return [s - u for s, u in zip(sums, unconditional, strict=True)]


def decide(values: Sequence[float]) -> tuple[int | None, float]:
    """(the number of the largest value, None for a tie; the largest softmax of the values)."""
    if any(math.isnan(v) for v in values):
        raise ValueError(f"a value to compare is not a number: {list(values)}")
    best = max(values)
    at = [i for i, value in enumerate(values) if value == best]
    if best == -math.inf:
        return None, 1 / len(values)
    share = 1 / sum(math.exp(value - best) for value in values)
    return (at[0] if len(at) == 1 else None), share


def choice_result(
    item: ChoiceItem, scored: Sequence[Scored], *, style: ChoiceStyle, normalise: Normalise
) -> ChoiceResult:
    """Decide one question from the scores of its `choice_pairs`."""
    count = len(item.choices)
    given, without = scored[:count], scored[count:]
    unconditional = [s.sequence_logprob for s in without] if normalise == "pmi" else None
    values = normalised(
        [s.sequence_logprob for s in given],
        normalise=normalise,
        tokens=[len(s.token_logprobs) for s in given],
        sizes_bytes=[1 if style == "letters" else len(choice.encode()) for choice in item.choices],
        unconditional=unconditional,
    )
    prediction, share = decide(values)
    return ChoiceResult(
        item.answer, [s.sequence_logprob for s in given], [s.token_logprobs for s in given], unconditional, values,
        prediction, prediction == item.answer, share,
    )  # fmt: skip


def score_choices(
    model: Any,
    items: Sequence[ChoiceItem | Mapping[str, Any]],
    *,
    style: ChoiceStyle = "answers",
    normalise: Normalise = "sum",
    progress: Callable[[int], None] | None = None,
) -> ChoiceReport:
    """Answer multiple-choice questions by likelihood.

    items      ChoiceItem, or records {"question", "choices", "answer"}
    style      "answers": 'Question: ...\\nAnswer:' and each choice's words; "letters": the options stand in the
               prompt and " A", " B" ... are scored
    normalise  see `normalised`
    progress   called with the number of scored texts that are new
    """
    if style not in STYLES:
        raise ValueError(f'unknown style "{style}"{nearest(style, STYLES)} (allowed: {", ".join(STYLES)})')
    if normalise not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise ValueError(f'unknown normalise "{normalise}"{nearest(normalise, NORMALISATIONS)} (allowed: {known})')
    ready = [item if isinstance(item, ChoiceItem) else choice_item(item, f"item {i}") for i, item in enumerate(items)]
    results = []
    for chunk in chunked(ready):
        groups = [choice_pairs(item, style=style, normalise=normalise) for item in chunk]
        scored = iter(model.score_pairs([pair for group in groups for pair in group], progress=progress))
        for item, group in zip(chunk, groups, strict=True):
            mine = [next(scored) for _ in group]
            results.append(choice_result(item, mine, style=style, normalise=normalise))
    return ChoiceReport(style, normalise, results)
