"""Tables of docs/server.md and docs/quickstart.md: servers under load, answers to questions under each setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from native_tables import number, times, verdict

Record = dict[str, Any]
Grid = Callable[[Sequence[str], Sequence[Sequence[str]]], str]


def load(benchmark: Record, grid: Grid) -> str:
    """Tokens per second of each server, ratios with their intervals beside the targets, and waiting times."""
    asked = list(benchmark["rows"][0]["servers"])
    peers, speeds, waits = [name for name in asked if not name.startswith("likely")], [], []
    for row in benchmark["rows"]:
        servers, name = row["servers"], [row["task"], str(row["streams"])]
        ratios = [times(row[f"over_{peer}"]) if peer in servers else "-" for peer in peers]
        if "target" in row:
            ratios = [f"{ratio}; {verdict(row[f'over_{p}']['median'], row['target'])}"
                      for p, ratio in zip(peers, ratios, strict=True)]  # fmt: skip
        speeds.append([
            *name, *(number(servers[each]["tokens_per_s"]) if each in servers else "-" for each in asked), *ratios
        ])  # fmt: skip
        waits.append([
            *name,
            *(" / ".join(number(1e3 * servers[each][what][q]) for q in ("p50", "p95")) if each in servers else "-"
              for what in ("first_token_s", "between_tokens_s") for each in asked),
        ])  # fmt: skip
    head = ["requests", "streams", *(f"{name}, tokens/s" for name in asked), *(f"over {p}" for p in peers)]
    wait = ["requests", "streams", *(f"{what}: {name}" for what in ("first, ms", "between, ms") for name in asked)]
    return (
        f"{grid(head, speeds)}\nTimes to the first token and between pieces of text, p50 / p95:\n\n"
        f"{grid(wait, waits)}\n"
        f"{benchmark['model']}, the same file in every server, {benchmark['threads']} threads, {benchmark['tokens']} "
        f"tokens a request, temperature 0.\n"
    )


def stalls(benchmark: Record, grid: Grid) -> str:
    """The longest gap of four streams in ordinary gaps, and beside the longest when nothing arrives."""
    rows = [
        [name, f"{found['median']:.1f} (at most {found['most']:.1f})", times(found["over_nothing"])]
        for name, found in benchmark["stalls"].items()
    ]
    return grid(["what arrives", "longest gap, in ordinary ones", "over that of a quiet minute"], rows)


def first_minute(benchmark: Record, grid: Grid) -> str:
    """Answers under each setting, with the system message that served best."""
    rows = []
    for row in benchmark["rows"]:
        if row["system"] == ("none" if row["model"] == "gemma3" else "concise"):
            found = row["all"]
            runtime = f"{row['runtime']}, {row['dtype'] or 'the file'}"
            rows.append([
                row["model"], runtime, row["settings"], f"{found['right']} of {found['of']}",
                *(str(found[key]) for key in ("circles", "foreign", "empty", "cut", "median_tokens")),
            ])  # fmt: skip
    head = ["model", "runtime", "settings", "right", "in circles", "not English", "empty", "cut", "median tokens"]
    return grid(head, rows)
