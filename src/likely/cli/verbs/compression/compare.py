"""likely compare: what a candidate's likelihoods have lost against a reference."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, progress


def compare(
    model: Annotated[str, typer.Argument(help="The reference: a known model, GGUF file, folder or hub id.")],
    candidates: Annotated[list[str], typer.Argument(metavar="CANDIDATE...", help="What to compare with it.")],
    data: Annotated[
        str,
        typer.Option("--data", help="Text to read: a data set, a .txt or .jsonl file, several with +, python_stdlib."),
    ] = "wikitext2:test",
    tokens: Annotated[int, typer.Option("--tokens", min=16, help="Tokens to read, in whole windows.")] = 4096,
    length: Annotated[int, typer.Option("--length", min=8, help="Tokens of one window.")] = 512,
    skip: Annotated[int, typer.Option("--skip", min=1, help="First tokens of a window that are not scored.")] = 1,
    runtime: flags.RuntimeOption = None,
    dtype: Annotated[
        str, typer.Option("--dtype", callback=flags.one_of("dtypes"), help="{dtypes}, of both models.")
    ] = "float32",
    candidate_runtime: Annotated[
        str | None,
        typer.Option("--candidate-runtime", callback=flags.one_of("runtimes"), help="What runs the candidates."),
    ] = None,
    candidate_dtype: Annotated[
        str | None, typer.Option("--candidate-dtype", callback=flags.one_of("dtypes"), help="What they compute in.")
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option("--kv", help="What candidates keep keys and values as: bfp12, bfp16, bfp12/bfp16, q8_0 ..."),
    ] = None,
    k_sort: Annotated[
        bool, typer.Option("--k-sort", help="With --kv: sort their channels by the norms of W_k and W_v first.")
    ] = False,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """What compression, or anything else, did to the likelihoods: KL per token, perplexity, flips, bytes.

    Both models compute in fp32 by default, so that only their weights differ.  With --candidate-runtime the candidate
    runs as it will be used, its own rounding of activations included.  With --kv a candidate, which may be the
    reference itself, keeps its keys and values in that format: on torch, or on --candidate-runtime.

    Examples:

      likely compare smollm2 smollm2-w4.gguf --data python_stdlib --tokens 2048

      likely compare smollm2 smollm2-w4.gguf smollm2-w8.gguf --data wikitext2:test --json

      likely compare smollm2 smollm2-w4.gguf --data notes.txt --candidate-runtime llamacpp

      likely compare smollm2 smollm2 --kv bfp12 --k-sort --data python_stdlib --tokens 512

      likely compare smollm2 smollm2 --kv q8_0 --candidate-runtime native --data python_stdlib --tokens 512
    """
    from likely.compression.calibration_set import calibration_set
    from likely.compression.evaluate import compare_all
    from likely.formats.folder import weight_bytes
    from likely.models.load import load_local

    length = min(length, tokens)
    if len(set(candidates)) < len(candidates):
        raise typer.BadParameter("a candidate is named twice", param_hint="CANDIDATE")
    if k_sort and kv is None:
        raise typer.BadParameter(
            "it is about blocks of keys: give their format, as in --kv bfp12", param_hint="--k-sort"
        )
    if kv is not None and candidate_runtime not in (None, "torch", "native", "llamacpp"):
        raise typer.BadParameter(
            f"{candidate_runtime} keeps no keys and values: choose torch, native or llamacpp",
            param_hint="--candidate-runtime",
        )
    if k_sort and candidate_runtime == "llamacpp":
        raise typer.BadParameter("channels are sorted on torch and native alone", param_hint="--k-sort")

    def opened(name: str, kind: str | None, computes: str | None) -> Any:
        computes = None if kind == "llamacpp" else computes
        return stack.enter_context(flags.ModelFlags(name, kind, computes, length + 64, threads).open_local("scoring"))

    def stored(name: str, computes: str) -> Any:
        from likely.compression.block_float import load_block_float

        if candidate_runtime == "llamacpp":
            loaded = load_local(name, runtime="llamacpp", kv_dtype=kv, context=length + 64, threads=threads)
        else:
            loaded = load_block_float(
                name, str(kv), sort="weight" if k_sort else None, dtype=computes, context=length + 64, threads=threads,
                runtime="native" if candidate_runtime == "native" else "torch",
            )  # fmt: skip
        stack.callback(loaded.runtime.shutdown)
        return loaded

    with ExitStack() as stack:
        reference = opened(model, runtime, dtype)
        text = calibration_set(data, reference.tokenizer, windows=max(1, tokens // length), length=length)
        own = candidate_dtype or (None if candidate_runtime else dtype)
        others = {
            name: stored(name, own or dtype) if kv is not None else opened(name, candidate_runtime or runtime, own)
            for name in candidates
        }
        tick = stack.enter_context(progress(len(text), "comparing", unit="windows"))
        reports = compare_all(reference, others, text, skip=skip, progress=tick)
        records = [
            {
                "reference": model, "candidate": name, **reports[name].to_dict(),
                "bytes": weight_bytes(others[name].info.source),
                "reference_bytes": weight_bytes(reference.info.source),
                "runtime": others[name].info.runtime, "dtype": others[name].info.dtype,
                "reference_runtime": reference.info.runtime, "reference_dtype": reference.info.dtype,
            }
            for name in candidates
        ]  # fmt: skip
        if kv is not None:
            for record in records:
                held = others[record["candidate"]].runtime.kv_bytes_per_token
                record.update(kv=kv, k_sort=k_sort, kv_bytes_per_token=held)
    if as_json:
        print_json(records[0] if len(records) == 1 else {"candidates": records})
        return
    first = reports[candidates[0]]
    typer.echo(f"{first.tokens} tokens of {data}; perplexity of {model}: {first.reference_perplexity:.2f}")
    heads = ("candidate", "MB", "KL (nats)", "± s.e.", "KL median", "KL 99 %", "same top token", "perplexity")
    rows = []
    for record in records:
        error = "" if record["kl_se"] is None else f"{record['kl_se']:.4f}"
        rows.append((
            record["candidate"], f"{record['bytes'] / 1e6:,.1f}", f"{record['kl']:.4f}", error,
            f"{record['kl_median']:.4f}", f"{record['kl_p99']:.3f}", f"{record['top1']:.1%}",
            f"{record['perplexity']:.2f}",
        ))  # fmt: skip
    print_table(heads, rows)
    if kv is not None:
        for record in records:
            typer.echo(
                f"{record['candidate']}: keys and values as {kv}, {record['kv_bytes_per_token']:,} bytes a token"
            )
