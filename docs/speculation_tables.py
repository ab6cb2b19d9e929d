"""Tables of docs/speculation.md: the drafters, what combines (from the test product), what it gains (benchmarks)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"
CAN = {
    "layers": "leave out layers: torch, native",
    "parallel_layers": "run attentions side by side: torch",
}
Grid = Callable[..., str]


def drafters(grid: Grid) -> str:
    """A row per entry of the table of drafters."""
    from likely.decoding.drafting.table import DRAFTERS

    rows = []
    for name, entry in DRAFTERS.items():
        spelled = [f"`{name}`"] * (not entry.required) + [f"`{name}:{entry.argument}`"] * bool(entry.argument)
        method, colon, rest = entry.summary.partition(": ")
        address = entry.page if "://" in entry.page else f"papers/{entry.page}.md"
        linked = f"[{method}]({address}){colon}{rest}" if entry.page else entry.summary
        needs = [
            *(["a file of `likely draft build`, or nothing"] if entry.memory else []),
            *(["a second model"] if entry.runs_model and entry.required else []),
            *([f"an engine that can {CAN[entry.capability]}"] if entry.capability else []),
        ]
        known = "yes" if entry.known_distribution else "no"
        settings = ", ".join(f"`{setting}`" for setting in entry.settings)
        rows.append([", ".join(spelled), linked, entry.good_for, ", ".join(needs), known, settings])
    header = ["`--drafter`", "guesses", "good for", "needs", "known q", "settings"]
    return grid(header, rows, right=len(header))


def combinations(grid: Grid) -> str:
    """A row per drafter of the test product; every yes is tested, every no raises CapabilityError and is tested."""
    if str(HELPERS) not in sys.path:
        sys.path.append(str(HELPERS))
    from drafter_factories import MADE
    from factories import FACTORIES
    from speculation_product import BATCHES, CHOICES, possible

    rows = []
    for name, entry in MADE.items():
        runtime = FACTORIES["toy" if "toy" in entry.runtimes else "torch"][0]()
        source = entry.build(runtime)
        marks = ["yes" if possible(source, choice) else "no" for choice in CHOICES]
        runtime.shutdown()
        engines = ["yes" if kind in entry.runtimes else "no" for kind in ("torch", "llamacpp", "native")]
        rows.append([name, *engines, *marks, "yes" if entry.tree else "chain", ", ".join(map(str, BATCHES))])
    header = ["drafter", "torch", "llama.cpp", "native", *CHOICES, "trees", "requests at a time"]
    return grid(header, rows, right=len(header))


def gains(benchmark: dict[str, Any], grid: Grid) -> str:
    """Wall-clock ratios of every drafter, a table per model and runtime."""
    parts = []
    for run in benchmark["runs"]:
        tasks = list(dict.fromkeys(row["task"] for row in run["rows"]))
        drafters = list(dict.fromkeys(row["drafter"] for row in run["rows"]))
        found = {(row["task"], row["drafter"]): row for row in run["rows"]}
        rows = []
        for task in tasks:
            cells = [found[(task, d)] for d in drafters]
            rows.append([task, *(f"{c['ratio']:.2f}× [{c['low']:.2f}, {c['high']:.2f}]" for c in cells)])
            rows.append(["– tokens per call", *(f"{c['tokens_per_call']:.2f}" for c in cells)])
        same = sum(row["identical"] for row in run["rows"])
        near = sum(row["near_ties"] for row in run["rows"])
        other = sum(row["unexplained"] for row in run["rows"])
        gaps = [gap for row in run["rows"] for gap in row["gaps"]]
        tied = f"{near} parted at a near-tie" + (f", largest gap {max(gaps):.3f} nats" if gaps else "")
        parts.append(
            f"**{run['model']}, {run['runtime']} {run['dtype']}** ({run['prompts']} prompts a task, up to "
            f"{run['tokens']} tokens each): {same} texts the same as plain decoding, {tied}, "
            f"{other} unexplained.\n\n{grid(['task', *drafters], rows)}"
        )
    return "\n".join(parts)


def engines(benchmark: dict[str, Any], grid: Grid) -> str:
    """Prompt lookup of several engines, each against its own plain decoding."""
    rows = []
    for row in benchmark["rows"]:
        ratio = row["ratio"]
        rows.append(
            [
                row["task"],
                row["engine"],
                f"{ratio['median']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                f"{row['plain_s']:.2f} s",
                f"{row['drafted_s']:.2f} s",
                f"{row['same_texts']} of {row['texts']}",
            ]
        )
    return grid(["task", "native", "times its plain decoding", "plain", "drafted", "same text"], rows)


def drafting(benchmark: dict[str, Any], grid: Grid) -> str:
    """Microseconds and bytes of the drafters that copy, by how much they remember."""
    rows = []
    for size, cells in benchmark["sizes"].items():
        for name, cell in cells.items():
            low, high = cell["propose_us_interval"]
            rows.append(
                [
                    f"{int(size):,}",
                    name,
                    f"{cell['propose_us']:.0f} [{low:.0f}, {high:.0f}]",
                    f"{cell['propose_us_p99']:.0f}",
                    f"{cell['observe_us']:.1f}",
                    f"{cell['bytes_per_token']:.0f}",
                ]
            )
    header = ["tokens held", "drafter", "µs per proposal", "99 % quantile", "µs per token observed", "bytes per token"]
    return grid(header, rows, right=2)


def clients(benchmark: dict[str, Any], grid: Grid) -> str:
    """Clients of one loop: throughput of fixed and automatic draft lengths over none."""
    policies = list(dict.fromkeys(row["policy"] for row in benchmark["rows"]))
    found = {(row["task"], row["clients"], row["policy"]): row for row in benchmark["rows"]}
    rows = []
    for task, asking in dict.fromkeys((row["task"], row["clients"]) for row in benchmark["rows"]):
        cells = [found[task, asking, policy]["times_plain"] for policy in policies[1:]]
        rows.append([
            task, str(asking), *(f"{c['median']:.2f}× [{c['low']:.2f}, {c['high']:.2f}]" for c in cells),
            f"{found[task, asking, 'auto']['tokens_per_call']:.2f}",
        ])  # fmt: skip
    same, texts = (sum(row[key] for row in benchmark["rows"]) for key in ("same_text", "texts"))
    head = ["task", "clients at a time", *policies[1:], "auto: tokens per call"]
    return grid(head, rows) + (
        f"\n{benchmark['model']}, {benchmark['runtime']} {benchmark['dtype']}, {benchmark['threads']} threads, "
        f"`{benchmark['drafter']}`, {benchmark['prompts']} prompts a task, up to {benchmark['tokens']} tokens each; "
        f"{same} of {texts} texts are those of plain decoding.\n"
    )


def side_by_side(benchmark: dict[str, Any], grid: Grid) -> str:
    """A step of a wide model of random weights whose attentions run in groups."""
    rows = [
        [name, f"{benchmark['median_ms'][name]:.0f}", f"{c['median']:.2f}× [{c['low']:.2f}, {c['high']:.2f}]"]
        for name, c in benchmark["faster_than_1_thread"].items()
    ]
    gains = benchmark["predicted_by_critical_path"].items()
    most = ", ".join(f"{gain:.2f} with groups of {size}" for size, gain in gains)
    return grid(["a step", "ms", "over one thread"], rows) + (
        f"\nWidth {benchmark['width']:,}, {benchmark['layers']} layers of random weights, {benchmark['context']} "
        f"tokens before; attentions are {benchmark['attention_share']:.0%} of a step, so two cores could gain {most}.\n"
    )
