"""likely grade: is each answer right?  By rule, or by a person with one key per answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags
from likely.cli.file_run import FileRun, check_output, input_name
from likely.cli.keys import read_key, unbuffered
from likely.cli.printing import print_json
from likely.errors import ConstraintError, DataError
from likely.io.jsonl import Line, Results, read_lines, text_field
from likely.metrics.grading import choices_of, graded, grader
from likely.metrics.intervals import Accuracy

KEYS = "y right, n wrong, s skip, u undo, q quit"


@flags.grouped
def grade(
    out: flags.FileFlags,
    file: Annotated[str, typer.Argument(help="Answers file that `likely ask FILE -o` wrote.")],
    by: Annotated[
        Literal["exact", "number", "choice", "regex", "person"],
        typer.Option("--by", help="How: see above; person asks you, one key per answer."),
    ],
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="regex: for all answers, instead of the references.")
    ] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Grade answers: each line gets "correct" 0 or 1; prints the accuracy of those given, with its interval.

    Answers that were kept back (ask --at-least, --risk) are graded, too, and counted apart.

    exact: same words; number: same last number; choice: first letter that stands alone, or the option's words;
    regex: the reference (or --pattern) occurs; person: you press y, n, s(kip), u(ndo) or q(uit).

    Examples:

      likely grade answers.jsonl --by number

      likely grade answers.jsonl --by exact -o graded.jsonl

      likely grade answers.jsonl --by person -o graded.jsonl
    """
    from likely import __version__

    if by == "person" and out.output is None:
        raise typer.BadParameter("a person's decisions are kept: give -o graded.jsonl", param_hint="--output")
    if by == "person" and pattern is not None:
        raise typer.BadParameter("--pattern belongs to --by regex", param_hint="--pattern")
    check_output(file, out.output)
    is_right = None if by == "person" else grader(by, pattern)
    where = input_name(file)
    answers, every = read_answers(file, where)
    lines = FileRun[None](where, every[: out.limit], {}, out.output, out.overwrite)
    header = {"likely": __version__, "kind": "grade", "graded_by": by, "pattern": pattern, "answers": answers}
    if is_right is None:
        with Results(out.output, header, overwrite=out.overwrite) as results, unbuffered():
            by_person(lines.lines, where, results, read_key, every=every)
    else:
        # before there is a file: what cannot be graded leaves none behind
        ready = {line.number: _by_rule(line, where, by, is_right) for line in lines.lines}
        lines.run(
            header, lambda chunks, _: ((line, ready[line.number]) for chunk in chunks for line in chunk), stdout=False
        )
    graded = lines.records()
    given = [record for record in graded if not record.get("abstained")]
    kept_back = [record for record in graded if record.get("abstained")]
    accuracy = Accuracy(sum(record["correct"] for record in given), len(given))
    right = sum(record["correct"] for record in kept_back)
    left = len(lines.lines) - len(graded)
    if as_json:
        apart = {"abstained": len(kept_back), "abstained_correct": right}
        print_json({"file": where, "graded_by": by, **accuracy.to_dict(), **apart, "not_graded": left})
        return
    notes = [f"; {len(kept_back)} abstained, {right} of them would have been right"] if kept_back else []
    notes += [f"; {left} not graded yet"] if left else []
    typer.echo(f"{where}, {by}: {accuracy.line()}{''.join(notes)}")


def read_answers(file: str, where: str) -> tuple[dict[str, Any], list[Line]]:
    """(header, answer lines) of an answers file."""
    header: dict[str, Any] | None = None
    lines: list[Line] = []
    for line in read_lines(file):
        if header is None:
            header = line.record
            if header.get("kind") != "ask":
                raise DataError(
                    f'{where}:{line.number}: not the header of an answers file ("kind": "ask"). '
                    f"Make one with: likely ask questions.jsonl -o answers.jsonl"
                )
            continue
        for name in ("question", "text"):
            text_field(line, name, where)
        lines.append(line)
    if header is None or not lines:
        raise DataError(f"{where} holds no answers: make some with: likely ask questions.jsonl -o answers.jsonl")
    return header, lines


def _by_rule(line: Line, where: str, by: str, is_right: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    choices_of(line.record, f"{where}:{line.number}")
    try:
        return graded_record(line, is_right(line.record), by)
    except (ValueError, ConstraintError) as error:
        raise DataError(f"{where}:{line.number}: {error}") from None


def graded_record(line: Line, correct: bool, by: str) -> dict[str, Any]:
    """The graded answer, and its place in the answers file."""
    return {**graded(line.record, correct, by), "line": line.number, "input": line.digest}


# --- a person ---------------------------------------------------------------------------------------------------------


def by_person(
    lines: Sequence[Line], where: str, results: Results, key: Callable[[], str], *, every: Sequence[Line]
) -> None:
    """Ask about every line that has no decision; each decision is in the file before the next question is shown.

    A skipped line comes again in the next run.  Undo goes back over skips and decisions, those of earlier runs, too
    (`every` line of the file may come back).
    """
    by_number = {line.number: line for line in every}
    place = {line.number: i for i, line in enumerate(every, 1)}
    todo = [line for line in lines if not results.is_done(line, where)]
    skipped: list[tuple[int, Line]] = []  # (decisions in the file when it was skipped, line)
    while todo:
        line = todo[0]
        _show(line, place[line.number], len(every))
        answer = _ask_key(key)
        if answer in ("q", ""):
            return
        if answer in ("y", "n"):
            results.write([graded_record(line, answer == "y", "person")])
            todo.pop(0)
        elif answer == "s":
            skipped.append((len(results.done), todo.pop(0)))
        elif skipped and skipped[-1][0] == len(results.done):
            todo.insert(0, skipped.pop()[1])
        elif (number := results.take_back()) is None:
            typer.echo("nothing to undo")
        elif number in by_number:
            todo.insert(0, by_number[number])


def _show(line: Line, place: int, total: int) -> None:
    record = line.record
    reference = record.get("reference")
    name = f"  {record['id']}" if "id" in record else ""
    typer.echo(f"\n--- {place} of {total}{name}")
    typer.echo(f"Question:  {_printable(record['question'])}")
    for number, choice in enumerate(record.get("choices") or ()):
        typer.echo(f"           {chr(ord('A') + number)}. {_printable(str(choice))}")
    typer.echo(f"Answer:    {_printable(record['text'])}")
    if reference is not None:
        typer.echo(f"Reference: {_printable(reference if isinstance(reference, str) else repr(reference))}")


def _printable(text: str) -> str:
    """Without control characters: a model's text must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _ask_key(key: Callable[[], str]) -> str:
    typer.echo(f"Right? ({KEYS}) ", nl=False)
    while True:
        pressed = key().lower()
        if pressed in ("y", "n", "s", "u", "q", ""):
            typer.echo(pressed or "q")
            return pressed
