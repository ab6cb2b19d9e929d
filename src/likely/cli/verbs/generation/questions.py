"""likely ask FILE: every question of a file, answered in batches, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.cli.confidence import Sure
    from likely.io.jsonl import Line
    from likely.lm.batch import Question

HINT = 'expected lines like {"question": "...", "answer": "..."}'


def is_questions_file(argument: str | None) -> bool:
    """Whether the argument of `ask` names a file of questions: one word that ends in .jsonl or .jsonl.gz."""
    return argument is not None and argument.endswith((".jsonl", ".jsonl.gz")) and not any(map(str.isspace, argument))


def read_questions(file: str, limit: int | None) -> list[Line]:
    """All lines, checked before the model is loaded."""
    from likely.errors import DataError
    from likely.io.jsonl import read_checked
    from likely.lm.batch import question_of

    lines = read_checked(file, lambda line: question_of(line.record, f"{file}:{line.number}"), limit=limit).lines
    if not lines:
        raise DataError(f"{file} holds no records: {HINT}")
    return lines


def ask_file(
    lm: Any,
    file: str,
    lines: Sequence[Line],
    *,
    system: str | None,
    options: dict[str, Any],
    output: Path | None,
    overwrite: bool,
    show_prompt: bool,
    decide: Sure,
) -> None:
    """Answer every line that has no answer in `output` yet."""
    from likely.cli.printing import progress
    from likely.errors import ConstraintError
    from likely.io.jsonl import Results, unfinished
    from likely.lm.batch import BATCH, fingerprint
    from likely.lm.confidence import template_hash
    from likely.lm.model import Model

    if options.get("n", 1) != 1 or options.get("beams"):
        raise ValueError("each question is answered once: drop n= and beams=")
    if isinstance(lm, Model):
        lm.question("?", **options)  # wrong settings are refused before the output carries them in its header
    settings = {**options, "system": system}
    header = {
        **opt.origin(lm), "kind": "ask", "template": template_hash(lm), "settings": settings,
        "settings_hash": fingerprint(settings), **decide.describe(),
    }  # fmt: skip
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, file, size=BATCH)
        before, cut, told = len(results.done), 0, ""
        try:
            with progress(sum(map(len, todo)), "asking", unit="questions") as tick:
                for line, record in _answers(lm, file, todo, system, options, show_prompt, decide):
                    if not results.is_done(line, file):
                        results.write([record])
                        if record.get("complete") is False:
                            cut, told = cut + 1, told or f"{file}:{line.number} ({record['finish_reason']})"
                    tick(1)
        except KeyboardInterrupt:
            if output is not None:
                new = len(results.done) - before
                typer.echo(
                    f"stopped: {new} new, {len(results.done)} of {len(lines)} lines are in {output}; "
                    f"the same command goes on",
                    err=True,
                )
            raise
    if cut:
        raise ConstraintError(f"{cut} answers are not complete, the first is that of {told}: raise --max-tokens")


def _answers(
    lm: Any, file: str, chunks: Sequence[Sequence[Line]], system: str | None, options: dict[str, Any],
    show_prompt: bool, decide: Sure,
) -> Iterator[tuple[Line, dict[str, Any]]]:  # fmt: skip
    """(line, its record) in the order of the lines; every prompt is checked before the first answer."""
    from likely.lm.batch import answer_batch, question_of
    from likely.lm.model import Model

    asked = [[(line, question_of(line.record, f"{file}:{line.number}")) for line in chunk] for chunk in chunks]
    if not isinstance(lm, Model):
        for line, question in (pair for batch in asked for pair in batch):
            answer = lm.ask(question.asked, system=question.system or system, **options)
            yield line, _record(line, question, answer, system, options, decide)
        return
    requests = [
        [_request(lm, file, line, question, system, options, show_prompt) for line, question in batch]
        for batch in asked
    ]
    loop = lm.loop()
    try:
        for batch, wanted in zip(asked, requests, strict=True):
            for (line, question), answer in zip(batch, answer_batch(lm, loop, wanted), strict=True):
                yield line, _record(line, question, answer, system, options, decide)
    finally:
        loop.close()


def _request(
    lm: Any, file: str, line: Line, question: Question, system: str | None, options: dict[str, Any], show_prompt: bool
) -> Any:
    from likely.cli.printing import for_terminal
    from likely.errors import DataError, ModelError

    request, rendered = lm.question(question.asked, system=question.system or system, **options)
    trial = lm.loop()
    try:
        trial.add(request)  # refuses a request that can never run
    except ModelError as error:
        raise DataError(f"{file}:{line.number}: {error}") from None
    finally:
        trial.close()
    if show_prompt:
        typer.echo(for_terminal(rendered.text, err=True), err=True)
    return request


def _record(
    line: Line, question: Question, answer: Any, system: str | None, options: dict[str, Any], decide: Sure
) -> dict[str, Any]:
    from likely.lm.batch import answer_record

    decided = decide.decide(
        answer,
        lambda other: other.ask(question.asked, system=question.system or system, task=decide.task, **options),
        fits=question.system in (None, system),
    )
    extra = {} if decide.gate is None else {name: value for name, value in decided.fields().items() if name in _DECIDED}
    return {"line": line.number, "input": line.digest, **answer_record(question, decided.answer), **extra}


_DECIDED = ("answered_by", "why", "first")
