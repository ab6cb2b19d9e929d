"""likely calibrate: fit a calibrator to labelled lines, measure, and draw the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, options
from likely.cli.help import VerbCommand
from likely.cli.printing import print_json, print_table, with_interval
from likely.io.hashes import file_sha256
from likely.io.whole_file import check_target, write_for_user

if TYPE_CHECKING:
    from likely.calibration.calibrator import Calibrator
    from likely.calibration.labelled import Labelled

EXAMPLES = """Make "90 % sure" mean 90 %: fit a calibrator to labelled lines, measure, plot.

Examples:

  likely ask questions.jsonl -o answers.jsonl && likely grade answers.jsonl --by exact -o graded.jsonl

  likely calibrate fit graded.jsonl && likely ask "What is the capital of France?"

  likely calibrate fit labelled.jsonl --method isotonic -o cal.json

  likely calibrate eval others.jsonl --calibrator cal.json --json

  likely calibrate plot labelled.jsonl -o reliability.png

Lines: {"probs": [...], "label": 0}, {"logits": [...], "label": 0} or {"confidence": 0.9, "correct": 1}; or a file that
likely grade, choices or score wrote.
"""

FileArgument = Annotated[str, typer.Argument(help='Labelled lines (.jsonl or .jsonl.gz); "-": standard input.')]
AppliedOption = Annotated[
    Path | None, typer.Option("--calibrator", help="Apply this calibrator first (a file of calibrate fit).")
]
KeptTaskOption = Annotated[
    str | None, typer.Option("--task", help="Apply the calibrator that calibrate fit --task kept for these answers.")
]
SHOWN = ("accuracy", "ece", "nll", "brier", "auroc")
verbs = typer.Typer(no_args_is_help=True, help=EXAMPLES, rich_markup_mode=None)


@verbs.command("fit", cls=VerbCommand)
def fit(
    file: FileArgument,
    method: Annotated[
        str,
        typer.Option("--method", help="auto (lowest cross-validated NLL of a few), answer, {recalibrators}."),
    ] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the calibrator.")] = None,
    overwrite: flags.OverwriteOption = False,
    seed: flags.SeedOption = 0,
    task: Annotated[str, typer.Option("--task", help="Name of the task, for ask --task.")] = "default",
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Fit a calibrator to all lines; how well it does is told by maps that were each fitted without a tenth of them.

    Files of `likely grade`, `choices` and `score` name their model, template and settings: the calibrator is bound to
    them, and one for graded answers is kept, so that `likely ask` and `likely chat` use it by themselves.  Plain lines
    give an unbound one, which is used where it is named (--calibrator).

    Examples:

      likely calibrate fit graded.jsonl

      likely calibrate fit labelled.jsonl --method temperature -o cal.json
    """
    from likely.calibration.calibrator import fit_calibrator
    from likely.calibration.labelled import read_labelled
    from likely.calibration.store import keep, place
    from likely.calibration.threshold import risk_plan

    options.refuse_same_file(file, output)
    if output is not None:
        check_target(output)
        options.refuse_existing(output, overwrite)
    labelled = read_labelled(file, limit=limit)
    kept = labelled.kind == "answer" and labelled.origin is not None
    if output is None and not kept:
        raise typer.BadParameter(
            "these lines do not say which model they are of: give -o cal.json", param_hint="--output"
        )
    calibrator = fit_calibrator(labelled, method=method, seed=seed, file=Path(file).name)
    calibrator.about["sha256"] = _sha256(file)
    if kept:
        assert calibrator.binding is not None
        place(calibrator.binding, task)  # refuses a wrong name before anything is written
    if output is not None:
        calibrator.save(output)
    where = [str(path) for path in (output, keep(calibrator, task) if kept else None) if path is not None]
    if as_json:
        print_json({
            **calibrator.about, "method": calibrator.recalibrator.name, "written": where,
            "binding": calibrator.binding, "before": calibrator.before, "after": calibrator.after,
            "risks": risk_plan(calibrator),
        })  # fmt: skip
        return
    about = calibrator.about
    name = calibrator.recalibrator.name
    typer.echo(f"{name}, fitted to {about['n']} lines; each was judged by a map fitted without it:")
    _table([("before", calibrator.before), ("after", calibrator.after)])
    for line in risk_plan(calibrator):
        typer.echo(f"  --risk {line['risk']:<5g} {_promised(line)}")
    for path in where:
        typer.echo(f"written: {path}")


@verbs.command("eval", cls=VerbCommand)
def evaluate(
    file: FileArgument,
    calibrator: AppliedOption = None,
    task: KeptTaskOption = None,
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Accuracy, calibration and ranking, each with a 95 % interval (bootstrap over lines).

    Measured is what the file says: of graded answers the confidence that they were given with, or p(answer | question)
    where they had none.  Noise pushes calibration errors up, and resampling does so again: their intervals take that
    push off.

    Examples:

      likely calibrate eval labelled.jsonl

      likely calibrate eval others.jsonl --calibrator cal.json --json
    """
    from likely.metrics.summary import report

    labelled = _read(file, limit)
    applied = _applied(labelled, calibrator, task)
    found = report(_predictions(labelled, applied, file), labelled.labels)
    measured = applied[0] if applied else _measured(labelled)
    if as_json:
        print_json({"file": file, "calibrator": applied[0] if applied else None, "measured": measured, **found})
        return
    typer.echo(f"{file}: {found['n']} lines of {labelled.kind}: {measured}")
    _table([("", found)])
    for note in found.get("notes") or ():
        typer.echo(note)


@verbs.command("plot", cls=VerbCommand)
def plot(
    file: FileArgument,
    calibrator: AppliedOption = None,
    task: KeptTaskOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .png, .svg or .pdf file; without: in the terminal.")
    ] = None,
    overwrite: flags.OverwriteOption = False,
    bins: Annotated[int, typer.Option("--bins", min=1, help="Bins of the diagram.")] = 15,
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Reliability diagram: how often answers of each confidence are right.

    Examples:

      likely calibrate plot labelled.jsonl

      likely calibrate plot others.jsonl --calibrator cal.json -o reliability.png
    """
    from likely.metrics.diagram import as_text, draw, reliability
    from likely.show.plot import FORMATS, render

    if output is not None:
        check_target(output, FORMATS)
        options.refuse_existing(output, overwrite)
    labelled = _read(file, limit)
    shown = {"as given": reliability(*labelled.outcomes(labelled.as_given()), bins=bins)}
    if applied := _applied(labelled, calibrator, task):
        shown["calibrated"] = reliability(*labelled.outcomes(_predictions(labelled, applied, file)), bins=bins)
    if output is not None:
        write_for_user(output, render(draw(shown), output.suffix))
        typer.echo(f"wrote {output}", err=True)
    if as_json:
        print_json({"file": file, "diagrams": {name: one.to_dict() for name, one in shown.items()}})
    elif output is None:
        for name, one in shown.items():
            typer.echo(f"{file}, {name}\n{as_text(one)}")


def _read(file: str, limit: int | None) -> Labelled:
    from likely.calibration.labelled import read_labelled

    return read_labelled(file, limit=limit)


def _measured(labelled: Labelled) -> str:
    """What the file itself says of its lines."""
    if labelled.kind != "answer":
        return "as given"
    return "p(answer | question)" if labelled.stated is None else "the confidence in the file"


def _applied(labelled: Labelled, file: Path | None, task: str | None) -> tuple[str, Calibrator] | None:
    """(its name, the calibrator that was asked for), by file or by the task that it was kept for."""
    from likely.calibration.calibrator import Calibrator, binding
    from likely.calibration.store import accept, find, why_none
    from likely.errors import DataError

    if file is not None and task is not None:
        raise typer.BadParameter("give one of --calibrator and --task", param_hint="--task")
    bound = None if labelled.origin is None else binding(labelled.origin)
    if file is not None:
        found = Calibrator.load(file)
        return str(file), found if bound is None else accept(found, bound, str(file))
    if task is None:
        return None
    if bound is None:
        raise DataError("these lines do not say which model they are of: name the calibrator's file (--calibrator)")
    kept = find(bound, task)
    if kept is None:
        raise DataError(why_none(bound, task))
    return f"task {task}", kept


def _predictions(labelled: Labelled, applied: tuple[str, Calibrator] | None, file: str) -> Any:
    if applied is None:
        return labelled.as_given()
    name, found = applied
    if found.about.get("sha256") is not None and found.about["sha256"] == _sha256(file):
        typer.echo(
            f"Warning: {name} was fitted to these lines: the figures are too good; calibrate fit printed those of "
            f"maps that were fitted without the line they judge", err=True,
        )  # fmt: skip
    return found.predict(labelled)


def _promised(line: Mapping[str, Any]) -> str:
    """What the labels certify for one risk, or what is missing."""
    if line["threshold"] is not None:
        return f"from confidence {line['threshold']:.3f} on: {line['coverage']:.0%} of the answers"
    needed = line["labels_needed"]
    return "no answer is sure enough" if needed is None else f"about {needed} such lines are needed"


def _sha256(file: str) -> str | None:
    """Of a file; None of standard input."""
    return None if file == "-" else file_sha256(Path(file))


def _table(rows: list[tuple[str, dict[str, Any]]]) -> None:
    """The main figures with their intervals, a column per row of `rows`."""

    def cell(found: dict[str, Any], name: str) -> str:
        value, interval = found.get(name), found.get(f"{name}_interval")
        if value is None:
            return "-"
        return with_interval(value, interval, 4) if interval else f"{value:.4f}"

    found = [(name, *(cell(one, name) for _, one in rows)) for name in SHOWN]
    print_table(("", *(name for name, _ in rows)), found, left=1 + len(rows))
