"""Many questions, one answer each: what a line of a questions file says, and batches of answers in order."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from likely.choices import lettered
from likely.errors import DataError
from likely.grading import choices_of

if TYPE_CHECKING:
    from likely.decoding.loop import Loop
    from likely.decoding.request import Request
    from likely.results import Generation

BATCH = 16  # questions answered together, and at most so many are answered again after a kill


@dataclass(frozen=True)
class Question:
    """One line of a questions file: {"question", optional "id", "answer" or "label", "system", "choices"}.

    asked      what the model is asked: the question and, where there are choices, these as lettered lines
    passed_on  the fields of the line that its answer carries, "answer" or "label" as "reference"
    """

    asked: str
    system: str | None
    passed_on: dict[str, Any]


def question_of(record: Mapping[str, Any], where: str) -> Question:
    """Read one record; DataError with `where` (file:line) otherwise."""
    for name in ("question", "system"):
        value = record.get(name)
        if value is None and name == "question":
            found = ", ".join(f'"{k}"' for k in record) or "nothing"
            raise DataError(f'{where}: field "question" is missing (found: {found})')
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
    return Question(text if choices is None else lettered(text, choices), record.get("system"), passed_on)


def answer_batch(model: Any, loop: Loop, requests: Sequence[Request]) -> Iterator[Generation]:
    """The answers of one batch in the order asked, each as soon as it and all before it are finished."""
    started = time.perf_counter()
    place = {loop.add(request): i for i, request in enumerate(requests)}
    done: dict[int, Generation] = {}
    at = 0
    while not loop.idle:
        for event in loop.step():
            if event.error:
                raise event.error
            if event.finish:
                i = place[event.request]
                done[i] = model.generation(requests[i], event, time.perf_counter() - started)
        while at in done:
            yield done.pop(at)
            at += 1


def fingerprint(value: Any) -> str:
    """A short hash of JSON-able settings, or of a text such as a chat template."""
    raw = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


# how fast an answer came, which is not what it is: a second run gives other values
NOT_KEPT = ("seconds", "target_calls", "proposed", "accepted", "sample", "prompt", "system_folded")


def answer_record(question: Question, answer: Generation) -> dict[str, Any]:
    """The fields of an answers file that depend on model, question and settings alone."""
    fields = {name: value for name, value in answer.to_dict().items() if name not in NOT_KEPT}
    return {**question.passed_on, **fields, "confidence": None}
