"""--schema, --regex, --choices, --grammar: what several verbs share to say what a text must look like."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli.help import LIST
from likely.errors import ConstraintError, DataError
from likely.io.whole_file import read_text
from likely.lm.extract import why_incomplete

if TYPE_CHECKING:
    from likely.lm.results import Generation


@dataclass(frozen=True)
class FormFlags:
    """What the text must look like: at most one of them."""

    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE", help="A JSON Schema: the text is JSON that obeys it.")
    ] = None
    regex: Annotated[str | None, typer.Option("--regex", metavar="PATTERN", help="The whole text matches it.")] = None
    choices: Annotated[
        str | None,
        typer.Option("--choices", metavar=LIST, help='The text is one of these (or a JSON list: \'["a, b", "c"]\').'),
    ] = None
    grammar: Annotated[
        Path | None, typer.Option("--grammar", metavar="FILE", help="A Lark grammar whose rule start the text follows.")
    ] = None

    def given(self, others: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """The option of `generate` that was given, if any; what can be refused is refused before a model is loaded.

        others  options given beside it, those of `FormSettings` among them
        model   for which it is; a server's grammars may be written in another way than ours
        """
        named = {name: value for name, value in vars(self).items() if value is not None}
        if not named:
            return {}
        if len(named) > 1:
            flags = [f"--{name}" for name in named]
            raise typer.BadParameter(f"choose one form of the text, got {', '.join(flags)}", param_hint=flags[1])
        from likely.guided.form import FormSettings, make_form
        from likely.models.load import is_url

        [(name, value)] = named.items()
        readers: dict[str, Callable[[Any], Any]] = {
            "schema": read_schema, "grammar": _read_grammar, "choices": _choices, "regex": str,
        }  # fmt: skip
        form = {name: readers[name](value)}
        settings = {f.name: others[f.name] for f in fields(FormSettings) if f.name in others}
        made = make_form(**form, settings=FormSettings(**settings))
        if made.kind == "grammar" and made.settings.backend == "llguidance" and not is_url(model):
            from likely.guided.engines.llguidance import why_refused

            if why := why_refused(made.source):
                raise ConstraintError(f"{value} is no grammar: {why}")
        return form


def _read_grammar(path: Path) -> str:
    return read_text(path, "utf-8-sig")


def streams(options: Mapping[str, Any]) -> bool:
    """Whether the text may be shown as it comes: one that may be drawn again is shown when it is whole."""
    return options.get("on_unsupported") != "validate"


def read_schema(path: Path) -> Any:
    """A JSON Schema from a file; DataError names line and column of what is no JSON."""
    try:
        schema = json.loads(read_text(path, "utf-8-sig"))
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
    for warning in dict.fromkeys(line for result in results for line in result.warnings):
        typer.echo(f"Warning: {warning}", err=True)
    found = [why for result in results if (why := why_incomplete(result))]
    if found:
        count = f"{len(found)} of {len(results)} texts: " if len(results) > 1 else ""
        raise ConstraintError(count + found[0])
