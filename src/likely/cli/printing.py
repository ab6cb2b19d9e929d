"""Text to the terminal as it comes, JSON for machines, progress on stderr when somebody watches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer


def print_json(record: dict[str, Any]) -> None:
    typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))


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
