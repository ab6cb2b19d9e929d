"""Tables of docs/structured-output.md, from the benchmark of guided decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Grid = Callable[..., str]


def engines(benchmark: dict[str, Any], grid: Grid) -> str:
    """A row per engine: time per token, against its own unguided loop, and what it costs to compile a schema."""
    rows = []
    for row in benchmark["rows"]:
        ratio = row.get("ratio_to_unguided")
        rows.append([
            row["engine"],
            f"{row['ms_per_token']:.1f}",
            "" if ratio is None else f"{ratio:.2f}×",
            "" if ratio is None else f"{row['first_compile_ms']:.1f}",
            f"{row['valid']} of {row['texts']}",
        ])  # fmt: skip
    header = ["engine", "ms per token", "of its own unguided time", "compile, ms", "valid"]
    missing = "; ".join(benchmark["missing"])
    said = (
        f"Greedy, SmolLM2-135M, {len(benchmark['schemas'])} schemas, {benchmark['rounds']} interleaved "
        f"rounds, at most {benchmark['tokens_at_most']} tokens, {benchmark['threads']} threads. "
        "Below 1× a form makes text faster: its forced pieces are checked in one call."
    )
    return grid(header, rows) + f"\n{said}\n" + (f"\nNot measured: {missing}.\n" if missing else "")


def parts(benchmark: dict[str, Any], grid: Grid) -> str:
    """Microseconds of the parts of one of our guided steps, a column per vocabulary."""
    sizes = sorted({part["vocab_size"] for part in benchmark["parts"]})
    names = list(dict.fromkeys(part["part"] for part in benchmark["parts"]))
    found = {(part["part"], part["vocab_size"]): part["median_us"] for part in benchmark["parts"]}
    rows = [[name, *(f"{found[name, size]:.1f}" if (name, size) in found else "" for size in sizes)] for name in names]
    return grid(["part, microseconds (median)", *(f"{size:,} tokens" for size in sizes)], rows)
