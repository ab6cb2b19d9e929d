"""--schema, --regex, --choices, --grammar: what several verbs share to say what a text must look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import options as opt

if TYPE_CHECKING:
    from likely.lm.results import Generation

SchemaOption = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="A JSON Schema: the text is JSON that obeys it."),
]
RegexOption = Annotated[str | None, typer.Option("--regex", metavar="PATTERN", help="The whole text matches it.")]
ChoicesOption = Annotated[
    str | None,
    typer.Option("--choices", metavar="A,B,...", help='The text is one of these (or a JSON list: \'["a, b", "c"]\').'),
]
GrammarOption = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="A Lark grammar whose rule start the text follows."),
]


def form_options(
    schema: Path | None,
    regex: str | None,
    choices: str | None,
    grammar: Path | None,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """The option of `generate` that was given, if any; what can be refused is refused before a model is loaded.

    others  options given beside it, those of `FormSettings` among them
    """
    flags = {"--schema": schema, "--regex": regex, "--choices": choices, "--grammar": grammar}
    named = [flag for flag, value in flags.items() if value is not None]
    if not named:
        return {}
    if len(named) > 1:
        raise typer.BadParameter(f"choose one form of the text, got {', '.join(named)}", param_hint=named[1])
    from likely.guided.form import FormSettings, make_form

    if schema is not None:
        given: dict[str, Any] = {"schema": read_schema(schema)}
    elif grammar is not None:
        given = {"grammar": opt.read_text(grammar, encoding="utf-8-sig")}
    elif choices is not None:
        given = {"choices": _choices(choices)}
    else:
        given = {"regex": regex}
    settings = {f.name: others[f.name] for f in fields(FormSettings) if f.name in others}
    make_form(**given, settings=FormSettings(**settings))
    return given


def streams(options: Mapping[str, Any]) -> bool:
    """Whether the text may be shown as it comes: one that may be drawn again is shown when it is whole."""
    return options.get("on_unsupported") != "validate"


def read_schema(path: Path) -> Any:
    """A JSON Schema from a file; DataError names line and column of what is no JSON."""
    from likely.errors import DataError

    try:
        schema = json.loads(opt.read_text(path, encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply") from None
    if not isinstance(schema, (dict, bool)):
        raise DataError(f"{path}: a JSON Schema is an object, found {type(schema).__name__}")
    return schema


def _choices(text: str) -> list[str]:
    """Words between commas, or a JSON list of strings."""
    if not text.lstrip().startswith("["):
        return [word.strip() for word in text.split(",")]
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not a JSON list: {error}", param_hint="--choices") from None
    return list(found)


def conclude(results: Sequence[Generation]) -> None:
    """Say what was not held; ConstraintError, that is exit code 1 and one line, if one of the texts is not whole."""
    from likely.errors import ConstraintError
    from likely.lm.extract import why_incomplete

    for warning in dict.fromkeys(line for result in results for line in result.warnings):
        typer.echo(f"Warning: {warning}", err=True)
    found = [why for result in results if (why := why_incomplete(result))]
    if found:
        count = f"{len(found)} of {len(results)} texts: " if len(results) > 1 else ""
        raise ConstraintError(count + found[0])
