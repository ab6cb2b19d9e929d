"""likely choices: accuracy on multiple-choice questions, by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, read_file
from likely.cli.printing import print_json
from likely.io.jsonl import Line
from likely.metrics.intervals import Accuracy


@flags.grouped
def choices(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"question", "choices": [...], "answer"}.')],
    style: Annotated[
        Literal["answers", "letters"],
        typer.Option("--style", help="Score each choice's words, or lettered options and their letters."),
    ] = "answers",
    normalise: Annotated[
        Literal["sum", "token", "byte", "pmi"],
        typer.Option("--normalise", help="Compare sums, per token, per byte, or what the question adds (pmi)."),
    ] = "sum",
    as_json: flags.JsonOption = False,
) -> None:
    """Answer multiple-choice questions by log-probability: accuracy with its interval. A tie counts as wrong.

    Examples:

      likely choices questions.jsonl

      likely choices questions.jsonl --normalise byte -o results.jsonl

      likely choices questions.jsonl.gz --style letters --limit 100 --json
    """
    from likely.scoring.choices import choice_item, choice_pairs, score_choices

    lines = read_file(
        file, lambda line, where: choice_item(line.record, f"{where}:{line.number}"), out,
        expected='lines like {"question": "...", "choices": ["...", "..."], "answer": 0}',
    )  # fmt: skip
    settings: dict[str, Any] = {"style": style, "normalise": normalise}

    with model.open("scoring") as lm:

        def score_chunk(chunk: Sequence[Line], advance: Advance) -> list[dict[str, Any]]:
            report = score_choices(lm, [lines.item(line) for line in chunk], progress=advance, **settings)
            return [
                {**({"id": line.record["id"]} if "id" in line.record else {}), **result.to_dict()}
                for line, result in zip(chunk, report.results, strict=True)
            ]

        origin = options.origin(lm)
        lines.run(
            {**origin, "kind": "choices", "template": None, "settings": settings}, lines.by_chunks(score_chunk),
            label="scoring", unit="answers", count=lambda line: len(choice_pairs(lines.item(line), **settings)),
            stdout=False,
        )  # fmt: skip
    records = lines.records()
    accuracy = Accuracy(sum(r["correct"] for r in records), len(records))
    ties = sum(r["tie"] for r in records)
    if as_json:
        print_json({**origin, "file": lines.where, **settings, **accuracy.to_dict(), "ties": ties})
        return
    chance = sum(1 / len(r["sequence_logprobs"]) for r in records) / max(1, len(records))
    if (style, normalise) == ("answers", "sum") and accuracy.interval[0] <= chance:
        typer.echo(
            "no better than chance: sums favour answers that are short or common; compare --normalise pmi (what the "
            "question adds) or byte", err=True,
        )  # fmt: skip
    note = f"; {ties} tied at the top, counted as wrong" if ties else ""
    typer.echo(f"{lines.where}, {style}, {normalise}: {accuracy.line()}{note}")
