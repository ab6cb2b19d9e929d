"""likely audit ablate: does the model use this segment of its prompt, or is it noise?"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.help import LIST
from likely.cli.options import refuse_same_file
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, listed, measured, show_reports
from likely.errors import CapabilityError


@flags.grouped
def ablate(
    model: flags.ModelFlags,
    out: flags.FileFlags,
    file: Annotated[
        str, typer.Argument(help='JSONL (.gz, too) of {"id", "segments": {name: text or terms}, "choices", "answer"}.')
    ],
    segments: Annotated[
        str, typer.Option("--segments", metavar=LIST, help="Segments to switch on and off, with commas between.")
    ],
    controls: Annotated[
        list[str] | None,
        typer.Option("--control", metavar="KIND:SEGMENT", help="shuffle, swap or filler of a segment (repeatable)."),
    ] = None,
    guard: Annotated[
        str, typer.Option("--guard", metavar=LIST, help="Segments to ask again without terms that hold a choice.")
    ] = "",
    cut: Annotated[
        str | None, typer.Option("--cut", help="Segment that is cut where a prompt is longer than the context.")
    ] = None,
    normalise: Annotated[
        Literal["sum", "token", "byte"], typer.Option("--normalise", help="How answers of different length compare.")
    ] = "token",
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffling.")] = 0,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Which segments of a prompt does the model use?  On, off, shuffled: the right answer's likelihood each way.

    A line with "reference" in place of "choices" and "answer" is measured by the likelihood of that text alone.

    Examples:

      likely audit ablate cases.jsonl --segments context --control shuffle:context

      likely audit ablate proteins.jsonl --segments sequence,context --guard context -o ablated.jsonl --report out.html
    """
    from likely.audit.ablation import SegmentAblation, ablation_report
    from likely.audit.case import likelihoods, read_cases

    check_reports(report)
    refuse_same_file(file, out.output)
    named, guarded = listed(segments), listed(guard)
    pairs = tuple((kind, name) for kind, _, name in (control.partition(":") for control in controls or ()))
    cases = read_cases(file, limit=out.limit)
    SegmentAblation(named, pairs, guarded).perturb(cases)  # wrong names are refused before a model is loaded
    with model.open("scoring") as lm:
        room, count = None, None
        if cut is not None:
            if not hasattr(lm, "runtime"):
                raise CapabilityError("--cut needs a model on this machine: a server does not say how long a prompt is")
            room, count = lm.runtime.context_length, lambda text: len(lm.tokenizer.encode(text)) + 1
        ablation = SegmentAblation(named, pairs, guarded, cut, room, count, seed)
        header = header_of(lm, "ablate", {**ablation.settings(), "normalise": normalise})
        records = measured(cases, ablation.perturb(cases), likelihoods(lm, normalise=normalise), header, out)
    show_reports([ablation_report(records, ablation, header=header)], report, as_json=as_json)
