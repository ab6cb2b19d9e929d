"""likely audit: what moves a model's answers, and how far."""

from __future__ import annotations

import typer

from likely.cli.help import VerbCommand
from likely.cli.verbs.audit import probes
from likely.cli.verbs.audit.ablate import ablate
from likely.cli.verbs.audit.exposure import exposure
from likely.cli.verbs.audit.invert import invert
from likely.cli.verbs.audit.mermaid import mermaid
from likely.cli.verbs.audit.reach import reach
from likely.cli.verbs.audit.review import review
from likely.cli.verbs.audit.spectral import spectral
from likely.cli.verbs.audit.whole import audit_all
from likely.cli.verbs.project import tools

EXAMPLES = """What moves a model's answers, and how far: look before you ship it.

Examples:

  likely audit all smollm2 --kept audit --report audit.html

  likely audit ablate cases.jsonl --segments context --control shuffle:context

  likely audit mermaid flows.jsonl --limit 8 --report diagrams.html

  likely audit probes make questions.jsonl -m gemma3 -o probes.jsonl

  likely audit reach smollm2 --state "The capital of France is" --target " Rome"

  likely audit exposure smollm2

  likely audit invert smollm2 --prompts prompts.jsonl

  likely audit review queue.jsonl --annotator anna
"""
verbs = typer.Typer(help=EXAMPLES, no_args_is_help=True, rich_markup_mode=None)


@verbs.callback()
def group() -> None:
    """A group of audits."""


verbs.command("all", cls=VerbCommand)(audit_all)
verbs.add_typer(probes.verbs, name="probes")
verbs.add_typer(tools.verbs, name="tools")  # likely tools, which is an audit, too
for verb in (reach, exposure, invert, ablate, mermaid, review, spectral):
    verbs.command(cls=VerbCommand)(verb)
