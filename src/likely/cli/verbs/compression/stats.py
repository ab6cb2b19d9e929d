"""likely stats: outliers in what runs through a model."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table


def stats(
    model: Annotated[str, typer.Argument(help="A known model, GGUF file or safetensors folder.")],
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            help="Text to look at (repeatable): a data set, a .txt or .jsonl file, python_stdlib, random_tokens.  "
            "[default: c4_sample]",
        ),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of each set.")] = 8,
    length: Annotated[int, typer.Option("--length", min=8, help="Tokens of one window.")] = 256,
    as_json: flags.JsonOption = False,
) -> None:
    """Ranges and outliers of the inputs of each matrix, of keys and of values: what makes a model hard to quantise.

    Each line is about one kind of input, over all layers; "first" tells the largest magnitude at the first token of a
    window, which many models use as a sink, "rest" at all others.  --json gives every layer.

    Examples:

      likely stats smollm2 --calibration python_stdlib --windows 2 --length 128

      likely stats smollm2 --calibration wikitext2:valid --calibration mbpp:train --json
    """
    from likely.compression.architecture import DecoderMap, open_module
    from likely.compression.calibration_set import calibration_set
    from likely.compression.statistics import outlier_table, summarise

    _, module, tokenizer = open_module(model)
    sets = {
        name: calibration_set(name, tokenizer, windows=windows, length=length) for name in calibration or ["c4_sample"]
    }
    rows = outlier_table(DecoderMap.of(module), sets)
    if as_json:
        print_json({"model": model, "windows": windows, "length": length, "rows": rows})
        return
    heads = ("text", "input", "largest, first", "rest", "over median channel", "kurtosis", "energy of top 1 %")
    print_table(heads, [
        (line.set, line.input, f"{line.first:.1f}", f"{line.rest:.1f}", f"{line.channel_ratio:.1f}",
         f"{line.kurtosis:.0f}", f"{line.top_energy:.0%}")
        for line in summarise(rows)
    ], left=2)  # fmt: skip
