"""likely audit: what moves a model's answers, and how far."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.audit.spectral import spectral

EXAMPLES = """What moves a model's answers, and how far: look before you ship it."""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of audits."""


verbs.command(cls=VerbCommand)(spectral)
