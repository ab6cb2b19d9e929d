"""likely profile: the cost of a call in four terms, and the draft lengths that follow from it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags
from likely.cli.options import refuse_existing
from likely.cli.printing import print_json, print_table, reporter
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.runtimes.step_cost import StepCost


def profile(
    model: flags.ModelOption = DEFAULT_MODEL,
    runtime: flags.RuntimeOption = None,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    timings: Annotated[
        Path | None,
        typer.Option(
            "--timings",
            help="Fit these timed calls of any engine instead (JSONL: sequences, tokens, context, seconds).",
        ),
    ] = None,
    cost: Annotated[
        Path | None, typer.Option("--cost", help="Take the costs of an earlier run (-o) instead of measuring.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the costs here (JSON).")] = None,
    overwrite: flags.OverwriteOption = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="vllm: print draft lengths by batch size, as its num_speculative_tokens_per_batch_size takes them.",
        ),
    ] = None,
    acceptance: Annotated[
        float, typer.Option("--acceptance", min=0, max=1, help="(--for) P(a drafted token is accepted).")
    ] = 0.7,
    k_max: Annotated[int, typer.Option("--k-max", min=1, max=64, help="(--for) Most drafted tokens.")] = 5,
    batch_max: Annotated[int, typer.Option("--batch-max", min=1, max=4096, help="(--for) Largest batch.")] = 256,
    context: Annotated[int, typer.Option("--context", min=1, help="(--for) Tokens of a text, prompt included.")] = 512,
    draft_cost: Annotated[
        Path | None, typer.Option("--draft-cost", help="(--for) Costs of the draft model; none: drafts are free.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and rounds, under a minute.")] = False,
    busy: Annotated[bool, typer.Option("--even-if-busy", help="Measure although other programs run.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Fit what a call of a model costs: seconds per kept token, computed token, text, and call.

    The result is stored, and --draft-budget auto rests on it from then on: in likely serve, too.

    Examples:

      likely profile --runtime native

      likely profile -m model.gguf -o cost.json

      likely profile --timings steps.jsonl --for vllm --acceptance 0.75 --k-max 5
    """
    from likely.runtimes.step_cost import StepCost

    if timings is not None and cost is not None:
        raise typer.BadParameter("give one of both", param_hint="--timings, --cost")
    if target not in (None, "vllm"):
        raise typer.BadParameter(f'"vllm", got {target!r}', param_hint="--for")
    if output is not None:
        refuse_existing(output, overwrite)
    drafting = None if draft_cost is None else StepCost.load(draft_cost)
    found = _costs(flags.ModelFlags(model, runtime, dtype, threads=threads), timings, cost, quick, busy)
    if output is not None:
        found.save(output)
    if target is None:
        _print(found, as_json)
        return
    from likely.decoding.drafting.budget import schedule_by_batch

    print_json(
        schedule_by_batch(
            acceptance, found, context=context, k_max=k_max, batch_max=batch_max, draft=drafting, margin=1.1
        )
    )


def _costs(model: flags.ModelFlags, timings: Path | None, cost: Path | None, quick: bool, busy: bool) -> StepCost:
    from likely.bench.profile import fit_timings, profile_model
    from likely.bench.timing import BusyMachine, refuse_busy
    from likely.runtimes.step_cost import StepCost

    if cost is not None:
        return StepCost.load(cost)
    if timings is not None:
        return fit_timings(timings)
    if not busy:
        try:
            refuse_busy()
        except BusyMachine as error:
            raise BusyMachine(f"{error}, or give --even-if-busy") from None
    with model.open_local() as lm:
        found = profile_model(lm, threads=model.threads, quick=quick, progress=reporter("profile")).step_cost
    assert found is not None
    return found


def _print(found: StepCost, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        ("per token kept", f"{1e6 * found.context_s:.3g} µs"),
        ("per token computed", f"{1e6 * found.token_s:.4g} µs"),
        ("per text", f"{1e6 * found.sequence_s:.4g} µs"),
        ("per call", f"{1e6 * found.constant_s:.4g} µs"),
        ("off by, relative", f"{found.residual:.1%}"),
    ]
    print_table(("term", "seconds"), rows, left=1)
