"""likely choices: accuracy on multiple-choice questions, by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line

HINT = 'expected lines like {"question": "...", "choices": ["...", "..."], "answer": 0}'


def register(app: typer.Typer) -> None:
    app.command("choices")(choices)


def choices(
    file: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices": [...], "answer"}.')],
    model: opt.ModelOption = opt.DEFAULT,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    style: Annotated[
        Literal["answers", "letters"],
        typer.Option("--style", help="Score each choice's words, or lettered options and their letters."),
    ] = "answers",
    normalise: Annotated[
        Literal["sum", "token", "byte", "pmi"],
        typer.Option("--normalise", help="Compare sums, per token, per byte, or what the question adds (pmi)."),
    ] = "sum",
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Answer multiple-choice questions by log-probability: accuracy with its interval. A tie counts as wrong.

    Examples:

      likely choices questions.jsonl

      likely choices questions.jsonl --normalise byte -o results.jsonl

      likely choices questions.jsonl.gz --style letters --limit 100 --json
    """
    from likely.cli.printing import print_json
    from likely.errors import DataError
    from likely.io.jsonl import read_checked
    from likely.metrics.intervals import Accuracy
    from likely.scoring.choices import choice_item

    where = "stdin" if file == "-" else file
    opt.refuse_same_file(file, output)
    lines = read_checked(file, lambda line: choice_item(line.record, f"{where}:{line.number}"), limit=limit).lines
    if not lines:
        raise DataError(f"{where} holds no records: {HINT}")
    lm = opt.open_model(model, runtime=runtime, dtype=dtype, use="scoring", context=context, threads=threads)
    with lm:
        origin = opt.origin(lm)
        settings = {"style": style, "normalise": normalise}
        decided = _run(lm, origin, where, lines, output, overwrite, settings)
    accuracy = Accuracy(sum(r["correct"] for r in decided), len(decided))
    ties = sum(r["tie"] for r in decided)
    if as_json:
        print_json({**origin, "file": where, **settings, **accuracy.to_dict(), "ties": ties})
        return
    note = f"; {ties} tied at the top, counted as wrong" if ties else ""
    typer.echo(f"{where}, {style}, {normalise}: {accuracy.line()}{note}")


def _run(
    lm: Any, origin: dict[str, Any], where: str, lines: Sequence[Line], output: Path | None, overwrite: bool,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """The records of these lines: what an earlier run left in the output, and what is scored now."""
    from likely.cli.printing import progress
    from likely.io.jsonl import Results, chunked, read_lines, unfinished
    from likely.scoring.choices import choice_pairs

    def count(chunk: Sequence[Line]) -> int:
        return sum(len(choice_pairs(_item(line), **settings)) for line in chunk)

    if output is None:
        chunks = chunked(lines)
        with progress(sum(map(count, chunks)), "scoring") as tick:
            return [record for chunk in chunks for record in _records(lm, where, chunk, settings, tick)]
    header = {**origin, "kind": "choices", "template": None, "settings": settings}
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, where)
        with progress(sum(map(count, todo)), "scoring") as tick:
            for chunk in todo:
                records = _records(lm, where, chunk, settings, tick)
                results.write([r for r, line in zip(records, chunk, strict=True) if not results.is_done(line, where)])
    wanted = {line.number for line in lines}
    return [line.record for line in read_lines(output) if line.record.get("line") in wanted]


def _item(line: Line) -> Any:
    from likely.scoring.choices import choice_item

    return choice_item(line.record)


def _records(lm: Any, where: str, chunk: Sequence[Line], settings: dict[str, Any], tick: Any) -> list[dict[str, Any]]:
    from likely.errors import CapabilityError, DataError, ModelError
    from likely.scoring.choices import score_choices

    try:
        report = score_choices(lm, [_item(line) for line in chunk], progress=tick, **settings)
    except CapabilityError:
        raise
    except ModelError:
        for line in chunk:  # which one does the model refuse?
            try:
                score_choices(lm, [_item(line)], **settings)
            except ModelError as error:
                raise DataError(f"{where}:{line.number}: {error}") from None
        raise
    return [
        {
            "line": line.number,
            "input": line.digest,
            **({"id": line.record["id"]} if "id" in line.record else {}),
            **result.to_dict(),
        }
        for line, result in zip(chunk, report.results, strict=True)
    ]
