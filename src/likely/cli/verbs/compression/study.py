"""likely study: a grid of methods, texts and draws on your own model, and what it says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.help import VerbCommand
from likely.cli.printing import print_json, print_table, reporter

EXAMPLES = """What compression does to your own model, over methods, calibration texts and draws.

Examples:

  likely study calibration smollm2 -o cells.jsonl

  likely study calibration smollm2 --methods rtn:w4g64,gptq:w4g64 --calibrations c4_sample,notes.txt --json
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)
ModelArgument = Annotated[str, typer.Argument(help="A known model, GGUF file or safetensors folder.")]
MethodsOption = Annotated[
    str,
    typer.Option(
        "--methods", help="METHOD:SCHEME or METHOD:SPARSITY, with commas between them; methods: {compressions}."
    ),
]
CalibrationsOption = Annotated[
    str, typer.Option("--calibrations", help="Texts that methods look at, with commas between them: as --calibration.")
]
DrawsOption = Annotated[int, typer.Option("--draws", min=1, help="Times that each text is drawn from.")]
WindowsOption = Annotated[int, typer.Option("--windows", min=1, help="Windows of a draw.")]
LengthOption = Annotated[int, typer.Option("--length", min=8, help="Tokens of a window.")]
CellsOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSONL file, a line for each cell; a run that was stopped goes on there."),
]


def listed(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


@verbs.callback()
def group() -> None:
    """A group of studies."""


@verbs.command("calibration", cls=VerbCommand)
def calibration(
    model: ModelArgument,
    methods: MethodsOption = "rtn:w4g64,gptq:w4g64,smoothquant:w8a8",
    calibrations: CalibrationsOption = "wikitext2:valid,c4_sample,mbpp:train,random_punctuation",
    evaluations: Annotated[
        str, typer.Option("--evaluations", help="Texts that results are judged on, with commas between them.")
    ] = "wikitext2:test",
    draws: DrawsOption = 2,
    windows: WindowsOption = 8,
    length: LengthOption = 256,
    tokens: Annotated[int, typer.Option("--tokens", min=16, help="Tokens to judge on, in whole windows.")] = 2048,
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Also how far activation ranges of each text serve what it is judged on.")
    ] = False,
    output: CellsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Which calibration text, and does it matter?  KL to the original for every method, text and draw, and advice.

    The effect of the text stands beside what draws of one text do: where it is no larger, any text serves.  Nonsense
    (random_punctuation, random_tokens, bos_only) shows what text is worth at all.

    Examples:

      likely study calibration smollm2 -o cells.jsonl

      likely study calibration smollm2 --calibrations notes.txt,c4_sample --evaluations others.txt --draws 3
    """
    from likely.compression.statistics import agreement_table
    from likely.compression.study.effects import recommendation, set_effects
    from likely.compression.study.evaluations import LikelihoodEvaluation
    from likely.compression.study.grid import CellFile, StudyGrid, StudyMethod, StudyModel, run_grid

    span = min(length, tokens)
    judged = [LikelihoodEvaluation(name, max(1, tokens // span), span) for name in listed(evaluations)]
    grid = StudyGrid(
        methods=[StudyMethod.parse(name) for name in listed(methods)],
        calibrations=listed(calibrations),
        evaluations=judged,
        draws=draws,
        windows=windows,
        length=length,
    )
    with CellFile(output) as cells:
        opened = StudyModel.open(model)
        rows = run_grid([opened], grid, cells=cells, said=reporter("study"))
    effects = set_effects(rows)
    transfer = agreement_table(
        {name: opened.statistics(grid.text(opened, name, 0)) for name in grid.calibrations},
        {one.name: opened.statistics(one.text(opened)) for one in judged},
    ) if ranges else []  # fmt: skip
    if as_json:
        record = {"model": model, "rows": [row.to_dict() for row in rows]}
        record["effects"] = [effect.to_dict() for effect in effects]
        print_json(record | {"ranges": [asdict(line) for line in transfer], "recommendation": recommendation(effects)})
        return
    print_table(
        ("method", "text", "draw", "judged on", "KL (nats)", "± s.e.", "perplexity"),
        [(r.method, r.calibration or "none", "" if r.draw is None else r.draw, r.evaluation,
          *(number(r.numbers[name], digits) for name, digits in (("kl", 4), ("kl_se", 4), ("perplexity", 2))))
         for r in rows],
        left=4,
    )  # fmt: skip
    typer.echo("")
    print_table(
        ("method", "judged on", "texts differ by", "draws alone", "p", "nonsense over best"),
        [(e.method, e.evaluation, number(e.sensitivity, 3), number(e.by_chance, 3),
          number(None if e.split is None else e.split.p, 3), number(e.nonsense, 2)) for e in effects],
        left=2,
    )  # fmt: skip
    if transfer:
        typer.echo("")
        print_table(
            ("text", "judged on", "input", "same order of channels", "range", "saturates at most"),
            [(t.calibrated, t.used, t.input, f"{t.spearman:.2f}", f"{t.range_ratio:.2f}", f"{t.saturation:.1e}")
             for t in transfer],
            left=3,
        )  # fmt: skip
    typer.echo("")
    typer.echo(recommendation(effects))


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
