"""likely align: train a model on examples, preferences or rewards, and say what that did to its likelihoods."""

import typer

verbs = typer.Typer(no_args_is_help=True, help="Train a model on examples, preferences, rewards or labels.")
