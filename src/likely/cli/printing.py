"""Text to the terminal as it comes, JSON for machines, tables, progress on stderr when somebody watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import typer

from likely.io.hashes import cache_dir
from likely.models.catalog import known_model


def print_json(record: dict[str, Any] | list[Any]) -> None:
    typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))


LEAST_WIDTH = 72  # of a table with folded columns
LEAST_DRAFTED = 16  # tokens of a text in which a drafter could have guessed something
_CONTROL = {c: "\N{REPLACEMENT CHARACTER}" for c in (*range(32), *range(127, 160)) if c not in (9, 10)}


def for_terminal(text: str, *, err: bool = False) -> str:
    """The text as it may be shown: to a terminal without control characters, which would steer it; else unchanged."""
    return text.translate(_CONTROL) if (sys.stderr if err else sys.stdout).isatty() else text


def print_stream(stream: Any) -> Any:
    """Write the pieces as they come; Ctrl-C keeps what is there and ends the line.  Returns the result."""
    result = None
    try:
        for piece in stream:
            sys.stdout.write(for_terminal(piece))
            sys.stdout.flush()
        result = stream.result
    except KeyboardInterrupt:
        result = stream.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return result


def reporter(name: str) -> Callable[[str], None] | None:
    """What is measured now, on stderr when somebody watches."""
    return (lambda line: typer.echo(f"{name}: {line}", err=True)) if sys.stderr.isatty() else None


@contextmanager
def progress(total: int, label: str, *, unit: str = "answers") -> Iterator[Callable[[int], None]]:
    """A bar on stderr, silent when it is not a terminal.  Yields a function that advances it."""
    if not sys.stderr.isatty() or total <= 1:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)


def percent(label: str) -> Callable[[int, int], None]:
    """A bar of per cents on stderr: called with (done, total), from the first call until all is done."""
    bar = ExitStack()
    shown = 0
    tick: Callable[[int], None] | None = None

    def advance(done: int, total: int) -> None:
        nonlocal shown, tick
        if tick is None:
            tick, shown = bar.enter_context(progress(100, label, unit="%")), 0
        now = 100 * done // max(total, 1)
        tick(now - shown)
        shown = now
        if now >= 100:
            bar.close()
            tick = None

    return advance


def print_stats(result: Any) -> None:
    """One line about a generation's calls, drafts and time, to stderr."""
    tokens = len(result.token_ids or [])
    if not tokens or result.tokens_per_call is None:
        return
    line = f"{tokens} tokens, {result.tokens_per_call:.2f} per call, {1e3 * result.seconds / tokens:.1f} ms per token"
    if result.proposed:
        line += f"; drafted {result.proposed}, kept {result.accepted} ({result.accepted / result.proposed:.0%})"
    typer.echo(line, err=True)


def print_undrafted(results: Sequence[Any], drafter: str | None, budget: str, runtime: str) -> None:
    """One line on stderr where a drafter was asked for and none of its guesses was worth a longer call."""
    tokens = sum(len(result.token_ids or []) for result in results)
    if drafter in (None, "none") or budget != "auto" or tokens < LEAST_DRAFTED or any(r.proposed for r in results):
        return
    way = "" if runtime == "native" else f", as {runtime} computes them; --runtime native makes several positions cheap"
    typer.echo(f"Note: nothing was drafted: no guess of {drafter} was worth a longer call{way}", err=True)


def print_ending(result: Any) -> None:
    """One line on stderr about an answer that did not end by itself, or says nothing."""
    count = len(result.token_ids if result.token_ids is not None else result.tokens or [])
    said = {
        "length": f"cut after {count} tokens: --max-tokens (in a chat /set max_tokens=...) allows more",
        "context": f"cut after {count} tokens: the context is full; --context makes room, in a chat /reset",
        "repetition": f"stopped after {count} tokens: the text repeats itself (-s stop_repetition=false lets it)",
    }.get(result.finish_reason)
    if said is None and not result.text.strip():
        said = "the model's answer is empty"
    if said is not None and result.complete is not False:  # of a form, that is an error of its own
        typer.echo(f"Note: {said}", err=True)


def print_better(name: str) -> None:
    """On a terminal, once for each weak model that is known by name: which model is better, and how to get it."""
    known = known_model(name)
    if known is None or not known.better or not sys.stderr.isatty():
        return
    told = cache_dir() / "told" / known.name
    if not told.exists():
        typer.echo(f"Note: {known.better}", err=True)
        with suppress(OSError):
            told.parent.mkdir(parents=True, exist_ok=True)
            told.touch()


def print_table(heads: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> None:
    """Aligned columns under their heads; the first `left` ones are texts, the others numbers."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        typer.echo(for_terminal("  ".join(aligned).rstrip()))


def with_interval(value: float, interval: Sequence[float], digits: int = 3) -> str:
    """As in "0.734 [0.702, 0.765]"."""
    low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_grid(heads: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Sequence[str] = ()) -> None:
    """A table of texts, folded inside their columns to the width of the terminal, but for those named in `whole`.

    Where the terminal is narrower than LEAST_WIDTH its lines break: columns of one letter are not read.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head in whole)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, LEAST_WIDTH)
    console.print(table)
