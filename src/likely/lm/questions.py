"""Many questions, one answer each: what a line of a questions file says, and what its answer carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from likely.errors import DataError, names_in
from likely.lm.results import Answer
from likely.metrics.grading import choices_of
from likely.scoring.choices import lettered

BATCH = 16  # questions answered together, and at most so many are answered again after a kill


@dataclass(frozen=True)
class QuestionLine:
    """One line of a questions file: {"question", optional "id", "answer" or "label", "system", "choices"}.

    asked      what the model is asked: the question and, where there are choices, these as lettered lines
    system     a system message of its own, in place of the one of the run
    passed_on  the fields of the line that its answer carries, "answer" or "label" as "reference"
    """

    asked: str
    system: str | None = None
    passed_on: dict[str, Any] = field(default_factory=dict)


def question_of(record: Mapping[str, Any], where: str) -> QuestionLine:
    """Read one record; DataError with `where` (file:line) otherwise."""
    for name in ("question", "system"):
        value = record.get(name)
        if value is None and name == "question":
            raise DataError(f'{where}: field "question" is missing (found: {names_in(record)})')
        if value is not None and not isinstance(value, str):
            raise DataError(f'{where}: field "{name}" must be a string, found {type(value).__name__}')
    text = record["question"]
    if not text.strip():
        raise DataError(f'{where}: field "question" is empty')
    choices = choices_of(record, where)
    passed_on = {name: record[name] for name in ("id", "question", "system", "choices") if name in record}
    for name in ("answer", "label"):
        if record.get(name) is not None:
            passed_on["reference"] = record[name]
            break
    return QuestionLine(text if choices is None else lettered(text, choices), record.get("system"), passed_on)


# how fast an answer came, which is not what it is: a second run gives other values
NOT_KEPT = (
    "seconds",
    "target_calls",
    "tokens_per_call",
    "proposed",
    "accepted",
    "drafted",
    "sample",
    "prompt",
    "system_folded",
)
DECIDED = ("answered_by", "why", "first", "abstained")  # kept where answers are held to a threshold


def answer_record(question: QuestionLine, answer: Answer, *, decided: bool = False) -> dict[str, Any]:
    """The fields of an answers file that depend on model, question and settings alone.

    decided  whether answers were held to a threshold, so that a line says who answered
    """
    left_out = NOT_KEPT if decided else (*NOT_KEPT, *DECIDED)
    fields = {name: value for name, value in answer.to_dict().items() if name not in left_out}
    return {**question.passed_on, **fields}
