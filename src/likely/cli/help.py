"""Help texts that list what tables hold, as in "{estimators}": filled in when help is asked for.

A table stands beside the classes that it names and may import much; --help of another verb, and every run, do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from typer.core import TyperCommand


def _recalibrators() -> Iterable[str]:
    from likely.calibration.recalibrators.table import RECALIBRATORS

    return RECALIBRATORS


def _estimators() -> Iterable[str]:
    from likely.uncertainty.table import ESTIMATORS

    return ESTIMATORS


def _runtimes() -> Iterable[str]:
    from likely.runtimes.kinds import KINDS

    return KINDS


def _dtypes() -> Iterable[str]:
    from likely.runtimes.kinds import DTYPES

    return DTYPES


def _criteria() -> Iterable[str]:
    from likely.prompting.selection.criteria import METHODS

    return METHODS


def _monitors() -> Iterable[str]:
    from likely.code.complete import MONITORS

    return MONITORS


def _conversions() -> Iterable[str]:
    from likely.models.convert import FORMATS

    return FORMATS


def _sampling() -> Iterable[str]:
    from dataclasses import fields

    from likely.decoding.sampling import Sampling

    return (field.name for field in fields(Sampling))


TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "recalibrators": _recalibrators, "estimators": _estimators, "runtimes": _runtimes, "dtypes": _dtypes,
    "criteria": _criteria, "monitors": _monitors, "conversions": _conversions, "sampling": _sampling,
}  # fmt: skip
_PLACE = re.compile("{(" + "|".join(TABLES) + ")}")


def filled(text: str) -> str:
    """The text with the names of the tables that it mentions."""
    return _PLACE.sub(lambda found: ", ".join(TABLES[found[1]]()), text)


class VerbCommand(TyperCommand):
    """A verb whose help names what tables hold."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            if text := getattr(parameter, "help", None):
                parameter.help = filled(text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)
