"""likely convert: GGUF files and safetensors folders, one into the other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.printing import percent, print_json


def convert(
    source: Annotated[str, typer.Argument(help="A known model, GGUF file or safetensors folder.")],
    target: Annotated[Path, typer.Argument(help="GGUF file or folder to write.")],
    to: Annotated[
        str | None,
        typer.Option("--to", help="{conversions}.  [default: f32 for *.gguf]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")] = False,
    verify: Annotated[bool, typer.Option(help="Score fixed strings on both afterwards.")] = True,
    as_json: flags.JsonOption = False,
) -> None:
    """Convert a model, streamed, and check the result by scoring.

    Examples:

      likely convert smollm2 smollm2-f32.gguf --to f32

      likely convert smollm2 smollm2-folder --to safetensors

      likely convert smollm2-folder smollm2-q8.gguf --to q8_0
    """
    from likely.models.convert import convert as run
    from likely.models.load import resolve

    kind, place = resolve(source)
    if kind == "hub":
        raise typer.BadParameter(f"{source} is a hub id: download it first, then give its folder", param_hint="SOURCE")
    if to in (None, "safetensors") and target.suffix in (".bin", ".pt", ".safetensors"):
        raise typer.BadParameter(
            f"safetensors models are folders, {target} looks like a file: give a folder, or a name in .gguf",
            param_hint="TARGET",
        )
    form = to or ("f32" if target.suffix == ".gguf" else "safetensors")
    report = run(place, target, to=form, overwrite=overwrite, verify=verify, progress=percent("converting"))
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in asdict(report).items()})
        return
    typer.echo(str(report))
