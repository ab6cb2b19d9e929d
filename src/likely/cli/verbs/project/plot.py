"""likely plot: pictures of results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from likely.io.whole_file import check_target, write_for_user


def plot(
    files: Annotated[
        list[str], typer.Argument(metavar="RESULTS...", help='Files of likely score or ask; "-": standard input.')
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .svg or .pdf.")],
) -> None:
    """Draw how the log-probabilities of tokens and of answers are distributed; correct and wrong apart if labelled.

    Examples:

      likely plot scored.jsonl -o scored.png

      likely plot smollm2.jsonl gemma3.jsonl -o both.png
    """
    from likely.show.plot import FORMATS, draw_histograms, read_series, rename_apart, render

    check_target(output, FORMATS)
    if len(set(files)) < len(files):
        raise typer.BadParameter("the same file is given twice", param_hint="RESULTS")
    series = [read_series(path) for path in files]
    rename_apart(series, files)
    for one in series:
        if one.odd_labels:
            _warn(f"{one.name}: {one.odd_labels} labels name none of their answers; drawn as unlabelled")
    tokenizers = {one.tokenizer for one in series if one.tokenizer}
    if len(tokenizers - {"unknown"}) > 1:  # a server does not name its own
        _warn("these files come from different tokenizers: their tokens are not the same pieces of text")
    elif "unknown" in tokenizers and len(series) > 1:
        _warn("a server's tokenizer is unknown: tokens of these files may not be the same pieces of text")
    write_for_user(output, render(draw_histograms(series), output.suffix))
    typer.echo(f"wrote {output}", err=True)


def _warn(message: str) -> None:
    typer.echo(f"Warning: {message}", err=True)
