"""likely audit probes: questions in other words, written by one model, judged by people, answered by another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from likely.cli import flags
from likely.cli.file_run import Advance, Chunks, FileRun, check_output
from likely.cli.help import VerbCommand
from likely.cli.options import origin
from likely.cli.printing import print_json
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, measured, show_reports
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.jsonl import Line, read_lines
from likely.io.whole_file import check_target

if TYPE_CHECKING:
    from likely.audit.case import Case
    from likely.audit.probes import ProbeTemplate

EXAMPLES = """Does a model answer the same in other words?  Another model writes them, people check them.

Examples:

  likely audit probes make questions.jsonl -m gemma3 -o probes.jsonl

  likely audit probes queue questions.jsonl probes.jsonl -o queue.jsonl

  likely audit probes run questions.jsonl probes.jsonl -m smollm2 --report consistency.html
"""
TOGETHER = 16  # questions whose probes are written in one call, and lost where it is stopped
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)
QuestionsArgument = Annotated[str, typer.Argument(help='JSONL (.gz, too) of {"id", "question", "choices", "answer"}.')]
ProbesArgument = Annotated[Path, typer.Argument(help="Probes, as likely audit probes make writes them.")]
TemplateOption = Annotated[str, typer.Option("--template", help="structured, naive, or a file (.json) of a template.")]


@verbs.callback()
def group() -> None:
    """A group of verbs about probes."""


@verbs.command("make", cls=VerbCommand)
@flags.grouped
def make(
    model: flags.ModelFlags,
    file: QuestionsArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the probes go (JSONL); a run that was stopped goes on there.")
    ],
    overwrite: flags.OverwriteOption = False,
    n: Annotated[int, typer.Option("--n", min=1, max=20, help="Probes of each question.")] = 5,
    template: TemplateOption = "structured",
    temperature: flags.TemperatureOption = 0.8,
    seed: flags.SeedOption = 0,
    limit: flags.LimitOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Write probes of each question with the model -m: a model that is not the one to be audited.

    Each is screened: copies, duplicates, wrong length, lost names and numbers, other words altogether.

    Examples:

      likely audit probes make questions.jsonl -m gemma3 -o probes.jsonl
    """
    from likely.audit.probes import question_of_case, write_probes

    check_output(file, output)
    cases, chosen = _cases(file, limit), _template(template)
    with model.open() as lm:
        header = {**origin(lm), "kind": "probes", "template": chosen.digest, "frozen": chosen.frozen,
                  "settings": {"n": n, "temperature": temperature, "seed": seed}}  # fmt: skip
        inputs = [fingerprint([case.id, question_of_case(case)]) for case in cases for _ in range(n)]
        lines = FileRun[None](file, [Line(i, {}, digest) for i, digest in enumerate(inputs, 1)], {}, output, overwrite)

        def work(chunks: Chunks, advance: Advance) -> Iterator[tuple[Line, dict[str, Any]]]:
            for chunk in chunks:
                some = cases[(chunk[0].number - 1) // n : chunk[-1].number // n]
                made = write_probes(lm, some, chosen, n=n, temperature=temperature, seed=seed)
                yield from zip(chunk, map(asdict, made), strict=True)
                advance(len(chunk))

        lines.run(header, work, label="writing", unit="probes", size=n * TOGETHER)
    probes = lines.records()
    passed = sum(not probe["failed"] for probe in probes)
    if as_json:
        print_json({**header, "questions": len(cases), "probes": len(probes), "passed": passed, "written": str(output)})
        return
    typer.echo(f"{passed} of {len(probes)} probes pass the screens; written: {output}")


@verbs.command("queue", cls=VerbCommand)
def queue(
    file: QuestionsArgument,
    probes: ProbesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the queue goes.")],
    sample: Annotated[int, typer.Option("--sample", min=1, help="Questions whose probes people judge.")] = 30,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample and the annotators' orders.")] = 0,
) -> None:
    """Put the probes of some questions into a queue for people (likely audit review).

    Examples:

      likely audit probes queue questions.jsonl probes.jsonl -o queue.jsonl
    """
    from likely.audit.probes import probe_queue, read_probes

    found = probe_queue(output, _cases(file, None), read_probes(probes), sample=sample, seed=seed)
    typer.echo(f"{len(found.items)} probes to judge; written: {output}")


@verbs.command("freeze", cls=VerbCommand)
def freeze(
    queue: Annotated[Path, typer.Argument(help="The queue whose annotators judged the template's probes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the frozen template goes (JSON).")],
    template: TemplateOption = "structured",
) -> None:
    """Freeze a template: its annotators agree, and its probes pass; the queue takes no votes from then on.

    Examples:

      likely audit probes freeze queue.jsonl -o template.json
    """
    from likely.audit.probes import save_template
    from likely.audit.review import ReviewQueue

    check_target(output)
    frozen = _template(template).freeze(ReviewQueue.open(queue))
    save_template(frozen, output)
    typer.echo(f"frozen: {frozen.name} ({frozen.digest}); written: {output}")


@verbs.command("run", cls=VerbCommand)
@flags.grouped
def run(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: QuestionsArgument,
    probes: ProbesArgument,
    style: Annotated[
        Literal["answers", "letters"], typer.Option("--style", help="Score the choices' words, or lettered options.")
    ] = "answers",
    seed: Annotated[int, typer.Option("--seed", help="Of the order of lettered options.")] = 0,
    allow_self: Annotated[
        bool, typer.Option("--allow-self", help="Also probes that the audited model wrote itself.")
    ] = False,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Answer each question and its probes with the model -m: flips, dispersion, and whether they tell of errors.

    Examples:

      likely audit probes run questions.jsonl probes.jsonl -m smollm2 --report consistency.html
    """
    from likely.audit.case import likelihoods
    from likely.audit.consistency import check_other_model, consistency_report, probe_variants
    from likely.audit.probes import read_probes

    check_reports(report)
    cases, asked = _cases(file, out.limit), read_probes(probes)
    known = {case.id for case in cases}
    asked = [probe for probe in asked if probe.case in known]
    if not asked:
        raise DataError(f"{probes} holds no probe of a question in {file}")
    with model.open("scoring") as lm:
        if not allow_self:
            check_other_model((probe.origin.get("sha256") for probe in asked), lm.info.sha256)
        settings = {"style": style, "seed": seed, "probes": sorted({str(p.origin.get("template")) for p in asked})}
        header = header_of(lm, "probes", settings)
        found = measured(cases, probe_variants(asked, style=style, seed=seed), likelihoods(lm), header, out)
    show_reports([consistency_report(found, header=header, probes=asked)], report, as_json=as_json)


def _cases(file: str, limit: int | None) -> list[Case]:
    from likely.audit.probes import question_cases

    return question_cases([line.record for line in read_lines(file)][:limit], file)


def _template(name: str) -> ProbeTemplate:
    from likely.audit.probes import TEMPLATES, load_template
    from likely.errors import check_choice

    if name.endswith(".json"):
        return load_template(Path(name))
    check_choice("template", name, TEMPLATES)
    return TEMPLATES[name]
