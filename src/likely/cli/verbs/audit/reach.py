"""likely audit reach: which outputs can a few tokens in front of a text force?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from likely.cli import flags
from likely.cli.file_run import read_file
from likely.cli.help import LIST
from likely.cli.printing import progress
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, show_reports
from likely.models.catalog import DEFAULT_MODEL


@flags.grouped
def reach(
    out: flags.FileFlags,
    model: Annotated[
        str, typer.Argument(help="Name (likely models), GGUF file or safetensors folder.")
    ] = DEFAULT_MODEL,
    state: Annotated[str | None, typer.Option("--state", help="The text behind the free tokens.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The text that shall follow it.")] = None,
    cases: Annotated[
        Path | None, typer.Option("--cases", help='JSONL (.gz, too) of {"state", "target"}: a curve over all of them.')
    ] = None,
    method: Annotated[
        Literal["gcg", "greedy", "random", "exhaustive"],
        typer.Option("--method", help="gcg takes gradients from torch; exhaustive tries every control."),
    ] = "gcg",
    lengths: Annotated[str, typer.Option("--lengths", metavar=LIST, help="Tokens of a control, rising.")] = "1,2,4,8",
    paper_size: Annotated[
        bool, typer.Option("--paper-size", help="The paper's 768 candidates and 34 steps, in place of 48 and 20.")
    ] = False,
    text_consistent: Annotated[
        bool, typer.Option("--text-consistent", help="Only controls that survive as text.")
    ] = False,
    explore: Annotated[
        int | None, typer.Option("--explore", min=1, help="Which next tokens are reached, in so many evaluations.")
    ] = None,
    bound: Annotated[
        str | None,
        typer.Option("--bound", metavar=LIST, help="Lengths: what controls can do to each head at most, from weights."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search.")] = 0,
    runtime: flags.RuntimeOption = None,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Which outputs can a few tokens in front of a text force ("magic words")?  Only models that you load.

    Every control is evaluated exactly, in one tree per step; a search that fails shows nothing.

    Examples:

      likely audit reach smollm2 --state "The capital of France is" --target " Rome"

      likely audit reach smollm2 --cases states.jsonl -o reached.jsonl --report reach.html

      likely audit reach smollm2 --state "Roger Federer is the" --explore 2000 --json

      likely audit reach smollm2 --state "Roger Federer is the" --bound 1,10,1000
    """
    from likely.audit import reach as room
    from likely.audit.reach import report as reports

    check_reports(report)
    numbers = flags_lengths(lengths, "--lengths")
    single = state is not None and (target is not None or explore is not None or bound is not None)
    if (cases is None) != single or (cases is None and state is None):
        raise typer.BadParameter(
            "give --cases FILE, or --state with --target, --explore or --bound", param_hint="--state"
        )
    if cases is not None:
        run = read_file(str(cases), lambda line, at: reports.reach_case(line.record, f"{at}:{line.number}"), out,
                        expected=reports.EXPECTED)  # fmt: skip
        asked = [run.item(line) for line in run.lines]
    else:
        asked = [reports.reach_case({"id": "1", "state": state, "target": target})] if target is not None else []
    opened = flags.ModelFlags(model, runtime, dtype, None, threads)
    with opened.open_local("scoring") as lm:
        made = []
        forbid = sorted(set(lm.tokenizer.special_tokens.values()))
        problem = reports.problem_of(lm.tokenizer, state or "", target or "a")
        if explore is not None:
            header = header_of(lm, "reach explore", {"budget": explore, "seed": seed})
            found = room.explore(lm.runtime, problem.after, explore, before=problem.before, forbid=forbid, seed=seed)
            made.append(reports.reachable_report(found, lm.tokenizer, header=header))
        gradient = room.gradient_of(model) if bound is not None or (asked and method == "gcg") else None
        if bound is not None and gradient is not None:
            ks = flags_lengths(bound, "--bound")
            header = header_of(lm, "reach bound", {"k": list(ks)})
            made.append(reports.bound_report(room.attention_report(gradient.module, problem.after, ks), header=header))
        if asked:
            settings = {"method": method, "lengths": list(numbers), "seed": seed, "paper_size": paper_size,
                        "text_consistent": text_consistent}  # fmt: skip
            header = header_of(lm, "reach", settings)
            measure = reports.reach_measure(
                lm.runtime, lm.tokenizer, room.search_method(method, gradient, quick=not paper_size), lengths=numbers,
                forbid=forbid, seed=seed, text_consistent=text_consistent,
            )  # fmt: skip
            with progress(len(asked), "searching", unit="cases") as tick:
                made.append(
                    reports.reach_audit(asked, measure, numbers, header=header, output=out.output,
                                        overwrite=out.overwrite, progress=tick)
                )  # fmt: skip
    show_reports(made, report, as_json=as_json)


def flags_lengths(text: str, hint: str) -> tuple[int, ...]:
    """Rising whole numbers with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts) or parts != sorted(set(parts), key=int):
        raise typer.BadParameter(f"rising whole numbers >= 1 with commas between, got {text!r}", param_hint=hint)
    return tuple(int(part) for part in parts)
