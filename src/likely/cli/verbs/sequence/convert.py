"""likely sequence convert: checkpoints of state-space models as folders of likely."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.printing import print_json


def convert(
    source: Annotated[
        Path, typer.Argument(help="Folder of a Mamba, Mamba-2 or Falcon-H1 model, of transformers or state-spaces.")
    ],
    target: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not exist.")],
    back: Annotated[bool, typer.Option("--back", help="From a folder of likely to one of transformers.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare the logits of both on random tokens afterwards.")] = True,
    as_json: flags.JsonOption = False,
) -> None:
    """Write a state-space model as likely's own layers, and compare both.

    The folder loads like any other model; its tokenizer comes along.

    Examples:

      likely sequence convert mamba-130m-hf -o mamba-130m

      likely score -m mamba-130m --prompt "2 + 2 =" --answer " 4" --answer " 5"

      likely sequence convert my-model -o my-model-hf --back
    """
    from likely.sequence.convert import convert_folder

    report = convert_folder(source, target, back=back, verify=verify)
    if as_json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in asdict(report).items()})
        return
    typer.echo(str(report))
