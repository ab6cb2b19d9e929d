"""likely compress: a smaller model from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from likely.cli import flags
from likely.cli.printing import percent, print_json


def compress(
    model: Annotated[str, typer.Argument(help="A known model, GGUF file or safetensors folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="GGUF file (*.gguf) or folder to write.")],
    method: Annotated[
        str, typer.Option("--method", callback=flags.one_of("compressions"), help="{compressions}.")
    ] = "rtn",
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="Bits and groups: w4g64, w4g32-sym, w3g64, w8a8 ...; of additive codebooks x bits: 2x8, 3x8.  "
            "[default: w4g64; of smoothquant w8a8, of mergequant w4a4, of additive 2x8]",
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", min=0.0, max=0.99, help="Of a method that prunes: share of weights that go."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="What the method looks at: a data set (wikitext2:valid), a .txt or .jsonl file, several with +, "
            "python_stdlib, random_tokens, random_punctuation.  [default: c4_sample]",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            min=0.0,
            max=1.0,
            help="Of smoothquant: how much of the activations' range goes into the weights.  [default: 0.5]",
        ),
    ] = None,
    act_order: Annotated[
        bool | None, typer.Option("--act-order", help="Of gptq, rotation: round columns with large inputs first.")
    ] = None,
    other_inputs: Annotated[
        Literal["dynamic", "static", "float"] | None,
        typer.Option(
            "--other-inputs",
            help="Of mergequant: inputs of o and down have a scale for each token, none, or are floats.  "
            "[default: dynamic]",
        ),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option("--beam", min=1, help="Of additive: sets of codes kept while a group is coded.  [default: 1]"),
    ] = None,
    packed: Annotated[
        bool,
        typer.Option(
            "--packed",
            help="A folder of codes: in compressed-tensors' format (vLLM, transformers) of symmetric schemes; of "
            "mergequant for the native runtime.",
        ),
    ] = False,
    gamma: Annotated[
        float | None,
        typer.Option(
            "--gamma", help="Of pruning: share that the MLP loses over that of attention.  [default: M / A, of sizes]"
        ),
    ] = None,
    allocation: Annotated[
        Literal["uniform", "global"] | None,
        typer.Option(
            "--allocation",
            help="Of pruning: uniform, every layer loses the same and files are smaller, or global, one order over the "
            "whole model.  [default: uniform]",
        ),
    ] = None,
    select_calibration: Annotated[
        int | None,
        typer.Option("--select-calibration", min=2, help="Of nirvana: calibration sets to try and choose from by KL."),
    ] = None,
    recovery: Annotated[
        Literal["distill", "loss"] | None,
        typer.Option("--recovery", help="After pruning: learn from the whole model (distill) or from the text (loss)."),
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=1, help="Windows of the calibration set.")] = 32,
    length: Annotated[
        int | None, typer.Option("--length", min=8, help="Tokens of one window.  [default: 512; of pruning 128]")
    ] = None,
    seed: flags.SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing target.")] = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Make a model smaller: round its weights to a few bits, or prune it.

    Examples:

      likely compress smollm2 --scheme w4g32 --out smollm2-w4.gguf

      likely compress smollm2 --scheme w8 --out smollm2-w8.gguf

      likely compress smollm2 --method gptq --scheme w4g64 --calibration notes.txt --out smollm2-gptq.gguf

      likely compress smollm2 --method mergequant --scheme w4a8 --calibration notes.txt --packed --out smollm2-mq

      likely compress smollm2 --method additive --scheme 2x8 --calibration python_stdlib --out smollm2-2bit.gguf

      likely compress smollm2 --method nirvana --sparsity 0.2 --out smollm2-pruned.gguf
    """
    from likely.compression.methods import check_target
    from likely.compression.methods import compress as run

    check_target(
        model, out, method=method, scheme=scheme, overwrite=overwrite, packed=packed, other_inputs=other_inputs
    )
    asked = {
        "gamma": gamma, "allocation": allocation, "select_calibration": select_calibration, "recovery": recovery,
        "alpha": alpha, "act_order": act_order, "beam": beam, "other_inputs": other_inputs,
    }  # fmt: skip
    options: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    made = run(
        model,
        method=method,
        scheme=scheme,
        sparsity=sparsity,
        calibration=calibration,
        windows=windows,
        length=length,
        seed=seed,
        progress=percent("compressing"),
        **options,
    )
    size = made.export(out, packed=packed, overwrite=overwrite, progress=percent("writing"))
    if as_json:
        print_json({**made.settings, "out": str(out), "bytes": size, "weight_bytes": made.nbytes})
        return
    typer.echo(f"{out}: {size / 1e6:,.1f} MB ({made.summary()})")
    own = " --candidate-runtime native" if packed and method == "mergequant" else ""
    typer.echo(f"What it lost: likely compare {model} {out}{own}", err=True)
