"""What verbs do with what was given: read settings and texts, refuse files, say what a number depends on."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import typer

from likely.decoding.drafting.table import check_name
from likely.errors import DataError


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
        if not budget.isdecimal() or int(budget) > 1024:
            raise typer.BadParameter(
                f'"auto" or a whole number in 0..1024, got {budget!r}', param_hint="--draft-budget"
            )
        given["draft_budget"] = int(budget)
    return given


def text_or_stdin(text: str | None, what: str) -> str:
    """The argument, or all of standard input where it is a pipe or "-"."""
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter(f"give a {what}, or pipe one in", param_hint=what.upper())
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


def read_text(path: str | Path, *, encoding: str = "utf-8") -> str:
    """The text of a file; DataError in one line for one that cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def refuse_same_file(file: str, output: Path | None) -> None:
    if output is not None and same_file(file, output):
        raise typer.BadParameter("the output would replace the input: choose another file", param_hint="--output")
