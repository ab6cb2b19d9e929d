"""What verbs do with what was given: read settings and texts, refuse files, say what a number depends on."""

from __future__ import annotations

import ast
import os
import select
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from likely.decoding.drafting.table import check_name
from likely.errors import DataError
from likely.io.whole_file import read_text


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs as Python values (true and false as JSON has them, too); what is no literal is a string."""
    out: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"expected KEY=VALUE, got {pair!r}", param_hint="--set")
        try:
            out[key.strip().replace("-", "_")] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            out[key.strip().replace("-", "_")] = value
    return out


def drafting(drafter: str | None, budget: str) -> dict[str, Any]:
    """The options of speculation that were given; a wrong name or number is refused before a model is loaded."""
    given: dict[str, Any] = {}
    if drafter is not None:
        try:
            check_name(drafter)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--drafter") from None
        given["drafter"] = drafter
    if budget != "auto":
        given["draft_budget"] = draft_budget(budget)
    return given


def draft_budget(text: str) -> int | Literal["auto"]:
    """What --draft-budget says."""
    if text in ("auto", "off"):
        return "auto" if text == "auto" else 0
    if not text.isdecimal() or int(text) > 1024:
        raise typer.BadParameter(
            f'"auto", "off" or a whole number in 0..1024, got {text!r}', param_hint="--draft-budget"
        )
    return int(text)


def text_or_stdin(text: str | None, what: str, files: Sequence[Path] = ()) -> str:
    """Files, then what a pipe brings, then the argument, with blank lines between; "-" is standard input, too."""
    parts = [read_text(file).rstrip("\n") for file in files]
    for file, part in zip(files, parts, strict=True):
        if not part.strip():
            raise DataError(f"{file} is empty: nothing to put before the {what}")
    if text == "-" or _is_piped(wait=text is None and not files):
        if text is not None and text != "-":
            _say_what_is_waited_for(what)
        parts.append(_read_stdin(what))
    elif text is None and not files:
        raise typer.BadParameter(f"give a {what}, or pipe one in", param_hint=what.upper())
    if text is not None and text != "-":
        parts.append(text)
    return "\n\n".join(part for part in parts if part)


def _is_piped(*, wait: bool) -> bool:
    """Whether standard input brings a text: a pipe or a file; with `wait` whatever is no terminal."""
    if wait or sys.stdin.isatty():
        return not sys.stdin.isatty()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file of the system
        return True
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _say_what_is_waited_for(what: str, patience_s: float = 2.0) -> None:
    """A pipe that brings nothing for a while is told of, since it may be one that somebody left open."""
    try:
        ready = os.name == "nt" or select.select([sys.stdin], [], [], patience_s)[0]
    except (OSError, ValueError):
        return
    if not ready:
        typer.echo(f"reading standard input, which comes before the {what} (< /dev/null: nothing)", err=True)


def _read_stdin(what: str) -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"standard input is not UTF-8 (byte {error.start})", param_hint=what.upper()) from None


def origin(model: Any) -> dict[str, Any]:
    """What a number depends on, for JSON output and headers of results files."""
    from likely import __version__

    info = model.info
    return {
        "likely": __version__,
        "model": info.name,
        "runtime": info.runtime,
        "dtype": info.dtype,
        "sha256": info.sha256,
        "tokenizer": info.tokenizer,
    }


def same_file(one: str, other: Path) -> bool:
    """Whether the output would replace the input."""
    try:
        return other.samefile(one)
    except OSError:
        return False


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Refuse a target that is there already, unless it may be replaced."""
    if output.exists() and not overwrite:
        raise typer.BadParameter(f"{output} exists: choose another file or --overwrite", param_hint="--output")


def refuse_same_file(file: str, output: Path | None) -> None:
    if output is not None and same_file(file, output):
        raise typer.BadParameter("the output would replace the input: choose another file", param_hint="--output")
