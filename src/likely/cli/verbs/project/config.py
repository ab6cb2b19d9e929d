"""likely config: defaults of your own for the model and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.config import NAMES, check_name, checked, config_file, read_config, write_config
from likely.cli.printing import print_json
from likely.models.catalog import known_model


def config(
    name: Annotated[str | None, typer.Argument(help=f"{', '.join(NAMES)}.")] = None,
    value: Annotated[str | None, typer.Argument(help="Its new default; without: the present one is shown.")] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Take the default away.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Defaults for --model, --runtime, --dtype, --context and --threads of every verb; a flag goes before them.

    They are for the command line alone: `likely.load()` in Python does not read them.

    Examples:

      likely config

      likely config model ~/models/bigger.gguf

      likely config threads 2

      likely config threads --unset
    """
    settings = read_config()
    if name is not None:
        check_name(name, "likely config")
    if name is not None and (unset or value is not None):
        if unset and value is not None:
            raise typer.BadParameter("a value or --unset, not both", param_hint="--unset")
        settings = {key: old for key, old in settings.items() if key != name}
        if value is not None:
            if name == "model" and not known_model(value) and Path(value).expanduser().exists():
                value = str(Path(value).expanduser().resolve())  # found from anywhere
            number = NAMES.get(name) is int and value.isdecimal()
            settings[name] = checked(name, int(value) if number else value, "likely config")
            _check_as_verbs_do(name, value)
        write_config(settings)
    shown = settings if name is None else {key: old for key, old in settings.items() if key == name}
    if as_json:
        print_json({"file": str(config_file()), **shown})
        return
    for key, setting in shown.items():
        typer.echo(f"{key} = {setting}")
    typer.echo(f"{'none set' if not shown else 'kept'} in {config_file()}", err=True)


@flags.grouped
def _any_verb(model: flags.ModelFlags) -> None:
    """The options that a default may be for."""


def _check_as_verbs_do(name: str, value: str) -> None:
    """Refuse what every verb would refuse from then on."""
    app = typer.Typer(add_completion=False)
    app.command()(_any_verb)
    typer.main.get_command(app).make_context("likely config", [f"--{name}", value])
