"""likely study: a grid of methods, texts and draws on your own model, and what it says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.help import LIST, VerbCommand
from likely.cli.printing import print_json, print_table, reporter

EXAMPLES = """What compression does to your own model, over methods, calibration texts and draws.

Examples:

  likely study calibration smollm2 -o cells.jsonl

  likely study code smollm2 --methods gptq:w4g64,gptq:w2g64 -o cells.jsonl

  likely study calibration smollm2 --methods rtn:w4g64,gptq:w4g64 --calibrations c4_sample,notes.txt --json
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)
ModelArgument = Annotated[str, typer.Argument(help="A known model, GGUF file or safetensors folder.")]
MethodsOption = Annotated[
    str,
    typer.Option(
        "--methods",
        metavar=LIST,
        help="METHOD:SCHEME or METHOD:SPARSITY, with commas between them; methods: {compressions}.",
    ),
]
CalibrationsOption = Annotated[
    str,
    typer.Option(
        "--calibrations", metavar=LIST, help="Texts that methods look at, with commas between them: as --calibration."
    ),
]
DrawsOption = Annotated[int, typer.Option("--draws", min=1, help="Times that each text is drawn from.")]
WindowsOption = Annotated[int, typer.Option("--windows", min=1, help="Windows of a draw.")]
WindowLengthOption = Annotated[int, typer.Option("--length", min=8, help="Tokens of a window.")]
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
        str,
        typer.Option("--evaluations", metavar=LIST, help="Texts that results are judged on, with commas between them."),
    ] = "wikitext2:test",
    draws: DrawsOption = 2,
    windows: WindowsOption = 8,
    length: WindowLengthOption = 256,
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
    if effects:
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
    if effects:
        typer.echo("")
        typer.echo(recommendation(effects))


@verbs.command("code", cls=VerbCommand)
def code(
    model: ModelArgument,
    methods: MethodsOption = "gptq:w4g64,gptq:w3g64,gptq:w2g64,additive:2x8",
    calibrations: CalibrationsOption = "c4_sample,c4_sample+mbpp:train,mbpp:train",
    tasks: Annotated[int, typer.Option("--tasks", min=2, help="MBPP test tasks to judge on.")] = 20,
    text: Annotated[
        str, typer.Option("--text", help="Other text to judge on: what calibrating on code costs.")
    ] = "wikitext2:test",
    tokens: Annotated[int, typer.Option("--tokens", min=16, help="Tokens of that text, in whole windows.")] = 1024,
    draws: DrawsOption = 1,
    windows: WindowsOption = 8,
    length: WindowLengthOption = 256,
    run_mutants: Annotated[
        bool, typer.Option("--run-mutants", help="Run mutants in the sandbox, and keep those that fail their tests.")
    ] = False,
    output: CellsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """How few bits for a code model, and calibrated on what?  KL on solutions, and can it still tell right from wrong?

    Of MBPP test tasks: KL to the original and NLL per token of the reference solution, and on how many the solution is
    likelier than the same program with one fault (McNemar's exact test against the original, adjusted over methods).

    Examples:

      likely study code smollm2 -o cells.jsonl

      likely study code smollm2 --methods gptq:w4g64,gptq:w2g64 --calibrations c4_sample,python_stdlib --tasks 10
    """
    from likely.audit.code.likelihoods import CodeEvaluation, adjusted_p, code_tasks
    from likely.compression.study.evaluations import LikelihoodEvaluation
    from likely.compression.study.grid import CellFile, StudyGrid, StudyMethod, StudyModel, run_grid

    span = min(length, tokens)
    grid = StudyGrid(
        methods=[StudyMethod.parse(name) for name in listed(methods)],
        calibrations=listed(calibrations),
        evaluations=[
            CodeEvaluation(code_tasks(limit=tasks, run_mutants=run_mutants)),
            LikelihoodEvaluation(text, max(1, tokens // span), span),
        ],
        draws=draws,
        windows=windows,
        length=length,
    )
    with CellFile(output) as cells:
        rows = run_grid([StudyModel.open(model)], grid, cells=cells, said=reporter("study"))
    on_code, on_text = rows[::2], rows[1::2]
    p_values = adjusted_p(rows)
    if as_json:
        records = [row.to_dict() for row in rows]
        for record, p in zip(records[::2], p_values, strict=True):
            record["adjusted_p"] = p
        print_json({"rows": records})
        return
    print_table(
        ("method", "text", "draw", "KL on code", "NLL", "right over wrong", "of original", "p", f"KL on {text}"),
        [(c.method, c.calibration or "none", "" if c.draw is None else c.draw, f"{c.numbers['kl']:.4f}",
          f"{c.numbers['nll']:.3f}", f"{c.numbers['discrimination']:.0%}",
          f"{c.numbers['original_discrimination']:.0%}", f"{p:.3f}", f"{t.numbers['kl']:.4f}")
         for c, t, p in zip(on_code, on_text, p_values, strict=True)],
        left=3,
    )  # fmt: skip


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
