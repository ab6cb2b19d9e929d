"""likely audit spectral: how far hidden states are spread, beside what was lost in likelihood."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from likely.cli import flags
from likely.cli.printing import print_json, print_table, progress
from likely.cli.verbs.audit.common import ReportOption, check_reports, header_of, write_reports


def spectral(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="A known model, GGUF file, folder or hub id; several.")
    ],
    data: Annotated[
        str,
        typer.Option("--data", help="Text to read: a data set, a .txt or .jsonl file, several with +, python_stdlib."),
    ] = "wikitext2:test",
    texts: Annotated[int, typer.Option("--texts", min=1, help="Windows of the text.")] = 16,
    tokens: Annotated[int, typer.Option("--tokens", min=2, help="Tokens of each: the same for all.")] = 256,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", help="0 is the embeddings, -1 the last one (repeatable; others than -1: torch)."),
    ] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Also KL(first model ‖ each) per token, on the same text.")] = False,
    runtime: flags.RuntimeOption = None,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    report: ReportOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """Matrix nuclear norm, nuclear norm, matrix entropy and effective rank of hidden states.

    Read the caveats below the table: MNN compares texts of one length and models of one basis.

    Examples:

      likely audit spectral smollm2 --runtime torch --data python_stdlib --layer 0 --layer 15 --layer -1

      likely audit spectral smollm2 smollm2-w4.gguf --kl --runtime torch --data wikitext2:test --json

      likely audit spectral smollm2 --runtime native --data notes.txt --texts 4 --tokens 128
    """
    from likely.audit.spectral import CAVEATS, measure_spectra, spectral_report
    from likely.compression.calibration_set import calibration_set
    from likely.compression.evaluate import compare_all

    check_reports(report)
    if len(set(models)) < len(models):
        raise typer.BadParameter("a model is named twice", param_hint="MODEL")
    if kl and len(models) == 1:
        raise typer.BadParameter("KL needs a second model: name the original first", param_hint="--kl")
    kind = runtime or "torch"
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(flags.ModelFlags(name, kind, dtype, tokens + 64, threads).open_local("scoring"))
            for name in models
        }
        first, *others = models
        text = calibration_set(data, opened[first].tokenizer, windows=texts, length=tokens)
        tick = stack.enter_context(progress(len(models) * len(text) + kl * len(text), "reading", unit="windows"))
        windows = text.input_ids.tolist()
        found = {
            name: measure_spectra(lm, windows, layers=layers or (-1,), tokens=tokens, progress=tick)
            for name, lm in opened.items()
        }
        settings = {"data": text.name, "digest": text.digest, "texts": texts, "tokens": tokens}
        write_reports(
            [spectral_report(one, header=header_of(opened[name], "spectral", settings))
             for name, reports in found.items() for one in reports], report,
        )  # fmt: skip
        lost = compare_all(opened[first], {n: opened[n] for n in others}, text, progress=tick) if kl else {}
    if as_json:
        records = [
            {**report.to_dict(), "model": name, "data": text.name, "data_digest": text.digest}
            | ({"kl": lost[name].kl, "kl_se": lost[name].kl_se} if name in lost else {})
            for name, reports in found.items()
            for report in reports
        ]
        print_json(records[0] if len(records) == 1 else {"reports": records})
        return
    typer.echo(f"{len(text)} windows of {tokens} tokens of {text.name}; means over windows")
    heads = ["model", "layer", "MNN / N", "MNN / √(N D)", "nuclear norm", "entropy", "effective rank"]
    rows = [
        [name, report.layer, f"{report.mean('mnn_per_token'):.4f}", f"{report.mean('mnn_relative'):.4f}",
         f"{report.mean('nuclear_norm'):.2f}", f"{report.mean('entropy'):.4f}", f"{report.mean('effective_rank'):.1f}",
         *([f"{lost[name].kl:.4f}" if name in lost else ""] if kl else [])]
        for name, reports in found.items()
        for report in reports
    ]  # fmt: skip
    print_table([*heads, *(["KL (nats)"] if kl else [])], rows)
    typer.echo("")
    for caveat in CAVEATS:
        typer.echo(f"- {caveat}")
