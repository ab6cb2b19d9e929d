"""likely sequence layers: what there is to build a model for long sequences from."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table


def layers(
    width: Annotated[int, typer.Option("--width", min=1, help="Channels of the layer.")] = 64,
    length: Annotated[int, typer.Option("--length", min=0, help="Tokens seen, for the size of the state.")] = 1024,
    as_json: flags.JsonOption = False,
) -> None:
    """All sequence layers: their kind, what training and one more token cost, parameters, and bytes of state.

    mixing: a fixed convolution along time (gates aside); selective, what is kept of the past depends on the token;
    linear, neither.  Bytes are those of one sequence's state in float32 after --length tokens, and per token more.

    Examples:

      likely sequence layers

      likely sequence layers --width 256 --length 65536

      likely sequence layers --json
    """
    from likely.sequence.table import describe_layers

    rows = describe_layers(width, length)
    if as_json:
        print_json({"width": width, "length": length, "layers": rows})
        return
    print_table(
        ("layer", "paradigm", "mixing", "state", "training", "step", "parameters", "bytes", "per token"),
        [(row["name"], row["paradigm"],
          "convolution" if row["lti"] else "selective" if row["selective"] else "linear",
          row["state_kind"], row["complexity"], row["step"], f"{row['parameters']:,}", f"{row['state_bytes']:,}",
          row["step_bytes"] or "")
         for row in rows],
        left=6,
    )  # fmt: skip
