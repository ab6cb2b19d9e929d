"""likely ask FILE: every question of a file, answered in batches, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line
    from likely.lm.confidence import BoundPolicy
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel

HINT = 'expected lines like {"question": "...", "answer": "..."}'


def is_questions_file(argument: str | None) -> bool:
    """Whether the argument of `ask` names a file of questions: one word that ends in .jsonl or .jsonl.gz."""
    return argument is not None and argument.endswith((".jsonl", ".jsonl.gz")) and not any(map(str.isspace, argument))


def read_questions(file: str, limit: int | None) -> list[Line]:
    """All lines, checked before the model is loaded."""
    from likely.errors import DataError
    from likely.io.jsonl import read_checked
    from likely.lm.questions import question_of

    lines = read_checked(file, lambda line: question_of(line.record, f"{file}:{line.number}"), limit=limit).lines
    if not lines:
        raise DataError(f"{file} holds no records: {HINT}")
    return lines


def ask_file(
    lm: Model | RemoteModel,
    file: str,
    lines: Sequence[Line],
    *,
    system: str | None,
    options: dict[str, Any],
    output: Path | None,
    overwrite: bool,
    show_prompt: bool,
    bound: BoundPolicy,
) -> None:
    """Answer every line that has no answer in `output` yet."""
    from likely.cli.printing import progress
    from likely.errors import ConstraintError
    from likely.io.hashes import fingerprint
    from likely.io.jsonl import Results, unfinished
    from likely.lm.questions import BATCH

    if options.get("n", 1) != 1 or options.get("beams"):
        raise ValueError("each question is answered once: drop n= and beams=")
    lm.preview("?", **options)  # wrong settings are refused before the output carries them in its header
    settings = {**options, "system": system}
    header = {
        **opt.origin(lm), "kind": "ask", "template": lm.template_hash, "settings": settings,
        "settings_hash": fingerprint(settings), **bound.describe(),
    }  # fmt: skip
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, file, size=BATCH)
        before, cut, told = len(results.done), 0, ""
        try:
            with progress(sum(map(len, todo)), "asking", unit="questions") as tick:
                for line, record in _answers(lm, file, todo, system, options, show_prompt, bound):
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
    lm: Model | RemoteModel, file: str, chunks: Sequence[Sequence[Line]], system: str | None, options: dict[str, Any],
    show_prompt: bool, bound: BoundPolicy,
) -> Iterator[tuple[Line, dict[str, Any]]]:  # fmt: skip
    """(line, its record) in the order of the lines; every prompt is checked before the first answer."""
    from likely.cli.printing import for_terminal
    from likely.errors import DataError, ModelError
    from likely.lm.questions import answer_record, question_of

    lines = [line for chunk in chunks for line in chunk]
    questions = [question_of(line.record, f"{file}:{line.number}") for line in lines]
    for line, question in zip(lines, questions, strict=True):
        try:
            seen = lm.preview(question.asked, system=question.system or system, **options)
        except ModelError as error:
            raise DataError(f"{file}:{line.number}: {error}") from None
        if show_prompt and seen:
            typer.echo(for_terminal(seen, err=True), err=True)
    answers = lm.ask_each(questions, system=system, **options)
    for line, question, answer in zip(lines, questions, answers, strict=True):
        record = answer_record(question, answer, decided=bound.rule is not None)
        yield line, {"line": line.number, "input": line.digest, **record}
