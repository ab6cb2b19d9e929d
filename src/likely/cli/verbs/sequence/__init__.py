"""likely sequence: layers for long sequences, and what is built on them."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.sequence.layers import layers
from likely.cli.verbs.sequence.plan import plan

EXAMPLES = """Layers for long sequences: state spaces, linear attention, attention.

Examples:

  likely sequence layers

  likely sequence layers --width 256 --length 65536

  likely sequence plan --lengths lengths.txt --devices 64 --compare
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of verbs on sequence layers."""


for verb in (layers, plan):
    verbs.command(cls=VerbCommand)(verb)
