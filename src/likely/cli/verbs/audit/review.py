"""likely audit review: people judge what a model made, blind, in the terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from likely.cli import flags
from likely.cli.printing import for_terminal, print_json, print_table
from likely.io.whole_file import read_text

if TYPE_CHECKING:
    from likely.audit.review import Criterion, ReviewItem, ReviewQueue


def review(
    queue: Annotated[Path, typer.Argument(help="A queue, as likely audit probes queue writes it.")],
    annotator: Annotated[str | None, typer.Option("--annotator", "-a", help="Your name: judge what is left.")] = None,
    votes: Annotated[
        Path | None, typer.Option("--import", help="CSV of votes: annotator, item, one column per criterion, reason.")
    ] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Take no votes from now on.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Judge the items of a queue, or say how far the annotators agree.

    Nobody sees which model made an item, or what others said.  Every vote is kept at once: q stops, and the same
    command goes on.  Without --annotator: agreement (Cohen's kappa, or Krippendorff's alpha) and what passes.

    Examples:

      likely audit review queue.jsonl --annotator anna

      likely audit review queue.jsonl --import votes.csv

      likely audit review queue.jsonl --json
    """
    from likely.audit.review import ReviewQueue

    opened = ReviewQueue.open(queue)
    if votes is not None:
        typer.echo(f"{opened.import_votes(read_text(votes))} votes imported", err=True)
    if freeze:
        opened.freeze()
    if annotator is not None:
        _judge(opened, annotator)
        return
    found = opened.agreement()
    if as_json:
        print_json({
            "queue": str(queue), "items": len(opened.items), "votes": len(opened.votes), "frozen": opened.frozen,
            "codebook": opened.codebook_digest, "pass_rate": opened.pass_rate, "agreement": [asdict(a) for a in found],
        })  # fmt: skip
        return
    print_table(
        ("criterion", "measure", "agreement", "annotators", "items of several", "pass"),
        [(a.criterion, a.measure, "not defined" if a.value is None else f"{a.value:.3f}", a.raters, a.items,
          f"{a.passed:.0%}") for a in found],
        left=2,
    )  # fmt: skip


def _judge(queue: ReviewQueue, annotator: str) -> None:
    waiting = queue.pending(annotator)
    for number, item in enumerate(waiting, 1):
        typer.echo(f"\n{number} of {len(waiting)}")
        _show(item)
        ratings = {}
        for criterion in queue.criteria:
            rating = _rating(criterion)
            if rating is None:
                typer.echo(f"{len(queue.pending(annotator))} left; the same command goes on", err=True)
                return
            ratings[criterion.name] = rating
        queue.vote(annotator, item.id, ratings, typer.prompt("why (enter: nothing)", default="", show_default=False))
    typer.echo("nothing is left to judge", err=True)


def _show(item: ReviewItem) -> None:
    for name, text in item.shown.items():
        typer.echo(for_terminal(f"  {name}: {text}"))


def _rating(criterion: Criterion) -> int | None:
    """A rating on the scale, asked for until there is one; None: stop."""
    from likely.errors import DataError

    scale = "/".join(map(str, criterion.scale))
    while True:
        said = typer.prompt(f"{criterion.question} [{scale}, q stops]")
        if said.strip().lower() == "q":
            return None
        try:
            return criterion.check(said)
        except DataError as error:
            typer.echo(str(error), err=True)
