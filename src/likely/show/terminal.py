"""Texts and their fields in the terminal, tokens coloured by log-probability.

Without colour there are a digit and dots under each token:

Once upon a time↵
3...2....0.0....5       the digit is the colour's level (legend), the dots are the rest of the token
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from likely.show.colours import BREAKPOINTS, DARK, LEVELS, legend, legend_probability, level_of
from likely.show.tokens import EMPTY, Shown, Token, one_line, probability, visible

if TYPE_CHECKING:
    from rich.console import Console

    from likely.guided.fields import Field, Share

EMPTY_TEXT = "(empty text)"
LEAST_LIKELY = 3  # tokens named below each text
TokenPart = tuple[str, int]  # text, index of its token


def print_shown(texts: Sequence[Shown], *, console: Console | None = None, file: IO[str] | None = None) -> None:
    """Print texts with their tokens and a legend.

    Colour is used on a terminal of 256 or more colours; with NO_COLOR, in a pipe or on a poorer terminal, marks.
    """
    console, colour = _opened(console, file)
    _print_legend(console, colour)
    for text in texts:
        _print(console, "")
        _print(console, _headline(text))
        _print_tokens(console, text.tokens, colour)
        for line in _least_likely(text.tokens):
            _print(console, line)


def _opened(console: Console | None, file: IO[str] | None) -> tuple[Console, bool]:
    """The console to print to, and whether it shows colours."""
    from rich.console import Console

    console = console or Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)
    return console, console.is_terminal and not console.no_color and console.color_system in ("256", "truecolor")


def _print(console: Console, line: str) -> None:
    """One plain line; characters that the stream's encoding lacks are escaped."""
    encoding = console.encoding
    safe = line.encode(encoding, "backslashreplace").decode(encoding)
    console.print(safe, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_legend(console: Console, colour: bool) -> None:
    from rich.text import Text

    if not colour:
        edges = "  ".join(f"{level}: {nats}" for level, nats in enumerate(legend()))
        _print(console, f"level under each token, by logprob in nats  {edges}")
        return
    line = Text("logprob in nats (p)")
    for level, (nats, p) in enumerate(zip(legend(), legend_probability(), strict=True)):
        cell = f" {nats} ({p[2:]}) "
        if line.cell_len + 1 + len(cell) > console.width:
            console.print(line, highlight=False, soft_wrap=True)
            line = Text()
        line.append(" ").append(cell, style=_style(level))
    console.print(line, highlight=False, soft_wrap=True)


def _style(level: int) -> str:
    cell = DARK[level]
    return f"{cell.text} on {cell.background}"


def _headline(text: Shown) -> str:
    mean = "" if text.mean_logprob is None else f"  mean {text.mean_logprob:.4f}"
    count = len(text.tokens)
    note = f"  ({text.note})" if text.note else ""
    return (
        f"{one_line(text.title, 60) or EMPTY_TEXT}  sum {text.sequence_logprob:.4f}{mean}  "
        f"{count} {'token' if count == 1 else 'tokens'}{note}"
    )


def _print_tokens(console: Console, tokens: Sequence[Token], colour: bool) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    last = -1
    for line in wrap([visible(token.text) or EMPTY for token in tokens], max(8, console.width)):
        if colour:
            styled = Text(no_wrap=True)
            for piece, i in line:
                styled.append(piece, style=_style(level_of(tokens[i].logprob)))
            console.print(styled, highlight=False, soft_wrap=True)
            continue
        marks = ""
        for piece, i in line:
            width = cell_len(piece)
            digit = str(level_of(tokens[i].logprob)) if i != last and width else ""  # once per token
            marks += digit + "." * (width - len(digit))
            last = i
        _print(console, "".join(piece for piece, _ in line))
        _print(console, marks)


def wrap(texts: Sequence[str], width: int) -> Iterator[list[TokenPart]]:
    """Lines of at most `width` cells; broken after newlines, else before a word, else inside it."""
    from rich.cells import cell_len

    line: list[TokenPart] = []
    used = 0
    for word in _words(texts):
        needed = sum(cell_len(text) for text, _ in word)
        if line and used + needed > width:
            yield line
            line, used = [], 0
        for text, i in word:
            for char in _clusters(text):
                size = cell_len(char)
                if line and used + size > width:
                    yield line
                    line, used = [], 0
                if line and line[-1][1] == i:
                    line[-1] = (line[-1][0] + char, i)
                else:
                    line.append((char, i))
                used += size
        if word and word[-1][0].endswith("\n"):
            yield [(text.rstrip("\n"), i) for text, i in line]
            line, used = [], 0
    if line:
        yield line


def _words(texts: Sequence[str]) -> Iterator[list[TokenPart]]:
    """Runs of pieces that are better not torn apart: a new one begins at a space and after a newline."""
    word: list[TokenPart] = []
    for i, text in enumerate(texts):
        for part in text.splitlines(keepends=True):
            if part.startswith(" ") and word:
                yield word
                word = []
            word.append((part, i))
            if part.endswith("\n"):
                yield word
                word = []
    if word:
        yield word


def _clusters(text: str) -> Iterator[str]:
    """Characters with the zero-width ones that follow them."""
    from rich.cells import cell_len

    held = ""
    for char in text:
        if held and cell_len(char) > 0:
            yield held
            held = ""
        held += char
    if held:
        yield held


def _least_likely(tokens: Sequence[Token]) -> Iterator[str]:
    """The least likely tokens, and what the model would rather have seen."""
    order = sorted(range(len(tokens)), key=lambda i: tokens[i].logprob)[:LEAST_LIKELY]
    for i in order:
        token = tokens[i]
        if token.logprob >= BREAKPOINTS[1]:
            return
        line = (
            f'  token {i + 1} "{one_line(token.text, 40)}": logprob {token.logprob:.4f}, p {probability(token.logprob)}'
        )
        if token.entropy is not None:
            line += f", entropy {token.entropy:.4f}"
        if token.alternatives and token.rank != 1:
            best = max(token.alternatives, key=lambda top: top.logprob)
            rank = f"rank {token.rank}" if token.rank else f"not among the first {len(token.alternatives)}"
            line += f', {rank}; first: "{one_line(best.text, 40)}" p {probability(best.logprob)}'
        yield line


assert LEVELS <= 10  # a level is one digit in the marks


# --- fields of a structured text: a line each, coloured by how likely the value was under its form ---

_FIELD_COLUMNS = ("field", "value", "logprob", "guided", "p guided", "least p", "tokens", "free")


def print_fields(
    fields: Sequence[Field], structure: Share | None, *, console: Console | None = None, file: IO[str] | None = None
) -> None:
    """Print a table of the fields; colour is the level of guided_logprob, on a terminal that has 256 colours.

    logprob, guided  nats, over the tokens where there was something to choose;  least p: of the least likely of them
    """
    from rich.text import Text

    console, colour = _opened(console, file)
    rows = [_field_row(f.pointer or "(all)", f.text + (" *" if f.straddles else ""), f) for f in fields]
    if structure is not None and structure.n_tokens:
        rows.append(_field_row("(structure)", "", structure))
    widths = [max(len(row[i]) for row in [_FIELD_COLUMNS, *rows]) for i in range(len(_FIELD_COLUMNS))]
    console.print(
        Text("  ".join(_aligned(_FIELD_COLUMNS, widths))), highlight=False, markup=False, emoji=False, soft_wrap=True
    )
    for row, found in zip(rows, [*fields, structure], strict=False):
        cells = _aligned(row, widths)
        line = Text(f"{cells[0]}  ")
        level = level_of(found.guided_logprob)  # type: ignore[union-attr]
        line.append(cells[1], style=_style(level) if colour and row[1] else "")
        line.append("  " + "  ".join(cells[2:]))
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if any(f.straddles for f in fields):
        console.print(
            Text("* shares a token with its surroundings"), highlight=False, markup=False, emoji=False, soft_wrap=True
        )


def _field_row(name: str, value: str, share: Share) -> tuple[str, ...]:
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


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        text.ljust(width) if i < 2 else text.rjust(width)
        for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
