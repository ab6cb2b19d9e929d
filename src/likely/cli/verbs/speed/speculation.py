"""likely bench speculation: what each drafter gains on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from likely.cli import flags, options
from likely.cli.printing import print_json, print_table, reporter, with_interval
from likely.errors import DataError
from likely.io.jsonl import read_lines
from likely.io.whole_file import check_target, write_for_user

if TYPE_CHECKING:
    from likely.bench.speculation import DrafterTiming, Task

DRAFTERS = ("lookup", "copy", "suffix", "auto")
HINT = 'expected lines like {"prompt": "..."} or {"messages": [...]}, and "task" if there are several'


def bench_speculation(
    model: str,
    runtimes: Sequence[str],
    *,
    dtype: str | None,
    threads: int | None,
    drafters: Sequence[str],
    tasks: str | None,
    rounds: int,
    max_tokens: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    from likely.bench.speculation import BUILTIN, compare
    from likely.runtimes.machine import machine
    from likely.show.plot import FORMATS, draw_ratios, render

    if plot:
        check_target(plot, FORMATS)
    for drafter in drafters:
        options.drafting(drafter, "auto")
    wanted = read_tasks(tasks) if tasks else BUILTIN
    found: dict[str, list[DrafterTiming]] = {}
    for runtime in runtimes:
        used = flags.ModelFlags(model, runtime, dtype if runtime != "llamacpp" else None, threads=threads)
        with used.open_local() as lm:
            found[f"{runtime} {lm.info.dtype}"] = compare(
                lm, wanted, drafters, rounds=rounds, max_tokens=max_tokens, progress=reporter(runtime)
            )
    if as_json:
        rows = [{"runtime": name, **asdict(row)} for name, group in found.items() for row in group]
        print_json({"machine": asdict(machine()), "model": model, "rows": rows})
    else:
        typer.echo(machine().line())
        print_timings(found)
    if plot:
        write_for_user(plot, render(draw_ratios(found), plot.suffix))
        typer.echo(f"wrote {plot}", err=True)


def print_timings(found: dict[str, list[DrafterTiming]]) -> None:
    """A row per runtime, task and drafter."""
    shown = [
        (
            name, r.task, r.drafter, with_interval(r.ratio, (r.low, r.high), 2), f"{r.ms_per_token:.1f}",
            f"{r.tokens_per_call:.2f}", f"{r.proposed_per_call:.2f}",
            "-" if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}",
            f"{r.identical}/{r.texts}" + (f", near ties: {r.near_ties}" if r.near_ties else "")
            + (f", UNEXPLAINED: {r.unexplained}" if r.unexplained else ""),
        )
        for name, rows in found.items()
        for r in rows
    ]  # fmt: skip
    heads = ("runtime", "task", "drafter", "times plain", "ms/token", "per call", "drafted", "kept", "same text")
    print_table(heads, shown, left=3)


def read_tasks(file: str) -> list[Task]:
    """Tasks of a JSONL file."""
    from likely.bench.speculation import Task

    prompts: dict[str, list[Any]] = {}
    for line in read_lines(file):
        record = line.record
        prompt = record.get("prompt", record.get("messages"))
        if not prompt or not isinstance(prompt, (str, list)):
            raise DataError(f"{file}:{line.number}: no prompt: {HINT}")
        prompts.setdefault(str(record.get("task", Path(file).stem)), []).append(prompt)
    if not prompts:
        raise DataError(f"{file} holds no records: {HINT}")
    return [Task(name, texts) for name, texts in prompts.items()]
