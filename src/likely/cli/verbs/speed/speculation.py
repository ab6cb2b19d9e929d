"""likely bench speculation: what each drafter gains on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from likely.cli import flags, options

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
    from likely.cli.printing import print_json
    from likely.io.whole_file import check_target, write_for_user
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
                lm, wanted, drafters, rounds=rounds, max_tokens=max_tokens, progress=_reporter(runtime)
            )
    if as_json:
        rows = [{"runtime": name, **asdict(row)} for name, group in found.items() for row in group]
        print_json({"machine": asdict(machine()), "model": model, "rows": rows})
    else:
        typer.echo(machine().line())
        for line in table(found):
            typer.echo(line)
    if plot:
        write_for_user(plot, render(draw_ratios(found), plot.suffix))
        typer.echo(f"wrote {plot}", err=True)


def _reporter(runtime: str) -> Callable[[str], None] | None:
    """What is measured now, on stderr when somebody watches."""
    return (lambda line: typer.echo(f"{runtime}: {line}", err=True)) if sys.stderr.isatty() else None


def table(found: dict[str, list[DrafterTiming]]) -> list[str]:
    """A line per runtime, task and drafter."""
    width = max(len(row.task) for rows in found.values() for row in rows)
    lines = [
        f"{'runtime':<18} {'task':<{width}} {'drafter':<14} {'times plain':>20} {'ms/token':>9} {'per call':>8} "
        f"{'drafted':>8} {'kept':>6} {'same text':>10}"
    ]
    for name, rows in found.items():
        for r in rows:
            kept = "-" if r.acceptance_rate is None else f"{r.acceptance_rate:.0%}"
            same = f"{r.identical}/{r.texts}"
            lines.append(
                f"{name:<18} {r.task:<{width}} {r.drafter:<14} {f'{r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]':>20} "
                f"{r.ms_per_token:>9.1f} {r.tokens_per_call:>8.2f} {r.proposed_per_call:>8.2f} {kept:>6} {same:>10}"
                + (f"  near ties: {r.near_ties}" if r.near_ties else "")
                + (f"  UNEXPLAINED: {r.unexplained}" if r.unexplained else "")
            )
    return lines


def read_tasks(file: str) -> list[Task]:
    """Tasks of a JSONL file."""
    from likely.bench.speculation import Task
    from likely.errors import DataError
    from likely.io.jsonl import read_lines

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
