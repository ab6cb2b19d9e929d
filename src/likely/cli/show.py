"""--show and --html: what `ask`, `generate` and `score` share to make tokens visible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import options

if TYPE_CHECKING:
    from likely.lm.results import Generation
    from likely.scoring.scored import Scored

ALTERNATIVES = 5  # per token, unless another number was asked for

ShowOption = Annotated[bool, typer.Option("--show", help="Show the tokens, coloured by log-probability.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page of the tokens with their alternatives.")
]


def wanted(show: bool, html: Path | None, as_json: bool) -> bool:
    """Whether tokens are to be seen; what cannot work is refused before a model is loaded."""
    if show and as_json:
        raise typer.BadParameter("--show is for people and --json for programs: choose one", param_hint="--show")
    if html is not None:
        from likely.io.whole_file import check_target

        check_target(html, (".html", ".htm"))
    return show or html is not None


def more_to_show(lm: Any, top_logprobs: int) -> dict[str, Any]:
    """Options for `score` that fill a page; a server gives no entropies."""
    from likely.lm.model import Model

    more: dict[str, Any] = {"entropy": True} if isinstance(lm, Model) else {}
    return {"top_logprobs": top_logprobs or ALTERNATIVES, **more}


def present(
    lm: Any, records: Sequence[Scored | Generation], *, show: bool, html: Path | None, title: str, prompt: str
) -> None:
    """Print the records' tokens, write their page."""
    if not (show or html):
        return
    from likely.show.tokens import shown

    texts = [shown(record) for record in records]
    if html is not None:
        from likely.io.whole_file import write_for_user
        from likely.show.html import page

        write_for_user(html, page(texts, title=title, prompt=prompt, origin=options.origin(lm)).encode())
        typer.echo(f"wrote {html}", err=True)
    if show:
        from likely.show.terminal import print_shown

        print_shown(texts)
        present_fields(records)


def present_fields(records: Sequence[Scored | Generation]) -> None:
    """Print the fields of the records that have some."""
    from likely.show.terminal import print_fields

    for record in records:
        if fields := getattr(record, "fields", None):
            typer.echo()
            print_fields(fields, record.structure)  # type: ignore[union-attr]
