"""likely risk: a probability for each row of a table, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags, options
from likely.cli.file_run import Advance, FileRun, check_output, input_name
from likely.cli.printing import print_json, print_table, with_interval
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line

if TYPE_CHECKING:
    from likely.prompting.risk.task import TableTask


@flags.grouped
def risk(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    table: Annotated[str, typer.Argument(help="CSV (.tsv, .jsonl, .gz, too) with a header line.")],
    task: Annotated[str, typer.Option("--task", help="A ready task (adult) or a TOML file that describes one.")],
    style: Annotated[
        Literal["word", "mc", "numeric", "cot"],
        typer.Option("--style", help="Answers in words, lettered options, digits, or a reasoned text."),
    ] = "word",
    subgroup: Annotated[
        str | None, typer.Option("--subgroup", metavar="COLUMN", help="A table of groups by this column.")
    ] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Show the choices in one order only (no bias diagnosis).")
    ] = False,
    number: Annotated[
        Literal["expected", "official"],
        typer.Option("--number", help="With --style numeric: the mean over the first digit, or two likeliest digits."),
    ] = "expected",
    few_shot: Annotated[int, typer.Option("--few-shot", min=0, help="Worked examples in front of each row.")] = 0,
    examples: Annotated[
        str | None, typer.Option("--examples", metavar="TABLE", help="Where they are taken from (not scored).")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    seed: flags.SeedOption = 0,
    as_json: flags.JsonOption = False,
) -> None:
    """A risk for each row: the model's probability of the outcome. With the outcome in the table: how good it is.

    Examples:

      likely risk people.csv --task adult --limit 200

      likely risk people.csv --task adult -o scores.jsonl --subgroup sex

      likely risk patients.csv --task readmission.toml --style mc --json
    """
    from likely.prompting.risk.file import read_table
    from likely.prompting.risk.prompts import WORKED, context_of, sample_examples, worked_row
    from likely.prompting.risk.report import summarise
    from likely.prompting.risk.scorer import RiskScorer
    from likely.prompting.risk.task import load_task
    from likely.prompting.risk.text import row_text

    check_output(table, out.output)
    asked = load_task(task)
    where = input_name(table)
    lines = FileRun[None](where, read_table(table, limit=out.limit), {}, out.output, out.overwrite)
    for line in lines.lines:  # before a model is loaded
        try:
            row_text(line.record, asked.columns)
            asked.outcome(line.record)
        except DataError as error:
            raise DataError(f"{where}: row {line.number}: {error}") from None
    if subgroup is not None and subgroup not in lines.lines[0].record:
        raise typer.BadParameter(f'the table has no column "{subgroup}"', param_hint="--subgroup")
    if examples is not None and not few_shot:
        raise typer.BadParameter("say how many of the worked examples to show: --few-shot", param_hint="--examples")
    if few_shot and examples is None:
        raise typer.BadParameter("give the table with worked examples, too: --examples", param_hint="--few-shot")
    if few_shot and style == "cot":
        raise typer.BadParameter("worked examples hold no reasoning: not with --style cot", param_hint="--few-shot")
    if examples is not None and options.same_file(table, Path(examples)):
        raise typer.BadParameter("a row would be its own example: take another table", param_hint="--examples")
    shots = _examples(examples, asked, few_shot) if few_shot and examples else []
    row = worked_row([line.record for line in lines.lines], sample_examples(shots, asked, few_shot, seed=seed), asked)
    if row is not None:
        raise DataError(f"{where}: row {lines.lines[row].number} {WORKED}")
    with model.open("scoring") as lm:
        scorer = RiskScorer(
            lm, asked, style=style, order_correction=not one_order, few_shot=few_shot, examples=shots, seed=seed,
            number=number, chat=chat,
        )  # fmt: skip
        settings = {
            "task": asked.name, "task_sha256": asked.digest(), "style": style, "orders": 1 if one_order else "all",
            "number": number if style == "numeric" else None, "few_shot": few_shot, "chat": chat,
            "examples_sha256": fingerprint(shots) if shots else None, "seed": seed if few_shot else None,
            "context": context_of(lm),
        }  # fmt: skip
        origin = options.origin(lm)

        def score_chunk(chunk: Sequence[Line], advance: Advance) -> list[dict[str, Any]]:
            scores = scorer.score([line.record for line in chunk])
            advance(len(chunk))
            return [scores.record(i, asked.label(line.record)) for i, line in enumerate(chunk)]

        lines.run(
            {**origin, "kind": "risk", "template": lm.template_hash if chat else None, "settings": settings},
            lines.by_chunks(score_chunk), label="scoring", unit="rows", stdout=False,
        )  # fmt: skip
    rows = {line.number: line.record for line in lines.lines}
    records = lines.records()
    summary = summarise(records, [rows[r["line"]] for r in records], asked, subgroup=subgroup)
    if as_json:
        print_json({**origin, "file": where, **settings, **summary})
        return
    _print(where, style, asked, summary)


def _examples(path: str, task: TableTask, count: int) -> list[dict[str, Any]]:
    """Rows to draw the worked examples from: those with an outcome, `count` at least."""
    from likely.prompting.risk.file import read_table
    from likely.prompting.risk.text import row_text

    found = []
    for line in read_table(path):
        try:
            row_text(line.record, task.columns)
            if task.outcome(line.record) is not None:
                found.append(line.record)
        except DataError as error:
            raise DataError(f"{path}: row {line.number}: {error}") from None
    if len(found) < count:
        raise DataError(f'{path}: {count} worked examples are wanted, {len(found)} rows have a "{task.target}"')
    return found


def _print(where: str, style: str, task: TableTask, found: dict[str, Any]) -> None:
    """The summary for people."""
    if not found["n"]:
        typer.echo(f"{where}: none of {found['rows']} rows has a probability")
        return
    lines = [f'{where}, {style}: {found["n"]} of {found["rows"]} rows, risk of "{task.positive.text}"']
    if "brier" not in found:
        known = "no outcomes of 0 or 1" if "outcomes_between" in found else "no outcomes"
        lines.append(f"  mean {found['mean']:.3f}, std {found['std']:.3f}; {known} in the table, nothing to check")
    else:
        names = {
            "auc": "AUC", "ece_top": "ECE (likelier class)", "ece_positive": "ECE (of the risk)", "brier": "Brier",
            "mean": "mean risk", "base_rate": "base rate", "std": "std of risks",
        }  # fmt: skip
        for key, label in names.items():
            if found.get(key) is None:
                lines.append(f"  {label:22} {found['note']}")
            else:
                lines.append(f"  {label:22} {with_interval(found[key], found[f'{key}_interval'])}")
    if "outcomes_between" in found and "brier" in found:
        left = found["outcomes_between"]
        lines.append(f"  {left} rows with an outcome between 0 and 1 are left out: the others are measured")
    if "order_bias_line" in found:
        lines.append(f"  {found['order_bias_line']}")
    if found["parse_rate"] < 1:
        lines.append(f"  {found['parse_rate']:.1%} of the rows have a probability; the others are left out")
    for line in lines:
        typer.echo(line)
    if found.get("subgroups"):
        rows = [
            (
                group["group"][:20], group["n"], f"{group['base_rate']:.3f}", f"{group['mean']:.3f}",
                *(
                    "one outcome only" if group[key] is None else with_interval(group[key], group[f"{key}_interval"])
                    for key in ("ece_positive", "auc")
                ),
                f"{group['selected']:.3f}",
            )
            for group in found["subgroups"]
        ]  # fmt: skip
        print_table(("group", "n", "base", "mean", "ECE", "AUC", "selected"), rows)
