"""likely diffusion: train, decode, score and look at masked diffusion language models."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.diffusion.analyse import analyse
from likely.cli.verbs.diffusion.generate import generate
from likely.cli.verbs.diffusion.score import score
from likely.cli.verbs.diffusion.train import train

EXAMPLES = """Diffusion language models: train a tiny one, decode faster, bound likelihoods.

Examples:

  likely diffusion train sudoku -o sudoku

  likely diffusion generate -m sudoku "1..43.1.2....32." --freedave 4

  likely diffusion analyse -m sudoku
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of verbs."""


for verb in (train, generate, score, analyse):
    verbs.command(cls=VerbCommand)(verb)
