"""Help texts that list what tables hold, as in "{estimators}": filled in when help is asked for.

A table stands beside the classes that it names and may import much; --help of another verb, and every run, do without.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from likely.errors import missing_optional

TABLES = {
    "recalibrators": ("likely.calibration.recalibrators.table", "RECALIBRATORS"),
    "estimators": ("likely.uncertainty.table", "ESTIMATORS"),
    "runtimes": ("likely.runtimes.kinds", "KINDS"),
    "dtypes": ("likely.runtimes.kinds", "DTYPES"),
    "criteria": ("likely.prompting.selection.criteria", "METHODS"),
    "monitors": ("likely.code.complete", "MONITORS"),
    "conversions": ("likely.models.convert", "FORMATS"),
    "compressions": ("likely.compression.methods", "METHODS"),
    "preference_methods": ("likely.alignment.methods", "METHODS"),
    "audits": ("likely.audit.standard", "SIZES"),
    "sequence_layers": ("likely.sequence.table", "MIXERS"),
    "sequence_tasks": ("likely.bench.sequence.tasks", "TASKS"),
    "forecasters": ("likely.forecasting.selection", "METHODS"),
    "online_methods": ("likely.alignment.online.training", "ONLINE_METHODS"),
}  # (module, table)
LIST = "A,B,..."  # metavar of an option that takes several names with commas between
_PLACE = re.compile("{(" + "|".join(TABLES) + ")}")


def names(table: str) -> list[str]:
    module, attribute = TABLES[table]
    return list(getattr(import_module(module), attribute))


def filled(text: str) -> str:
    """The text with the names of the tables that it mentions, or which package is missing that would tell them."""

    def listed(found: re.Match[str]) -> str:
        try:
            return ", ".join(names(found[1]))
        except ModuleNotFoundError as error:
            if not missing_optional(error):
                raise
            return f"listed once {error.name} is installed"

    return _PLACE.sub(listed, text)


class VerbCommand(TyperCommand):
    """A verb whose help names what tables hold, and which refuses a list given in parts, as the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        order = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in self.params:
            if option.metavar == LIST and order.count(option) > 1:
                raise typer.BadParameter("give it once, with commas between: a,b", ctx, param_hint=option.opts[0])
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if text := getattr(parameter, "help", None):
                parameter.help = filled(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)
