"""likely bench: what calls of a model cost on this machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, reporter
from likely.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from likely.runtimes.cost_curve import CostCurve


def bench(
    what: Annotated[str, typer.Argument(help="calls, or speculation: what drafters gain.")] = "calls",
    model: flags.ModelOption = DEFAULT_MODEL,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime", callback=flags.one_of("runtimes"), help="{runtimes}.  [default: every one installed]"
        ),
    ] = None,
    dtype: flags.DtypeOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes and rounds, under 45 s.")] = False,
    threads: flags.ThreadsOption = None,
    busy: Annotated[bool, typer.Option("--even-if-busy", help="Measure although other programs run.")] = False,
    drafter: Annotated[
        list[str] | None, typer.Option("--drafter", help="(speculation) A drafter to compare (repeatable).")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="(speculation) JSONL file of prompts or messages.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=2, help="(speculation) Rounds that count.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="(speculation) Tokens per text.")] = 64,
    picture: Annotated[Path | None, typer.Option("--plot", help="(speculation) Write a picture here.")] = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Measure milliseconds per call at 1 to 64 positions, 1 to 16 sequences, and prefill.

    The result is stored as the cost curve that other parts of likely read.  "likely bench speculation" measures what
    drafters gain over plain decoding, on small tasks of its own or on yours.

    Examples:

      likely bench --quick

      likely bench speculation --runtime llamacpp --drafter lookup --drafter suffix

      likely bench -m gemma3 --runtime llamacpp --json
    """
    from likely.bench.timing import BusyMachine, refuse_busy
    from likely.models.load import runtimes_for
    from likely.runtimes.machine import machine

    speculation = what == "speculation"
    if not speculation and what != "calls":
        raise typer.BadParameter(f'"calls" or "speculation", got {what!r}', param_hint="WHAT")
    if not speculation and (drafter or task or rounds or picture):
        raise typer.BadParameter("--drafter, --task, --rounds and --plot belong to likely bench speculation")
    if not busy:
        try:
            refuse_busy()
        except BusyMachine as error:
            raise BusyMachine(f"{error}, or give --even-if-busy") from None
    host = machine()
    names = [runtime] if runtime else runtimes_for(model)
    if speculation:
        from likely.cli.verbs.speed.speculation import DRAFTERS, bench_speculation

        bench_speculation(
            model, names, dtype=dtype, threads=threads, drafters=drafter or DRAFTERS, tasks=task,
            rounds=rounds or (3 if quick else 10), max_tokens=max_tokens, plot=picture, as_json=as_json,
        )  # fmt: skip
        return
    curves = [
        _measure(model, name, dtype if name != "llamacpp" else None, quick, threads, host.cpu, len(names))
        for name in names
        if runtime or dtype is None or name != "llamacpp"
    ]
    rows = [row for curve in curves for row in curve.rows]
    if as_json:
        print_json({"machine": asdict(host), "rows": [asdict(row) for row in rows]})
        return
    typer.echo(host.line())
    heads = ("runtime", "dtype", "kind", "positions", "sequences", "context", "threads", "ms", "tokens/s")
    shown = [
        (
            r.runtime, r.dtype, r.kind, r.positions, r.sequences, r.context, r.threads, f"{r.milliseconds:.2f}",
            f"{r.tokens_per_s:.1f}",
        )
        for r in rows
    ]  # fmt: skip
    print_table(heads, shown, left=3)


def _measure(
    model: str, name: str, dtype: str | None, quick: bool, threads: int | None, cpu: str, engines: int
) -> CostCurve:
    from likely.runtimes.cost_curve import measure
    from likely.runtimes.machine import cores

    with flags.ModelFlags(model, name, dtype, threads=threads).open_local() as lm:
        used = getattr(lm.runtime, "threads", None) or threads or cores()
        curve = measure(
            lm.runtime,
            name=name,
            dtype=lm.info.dtype,
            threads=used,
            cpu=cpu,
            source=lm.info.sha256,
            contexts=(128,) if quick else (128, 512),
            positions=(1, 4, 16, 64) if quick else (1, 2, 4, 8, 16, 32, 64),
            sequences=(1, 4, 16) if quick else (1, 2, 4, 8, 16),
            prefill=256 if quick else 512,
            rounds=3 if quick else 5,
            seconds=(30 if quick else 240) / engines,
            progress=reporter(name),
        )
    curve.save()
    return curve
