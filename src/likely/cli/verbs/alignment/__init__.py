"""likely align: train a model on examples, preferences or rewards, and say what that did to its likelihoods."""

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.alignment.pairs import pairs
from likely.cli.verbs.alignment.reward import reward
from likely.cli.verbs.alignment.sft import sft
from likely.cli.verbs.alignment.train import train

verbs = typer.Typer(no_args_is_help=True, help="Train a model on examples, preferences, rewards or labels.")
for verb in (sft, reward, pairs, train):
    verbs.command(cls=VerbCommand)(verb)
