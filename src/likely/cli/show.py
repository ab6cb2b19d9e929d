"""--show and --html: what `ask`, `generate` and `score` share to make tokens visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import options
from likely.cli.flags import JsonOption
from likely.io.whole_file import check_target, write_for_user

if TYPE_CHECKING:
    from likely.lm.results import Generation
    from likely.scoring.scored import Scored

ALTERNATIVES = 5  # per token, unless another number was asked for


@dataclass(frozen=True)
class ShowFlags:
    """How a result is shown: its tokens in the terminal, on a page, or JSON."""

    show: Annotated[bool, typer.Option("--show", help="Show the tokens, coloured by log-probability.")] = False
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of the tokens with their alternatives.")
    ] = None
    as_json: JsonOption = False

    def wanted(self) -> bool:
        """Whether tokens are to be seen; what cannot work is refused before a model is loaded."""
        if self.show and self.as_json:
            raise typer.BadParameter("--show is for people and --json for programs: choose one", param_hint="--show")
        check_page(self.html)
        return self.show or self.html is not None

    def present(self, lm: Any, records: Sequence[Scored | Generation], *, title: str, prompt: str) -> None:
        """Print the records' tokens, write their page."""
        if not (self.show or self.html):
            return
        from likely.show.tokens import shown

        texts = [shown(record) for record in records]
        if self.html is not None:
            from likely.show.html import page

            write_page(self.html, page(texts, title=title, prompt=prompt, origin=options.origin(lm)))
        if self.show:
            from likely.show.terminal import print_shown

            print_shown(texts)
            present_fields(records)


def check_page(html: Path | None) -> None:
    """Refuse what is no place for a page."""
    if html is not None:
        check_target(html, (".html", ".htm"))


def write_page(html: Path, page: str) -> None:
    write_for_user(html, page.encode())
    typer.echo(f"wrote {html}", err=True)


def more_to_show(lm: Any, top_logprobs: int) -> dict[str, Any]:
    """Options for `score` that fill a page; a server gives no entropies."""
    from likely.lm.model import Model

    more: dict[str, Any] = {"entropy": True} if isinstance(lm, Model) else {}
    return {"top_logprobs": top_logprobs or ALTERNATIVES, **more}


def present_fields(records: Sequence[Scored | Generation]) -> None:
    """Print the fields of the records that have some."""
    from likely.show.terminal import print_fields

    for record in records:
        if fields := getattr(record, "fields", None):
            typer.echo()
            print_fields(fields, record.structure)  # type: ignore[union-attr]
