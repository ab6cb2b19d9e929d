"""likely risk: a probability for each row of a table, and how far it can be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.io.jsonl import Line
    from likely.prompting.risk.scorer import RiskScorer, RiskScores
    from likely.prompting.risk.task import TableTask


def register(app: typer.Typer) -> None:
    app.command("risk")(risk)


def risk(
    table: Annotated[str, typer.Argument(help="CSV (.tsv, .jsonl, .gz, too) with a header line.")],
    task: Annotated[str, typer.Option("--task", help="A ready task (adult) or a TOML file that describes one.")],
    model: opt.ModelOption = opt.DEFAULT,
    style: Annotated[
        Literal["word", "mc", "numeric", "cot"],
        typer.Option("--style", help="Answers in words, lettered options, digits, or a reasoned text."),
    ] = "word",
    output: opt.OutputOption = None,
    overwrite: opt.OverwriteOption = False,
    limit: opt.LimitOption = None,
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
    seed: opt.SeedOption = 0,
    runtime: opt.RuntimeOption = None,
    dtype: opt.DtypeOption = None,
    context: opt.ContextOption = None,
    threads: opt.ThreadsOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """A risk for each row: the model's probability of the outcome. With the outcome in the table: how good it is.

    Examples:

      likely risk people.csv --task adult --limit 200

      likely risk people.csv --task adult -o scores.jsonl --subgroup sex

      likely risk patients.csv --task readmission.toml --style mc --json
    """
    from likely.cli.printing import print_json
    from likely.errors import DataError
    from likely.prompting.risk.file import read_table
    from likely.prompting.risk.prompts import WORKED, sample_examples, worked_row
    from likely.prompting.risk.scorer import RiskScorer
    from likely.prompting.risk.task import load_task
    from likely.prompting.risk.text import row_text

    opt.refuse_same_file(table, output)
    asked = load_task(task)
    lines = read_table(table, limit=limit)
    where = "stdin" if table == "-" else table
    for line in lines:  # before a model is loaded
        try:
            row_text(line.record, asked.columns)
            asked.outcome(line.record)
        except DataError as error:
            raise DataError(f"{where}: row {line.number}: {error}") from None
    if subgroup is not None and subgroup not in lines[0].record:
        raise typer.BadParameter(f'the table has no column "{subgroup}"', param_hint="--subgroup")
    if examples is not None and not few_shot:
        raise typer.BadParameter("say how many of the worked examples to show: --few-shot", param_hint="--examples")
    if few_shot and examples is None:
        raise typer.BadParameter("give the table with worked examples, too: --examples", param_hint="--few-shot")
    if few_shot and style == "cot":
        raise typer.BadParameter("worked examples hold no reasoning: not with --style cot", param_hint="--few-shot")
    if examples is not None and opt.same_file(table, Path(examples)):
        raise typer.BadParameter("a row would be its own example: take another table", param_hint="--examples")
    shots = _examples(examples, asked, few_shot) if few_shot and examples else []
    row = worked_row([line.record for line in lines], sample_examples(shots, asked, few_shot, seed=seed), asked)
    if row is not None:
        raise DataError(f"{where}: row {lines[row].number} {WORKED}")
    lm = opt.open_model(model, runtime=runtime, dtype=dtype, use="scoring", context=context, threads=threads)
    with lm:
        scorer = RiskScorer(
            lm, asked, style=style, order_correction=not one_order, few_shot=few_shot, examples=shots, seed=seed,
            number=number, chat=chat,
        )  # fmt: skip
        settings = {
            "task": asked.name, "task_sha256": asked.digest(), "style": style, "orders": 1 if one_order else "all",
            "number": number if style == "numeric" else None, "few_shot": few_shot, "chat": chat,
            "examples_sha256": _digest(shots) if shots else None, "seed": seed if few_shot else None,
            "context": getattr(getattr(lm, "runtime", None), "context_length", None),
        }  # fmt: skip
        origin = opt.origin(lm)
        header = {**origin, "kind": "risk", "template": lm.template_hash if chat else None, "settings": settings}
        records = _run(scorer, asked, header, where, lines, output, overwrite)
    summary = _summary(records, lines, asked, subgroup)
    if as_json:
        print_json({**origin, "file": where, **settings, **summary})
        return
    for text in _said(where, style, asked, summary):
        typer.echo(text)


def _examples(path: str, task: TableTask, count: int) -> list[dict[str, Any]]:
    """Rows to draw the worked examples from: those with an outcome, `count` at least."""
    from likely.errors import DataError
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


def _run(
    scorer: RiskScorer, task: TableTask, header: dict[str, Any], where: str, lines: Sequence[Line],
    output: Path | None, overwrite: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """One record per row: what an earlier run left in the output, and what is scored now."""
    from likely.cli.printing import progress
    from likely.io.jsonl import Results, chunked, read_lines, unfinished

    if output is None:
        with progress(len(lines), "scoring", unit="rows") as tick:
            return [record for chunk in chunked(lines) for record in _records(scorer, task, chunk, tick)]
    with Results(output, header, overwrite=overwrite) as results:
        todo = unfinished(lines, results, where)
        with progress(sum(map(len, todo)), "scoring", unit="rows") as tick:
            for chunk in todo:
                made = _records(scorer, task, chunk, tick)
                results.write([r for r, line in zip(made, chunk, strict=True) if not results.is_done(line, where)])
    wanted = {line.number for line in lines}
    return [line.record for line in read_lines(output) if line.record.get("line") in wanted]


def _records(scorer: RiskScorer, task: TableTask, chunk: Sequence[Line], tick: Any) -> list[dict[str, Any]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = scorer.score([line.record for line in chunk])
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            typer.echo(f"Warning: {warning.message}", err=True)
    tick(len(chunk))
    return [_record(scores, i, line, task) for i, line in enumerate(chunk)]


def _record(scores: RiskScores, i: int, line: Line, task: TableTask) -> dict[str, Any]:
    known = bool(scores.parsed[i])
    value = float(scores.risk[i]) if known else None
    outcome = task.label(line.record)
    return {
        "line": line.number,
        "input": line.digest,
        "risk": value,
        "probs": [1 - value, value] if value is not None else None,
        "label": int(outcome) if outcome in (0, 1) else None,
        "per_order": scores.per_order[i].tolist() if known else None,
        "choice_probs": scores.choice_probs[i].tolist() if known and scores.choice_probs is not None else None,
        "mass": scores.mass[i].tolist(),
        **({"text": scores.texts[i]} if scores.texts is not None else {}),
    }


def _summary(
    records: Sequence[dict[str, Any]], lines: Sequence[Line], task: TableTask, subgroup: str | None
) -> dict[str, Any]:
    import numpy as np

    from likely.prompting.risk.prompts import choice_orders
    from likely.prompting.risk.report import order_bias, risk_report, subgroup_report

    risks = np.array([np.nan if r["risk"] is None else r["risk"] for r in records])
    if np.isnan(risks).all():
        return {"n": 0, "rows": len(risks), "parse_rate": 0.0}
    out: dict[str, Any] = {"rows": len(risks)}
    by_number = {line.number: line.record for line in lines}
    between = sum(task.label(by_number[r["line"]]) not in (None, 0, 1) for r in records)
    if between:
        out["outcomes_between"] = between
    known = [r for r in records if r["risk"] is not None]
    if known[0]["choice_probs"] is not None and len(known[0]["per_order"]) > 1:
        probs = np.array([r["choice_probs"] for r in known])
        bias = order_bias(probs, choice_orders(len(task.choices)), [c.value for c in task.choices])
        if bias is not None:
            out.update(order_bias=bias.order_bias, first_choice=bias.first, order_bias_line=bias.line)
    labelled = np.array([r["label"] is not None for r in records])
    usable = labelled & ~np.isnan(risks)
    if not usable.any():
        found = risks[~np.isnan(risks)]
        return {
            **out, "n": len(found), "parse_rate": len(found) / len(risks), "mean": float(found.mean()),
            "std": float(found.std()),
        }  # fmt: skip
    y = np.array([r["label"] if r["label"] is not None else 0 for r in records])
    out.update(risk_report(risks[labelled], y[labelled]))
    if subgroup is not None:
        groups = [by_number[r["line"]].get(subgroup, "") for r, kept in zip(records, usable, strict=True) if kept]
        out["subgroups"] = subgroup_report(risks[usable], y[usable], groups)
    return out


def _said(where: str, style: str, task: TableTask, found: dict[str, Any]) -> list[str]:
    """The summary for people."""
    if not found["n"]:
        return [f"{where}: none of {found['rows']} rows has a probability"]
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
                low, high = found[f"{key}_interval"]
                lines.append(f"  {label:22} {found[key]:.3f} [{low:.3f}, {high:.3f}]")
    if "outcomes_between" in found and "brier" in found:
        left = found["outcomes_between"]
        lines.append(f"  {left} rows with an outcome between 0 and 1 are left out: the others are measured")
    if "order_bias_line" in found:
        lines.append(f"  {found['order_bias_line']}")
    if found["parse_rate"] < 1:
        lines.append(f"  {found['parse_rate']:.1%} of the rows have a probability; the others are left out")
    for i, group in enumerate(found.get("subgroups", ())):
        if i == 0:
            lines.append(f"  {'group':20} {'n':>5} {'base':>6} {'mean':>6}  {'ECE':22} {'AUC':22} selected")
        lines.append(
            f"  {group['group'][:20]:20} {group['n']:>5} {group['base_rate']:>6.3f} {group['mean']:>6.3f}  "
            f"{_with(group, 'ece_positive'):22} {_with(group, 'auc'):22} {group['selected']:.3f}"
        )
    return lines


def _with(line: dict[str, Any], key: str) -> str:
    if line[key] is None:
        return "one outcome only"
    low, high = line[f"{key}_interval"]
    return f"{line[key]:.3f} [{low:.3f}, {high:.3f}]"


def _digest(rows: Sequence[Any]) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
