"""Measured parts of docs/alignment.md and docs/frontier.md, from results of benchmarks and of the study on SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Grid = Callable[..., str]


def run(benchmark: dict[str, Any], grid: Grid) -> str:
    """500 pairs to an adapter: the time of both parts of a run that was killed, and its report."""
    seconds, killed = benchmark["seconds"], benchmark["killed_after_step"]
    rows = []
    for name, label in (
        ("likelihood_accuracy", "likelihood accuracy"), ("per_token_accuracy", "per-token accuracy"),
        ("reward_accuracy", "reward accuracy"), ("log_ratio_margin", "log ratio margin, nats"),
        ("calibration_error", "calibration error"), ("brier", "Brier"), ("chosen_perplexity", "chosen perplexity"),
        ("rejected_perplexity", "rejected perplexity"),
    ):  # fmt: skip
        rows.append([label, *(_shown(benchmark[when].get(name)) for when in ("before", "after"))])
    rows.append(["samples: KL, nats", *(_shown(benchmark[when]["samples"]["kl"]) for when in ("before", "after"))])
    minutes = seconds["together"] / 60
    how = (
        f"killed after step {killed} ({seconds['until_killed'] / 60:.1f} minutes) and started again "
        f"({seconds['from_there'] / 60:.1f} minutes)"
        if killed is not None
        else "in one go"
    )
    said = (
        f"{benchmark['pairs']} pairs on SmolLM2-135M with the default settings, {benchmark['threads']} threads, {how}: "
        f"{minutes:.1f} minutes in all, {benchmark['peak_bytes'] / 2**30:.1f} GiB at its peak; the estimate before the "
        f"start was {benchmark['estimated_seconds'] / 60:.1f} minutes. {benchmark['cut']} rows were cut, "
        f"{benchmark['dropped']} left out. The report on held-out pairs:"
    )
    return f"{said}\n\n{grid(['', 'before', 'after'], rows)}"


def step(benchmark: dict[str, Any], grid: Grid) -> str:
    """One step of DPO against trl's."""
    rows = []
    for row in benchmark["rows"]:
        ratio, low, high = row["speedup"]
        rows.append([
            f"{row['prompt']} + {row['answer']}",
            *(f"{row['tokens_per_second'][name]:.0f}" for name in ("likely", "trl")),
            f"{ratio:.2f}× [{low:.2f}, {high:.2f}]",
            f"{row['peak_bytes'] / 2**30:.1f}",
        ])  # fmt: skip
    header = ["tokens of prompt + answer", "likely, tokens/s", "trl, tokens/s", "ratio", "peak GiB of both"]
    return grid(header, rows)


def frontier(result: Any, paragraph: Callable[..., str]) -> str:
    """What the study on SmolLM2 found, in a paragraph."""
    if result is None:
        return "Not measured yet: `likely reproduce frontier_smollm2`.\n"
    return paragraph(
        f"On SmolLM2-135M with LoRA ([page](papers/frontier_smollm2.md)): {result.ours}.",
        f"{result.samples[0].upper()}{result.samples[1:]}.",
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        low, high = value["interval"]
        return f"{value['accuracy']:.0%} [{low:.0%}, {high:.0%}]"
    return "-" if value is None else f"{value:.3g}"
