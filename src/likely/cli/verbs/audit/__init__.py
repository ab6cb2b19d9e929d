"""likely audit: what moves a model's answers, and how far."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.audit.ablate import ablate
from likely.cli.verbs.audit.review import review

EXAMPLES = """What moves a model's answers, and how far: look before you ship it.

Examples:

  likely audit ablate cases.jsonl --segments context --control shuffle:context

  likely audit review queue.jsonl --annotator anna
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of audits."""


for verb in (ablate, review):
    verbs.command(cls=VerbCommand)(verb)
