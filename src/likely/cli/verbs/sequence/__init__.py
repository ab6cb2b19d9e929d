"""likely sequence: layers for long sequences, and what is built on them."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.sequence.bench import bench
from likely.cli.verbs.sequence.convert import convert
from likely.cli.verbs.sequence.layers import layers
from likely.cli.verbs.sequence.plan import plan

EXAMPLES = """Layers for long sequences: state spaces, linear attention, attention.

Examples:

  likely sequence layers

  likely sequence layers --width 256 --length 65536

  likely sequence convert mamba-130m-hf -o mamba-130m

  likely sequence bench s4d mamba2 attention --task selective-copy --task mqar --cells cells.jsonl

  likely sequence plan --lengths lengths.txt --devices 64 --compare
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of verbs on sequence layers."""


for verb in (layers, bench, convert, plan):
    verbs.command(cls=VerbCommand)(verb)
