"""Tables of docs/long-context.md: what one token more costs after short and long texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from native_tables import number

Record = dict[str, Any]
Grid = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def decoding(benchmark: Record, grid: Grid) -> str:
    """Tokens per second at each length; ratios with their intervals, bytes that a text holds."""
    others = ["steps in torch", "transformers", "torch"]
    rows = []
    for row in benchmark["rows"]:
        ratios = [row["times_as_fast_as"].get(name) for name in others]
        rows.append([
            f"{row['length']:,}", number(row["tokens_per_s"]["recurrent"]),
            *("-" if ratio is None else f"{ratio[0]:.2f}× [{ratio[1]:.2f}, {ratio[2]:.2f}]" for ratio in ratios),
            *(f"{size[name] / 1e6:,.1f}" if name in (size := row["bytes_per_sequence"]) else "-"
              for name in ("recurrent", "torch")),
        ])  # fmt: skip
    head = ["tokens before", "tokens/s", "over its steps in torch", "over transformers' Mamba-2",
            "over a Llama of its size", "MB held", "MB held, Llama"]  # fmt: skip
    models = benchmark["models"]
    return (
        f"{grid(head, rows)}\n{models['recurrent']['type'].title()} of {models['recurrent']['parameters'] / 1e6:.1f} "
        f"million random parameters, {benchmark['threads']} threads; the Llama runs in torch with its cache.\n"
    )


def layers(benchmark: Record, grid: Grid) -> str:
    """Milliseconds of a step, microseconds of training per token; kernels beside their loops."""
    parts = []
    for title, rows, value, unit in (
        ("a step, ms", benchmark["steps"], "step", 1e3),
        ("training per token, µs", benchmark["training"], "per_token", 1e6),
    ):
        found = {(row["layer"], row["length"]): unit * row[value]["median_s"] for row in rows}
        names, lengths = (list(dict.fromkeys(row[key] for row in rows)) for key in ("layer", "length"))
        cells = [[name, *(number(found[name, n]) if (name, n) in found else "-" for n in lengths)] for name in names]
        parts.append(grid([title, *(f"{n:,} tokens" for n in lengths)], cells))
    forms: dict[str, Record] = {}
    for row in benchmark["kernels"]:
        forms.setdefault(row["kernel"], {})[row["form"]] = row
    ratios = []
    for name, own in forms.items():
        cells = [name]
        for other in ("by steps", "transformers"):
            for what in ("forward", "with_backward"):
                ours, slow = own["chunked"][what]["median_s"], own.get(other)
                cells.append("-" if slow is None else f"{slow[what]['median_s'] / ours:.1f}×")
        ratios.append(cells)
    head = ["chunked kernel", "over its loop", "with backward", "over transformers", "with backward"]
    parts.append(grid(head, ratios))
    return "\n".join(parts) + f"\n{benchmark['threads']} thread, {benchmark['dtype']}; kernels at 1,024 tokens.\n"
