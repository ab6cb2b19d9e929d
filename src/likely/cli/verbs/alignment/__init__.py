"""likely align: train a model on examples, preferences or rewards, and say what that did to its likelihoods."""

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.alignment.frontier import frontier

verbs = typer.Typer(no_args_is_help=True, help="Train a model on examples, preferences, rewards or labels.")
verbs.command(cls=VerbCommand)(frontier)
