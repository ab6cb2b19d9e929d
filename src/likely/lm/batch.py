"""Many questions, one answer each: what a line of a questions file says, and batches of answers in order."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from likely.errors import DataError, LikelyError, ModelError
from likely.metrics.grading import choices_of
from likely.scoring.choices import lettered

if TYPE_CHECKING:
    from likely.decoding.loop import Loop
    from likely.decoding.request import Request
    from likely.lm.results import Generation

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
    for found in outcomes(model, loop, requests):
        if isinstance(found, LikelyError):
            raise found
        yield found


def outcomes(model: Any, loop: Loop, requests: Sequence[Request | LikelyError]) -> Iterator[Generation | LikelyError]:
    """What became of each request, in their order: its one text, or what ended it; an error in the list stays there.

    A text that does not follow its schema is drawn again, as `generate` does it.
    """
    from likely.guided.json_schema.errors import SchemaUnsatisfied
    from likely.lm.redraw import redraw, told

    started = time.perf_counter()
    done: dict[int, Generation | LikelyError] = {}
    running: dict[int, tuple[int, Request, int]] = {}  # the loop's number -> (place, request as it runs, its attempt)

    def add(place: int, request: Request, attempt: int = 0) -> None:
        try:
            running[loop.add(request)] = place, request, attempt
        except ModelError as error:  # it can never run
            done[place] = error

    for i, request in enumerate(requests):
        if isinstance(request, LikelyError):
            done[i] = request
        else:
            add(i, request)
    at = 0
    while at < len(requests):
        while at in done:
            yield done.pop(at)
            at += 1
        for event in loop.step() if running else ():
            if not (event.finish or event.error):
                continue
            i, request, attempt = running.pop(event.request)
            first = requests[i]
            assert not isinstance(first, LikelyError)
            if event.error is not None:
                if not isinstance(event.error, LikelyError):
                    raise event.error
                done[i] = event.error
                continue
            try:
                made = model.generation(request, event, time.perf_counter() - started)
                done[i] = told(made, first, first.first_sample, attempt)
            except SchemaUnsatisfied as broken:
                attempt += 1
                if attempt > first.form.settings.retries:
                    done[i] = SchemaUnsatisfied(broken.text, broken.errors, attempt)
                else:
                    add(i, redraw(first, first.first_sample, attempt), attempt)


def fingerprint(value: Any) -> str:
    """A short hash of JSON-able settings, or of a text such as a chat template."""
    raw = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(raw.encode()).hexdigest()[:16]


# how fast an answer came, which is not what it is: a second run gives other values
NOT_KEPT = ("seconds", "target_calls", "tokens_per_call", "proposed", "accepted", "sample", "prompt", "system_folded")


def answer_record(question: Question, answer: Generation) -> dict[str, Any]:
    """The fields of an answers file that depend on model, question and settings alone."""
    fields = {name: value for name, value in answer.to_dict().items() if name not in NOT_KEPT}
    return {**question.passed_on, "confidence": None, **fields}
