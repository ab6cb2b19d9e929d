"""Fields of a structured text in the terminal: a line each, coloured by how likely the value was under its form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from likely.show.colours import DARK, level_of
from likely.show.tokens import one_line, probability

if TYPE_CHECKING:
    from rich.console import Console

    from likely.guided.fields import Field, Share

HEAD = ("field", "value", "logprob", "guided", "p guided", "least p", "tokens", "free")


def print_fields(
    fields: Sequence[Field], structure: Share | None, *, console: Console | None = None, file: IO[str] | None = None
) -> None:
    """Print a table of the fields; colour is the level of guided_logprob, on a terminal that has 256 colours.

    logprob, guided  nats, over the tokens where there was something to choose;  least p: of the least likely of them
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)
    colour = console.is_terminal and not console.no_color and console.color_system in ("256", "truecolor")
    rows = [_row(f.pointer or "(all)", f.text + (" *" if f.straddles else ""), f) for f in fields]
    if structure is not None and structure.n_tokens:
        rows.append(_row("(structure)", "", structure))
    widths = [max(len(row[i]) for row in [HEAD, *rows]) for i in range(len(HEAD))]
    _line(console, Text("  ".join(_cells(HEAD, widths))))
    for row, found in zip(rows, [*fields, structure], strict=False):
        cells = _cells(row, widths)
        line = Text(f"{cells[0]}  ")
        cell = DARK[level_of(found.guided_logprob)]  # type: ignore[union-attr]
        line.append(cells[1], style=f"{cell.text} on {cell.background}" if colour and row[1] else "")
        line.append("  " + "  ".join(cells[2:]))
        _line(console, line)
    if any(f.straddles for f in fields):
        _line(console, Text("* shares a token with its surroundings"))


def _row(name: str, value: str, share: Share) -> tuple[str, ...]:
    least = "" if share.min_probability is None else probability(math.log(share.min_probability or 5e-324))
    return (
        one_line(name, 40),
        one_line(value, 60),
        f"{share.logprob:.4f}",
        f"{share.guided_logprob:.4f}",
        probability(share.guided_logprob),
        least,
        str(share.n_tokens),
        str(share.n_free_tokens),
    )


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if i < 2 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]


def _line(console: Console, line: object) -> None:
    console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
