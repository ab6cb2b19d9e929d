"""Tables of docs/native.md: quality, milliseconds per call beside their targets, ways to run a forward."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
Grid = Callable[..., str]
Record = Mapping[str, Any]

FORMATS = {
    "native-int8": "native int8",
    "native-bf16": "native bf16",
    "native-fp32": "native fp32",
    "native-file": "native, the file's codes",
    "native-int4": "native int4",
    "llamacpp-q8_0": "llama.cpp Q8_0",
    "llamacpp-packaged": "llama.cpp, the packaged file",
    "llamacpp-q5_1": "llama.cpp Q5_1",
    "llamacpp-q4_0": "llama.cpp Q4_0",
    "llamacpp-bf16": "llama.cpp BF16",
    "llamacpp-f16": "llama.cpp F16",
    "llamacpp-f32": "llama.cpp F32",
    "torch-bf16": "transformers bf16",
}
MODELS = ("smollm2", "gemma3")
CALLS = {"1": "1 position", "4": "4", "16": "16", "64": "64", "prefill": "prefill"}


def number(value: float) -> str:
    """Three significant digits; powers of ten below 0.0001."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def times(ratio: Record) -> str:
    return f"{ratio['median']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def verdict(value: float, target: float) -> str:
    """What was aimed at, and whether the median is there."""
    return f"at least {target:g}×: {'met' if value >= target else 'missed'}"


def prefill_over_openvino() -> float:
    """The one target that is not in the results: it stands in the benchmark."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    from native import PREFILL_OVER_OPENVINO

    return float(PREFILL_OVER_OPENVINO)


# --- quality ----------------------------------------------------------------------------------------------------------


def quality(benchmark: Record, grid: Grid) -> str:
    """A table per model and text, a row per format, and what was demanded of the native runtime."""
    parts = []
    for model, found in benchmark["models"].items():
        rows = {name: found["rows"][name] for name in FORMATS if name in found["rows"]}
        for text in benchmark["texts"]:
            cells = [_quality_row(FORMATS[name], row[text]) for name, row in rows.items()]
            positions = next(iter(rows.values()))[text]["positions"]
            header = ["", "KL, nats", "another top token", "perplexity, times the reference's"]
            parts.append(f"**{model}, {text}** ({positions:,} positions)\n\n{grid(header, cells)}")
        if missing := [label for name, label in FORMATS.items() if name not in rows]:
            parts.append(f"Not measured yet on {model}: {', '.join(missing)}.\n")
    if missing := [model for model in MODELS if model not in benchmark["models"]]:
        parts.append(f"Not measured yet: {', '.join(missing)}.\n")
    if demands := _demands(benchmark, grid):
        parts.append(f"What was demanded of the native runtime:\n\n{demands}")
    return "\n".join(parts)


def _quality_row(name: str, row: Record) -> list[str]:
    def between(key: str, form: Callable[[float], str]) -> str:
        value, low, high = (form(row[key + end]) for end in ("", "_low", "_high"))
        return value if value == low == high else f"{value} [{low}, {high}]"

    return [
        name,
        between("kl_nats", number),
        between("flips_percent", lambda share: f"{share:.2f} %"),
        between("log_perplexity_ratio", lambda log: f"{math.exp(log):.4f}"),
    ]


def _demands(benchmark: Record, grid: Grid) -> str:
    rows = []
    for model, found in benchmark["models"].items():
        for d in found.get("demands", []):
            unit = "%" if "flips" in d["demand"] else "nats"
            values = [f"{number(d[key])} {unit}" for key in ("value", "bound")]
            rows.append([f"{model}, {d['demand']}", *values, "met" if d["holds"] else "missed"])
    return grid(["demand", "found", "allowed", ""], rows) if rows else ""


# --- keys and values ------------------------------------------------------------------------------------------------


def kv_formats(benchmark: Record, grid: Grid) -> str:
    """A table per model, a row per format of keys and values."""
    parts = []
    for model, found in benchmark["models"].items():
        [tokens] = [int(name.split("_")[2]) for name in found if name.startswith("bytes_of_")]
        bytes_of, first = found["kv_bytes_per_token"], next(iter(found["rows"].values()))
        rows = [["f32", f"{bytes_of['f32']:,}", _mebibytes(tokens * bytes_of["f32"]), "0", "0 %", "1.0000"]]
        for name, row in found["rows"].items():
            label, *figures = _quality_row(name, row)
            rows.append([label, f"{bytes_of[name]:,}", _mebibytes(tokens * bytes_of[name]), *figures])
        header = ["`kv_dtype`", "bytes a token", f"{tokens:,} tokens", "KL, nats", "another top token",
                  "perplexity, times the reference's"]  # fmt: skip
        parts.append(f"**{model}, {benchmark['text']}** ({first['positions']:,} positions)\n\n{grid(header, rows)}")
    return "\n".join(parts)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def shared_prefix(benchmark: Record, grid: Grid) -> str:
    """Milliseconds of a step, together and apart, and what attention read."""
    rows = []
    for row in benchmark["rows"]:
        columns, ms = row["columns"], row["ms"]
        ratio = dict(zip(("median", "low", "high"), row["speedup"], strict=True))
        rows.append([
            row["kv"], f"{row['prefix']:,}", str(row["batch"]), number(ms["together"]), number(ms["apart"]),
            times(ratio), f"{columns['apart'] / columns['together']:.1f}×",
        ])  # fmt: skip
    header = ["keys and values", "tokens shared", "texts", "ms a step", "apart, ms", "times as fast", "columns saved"]
    same = all(row["same_bits"] for row in benchmark["rows"])
    return (
        f"{grid(header, rows)}\n{benchmark['model']}, {benchmark['dtype']}, {benchmark['threads']} threads; "
        f"{'the same bits in every row' if same else 'SOME ROWS HAVE OTHER BITS'}.\n"
    )


# --- milliseconds -----------------------------------------------------------------------------------------------------


def figures(benchmark: Record, grid: Grid) -> str:
    """Per model: milliseconds of every runtime, then how much faster int8 is, its targets and its floor."""
    parts = []
    for found in benchmark["models"]:
        columns = found["columns"]
        names = list(dict.fromkeys(name for column in columns.values() for name in column["milliseconds"]))
        rows = []
        for column, row in columns.items():
            held = row["milliseconds"]
            rows.append([_call(column), *(number(held[name][0]) if name in held else "" for name in names)])
        parts.append(
            f"**{found['model']}**, milliseconds per call (medians; {benchmark['context']} tokens of context, "
            f"{benchmark['threads']} threads):\n\n{grid(['new positions', *names], rows)}"
        )
        parts.append(f"**{found['model']}**, how many times as fast native int8 is:\n\n{_ratios(columns, grid)}")
        parts.append(_ground(found))
    return "\n".join(parts)


def _call(column: str) -> str:
    what, count = column.split()
    texts = f"{count} texts, 1 each"
    return {"positions": f"{count} of one text", "sequences": texts, "prefill": f"prefill, {count}"}[what]


def _ratios(columns: Record, grid: Grid) -> str:
    others = list(dict.fromkeys(name for row in columns.values() for name in row["speedup_of_native_int8"]))
    rows = []
    for column, row in columns.items():
        cells = [_call(column)]
        for other in others:
            ratio, target = row["speedup_of_native_int8"].get(other), _target(column, other, row)
            shown = times(ratio) if ratio else ""
            if ratio and other.startswith("llama.cpp"):
                shown += f" ({row['faster_llamacpp'].removeprefix('llama.cpp ')})"
            cells.append(f"{shown}; {verdict(ratio['median'], target)}" if ratio and target else shown)
        rows.append([*cells, f"{row['floor_ms']:.2f} ms", f"{row['times_floor']:.2f}×"])
    return grid(["new positions", *others, "floor", "time over the floor"], rows)


def _target(column: str, other: str, row: Record) -> float | None:
    if other.startswith("llama.cpp"):
        return row["target"]
    return prefill_over_openvino() if other == "OpenVINO" and column.startswith("prefill") else None


def _ground(found: Record) -> str:
    """What the floor was made of, and what OpenVINO's figures cost in quality."""
    bytes_of = {name: size for name, size in found["weights_bytes"].items() if size}
    packed = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in bytes_of.items())
    openvino = found.get("kl_of_openvino_nats")
    return (
        f"Measured on this machine: {found['bandwidth_gb_per_s']:.1f} GB/s read from memory, "
        f"{found['int8_peak_gops']:,.0f} billion int8 products per second, all threads together; instructions: "
        f"{', '.join(found['features']) or 'plain'}. Packed weights: {packed}."
        + (f" KL of OpenVINO's weights: {number(openvino)} nats." if openvino is not None else "")
        + "\n"
    )


# --- the bake-off -----------------------------------------------------------------------------------------------------


def bakeoff(benchmark: Record, grid: Grid) -> str:
    """A row per way to run the same forward: milliseconds, quality, what it takes to make and to start."""
    rows, notes = [], []
    for name, entry in benchmark["variants"].items():
        if "not_measured" in entry:
            notes.append(f"{name}: not measured ({entry['not_measured']})")
            continue
        guard = entry.get("guard")
        kl = number(guard["kl_mean"]) if guard else "no model"
        if guard and not entry["quality"]:
            kl += ", too far"
        rows.append(
            [
                name,
                *(_milliseconds(entry["calls"][key]) if key in entry["calls"] else "" for key in CALLS),
                kl,
                str(max(call["rounds"] for call in entry["calls"].values())),
                f"{entry['others_share']['median']:.0%}" if "others_share" in entry else "",
                f"{entry['make_s']:.0f} s" if "make_s" in entry else "",
                f"{entry['build_s'] + entry['first_calls_s']:.1f} s",
                entry["compiler"],
            ]
        )
        if "note" in entry:
            notes.append(f"{name}: {entry['note']}")
    header = ["", *CALLS.values(), "KL, nats", "rounds", "others", "made once in", "ready in", "compiler"]
    allowed = f"Allowed: a KL of {number(benchmark['kl_allowed'])} nats. Milliseconds per call, medians over rounds; "
    where = f"{benchmark['context']} tokens of context, {benchmark['threads']} threads; {benchmark['model']}.\n"
    listed = "".join(f"- {note}\n" for note in notes)
    return f"{grid(header, rows)}\n{allowed}{where}" + (f"\n{listed}" if listed else "")


def _milliseconds(call: Record) -> str:
    shown = number(call["median_ms"])
    return f"{shown} [{number(call['low_ms'])}, {number(call['high_ms'])}]" if call["rounds"] > 1 else shown


# --- speculation ------------------------------------------------------------------------------------------------------

SPECULATION_TARGETS = {"second turns": 1.3, "text-to-SQL": 1.3, "self-correction": 2.0}


def static_codes(benchmark: Record, grid: Grid) -> str:
    """Milliseconds per call with each way of making activations codes, and ratios of two of them."""
    model = benchmark["model"]
    names = list(model["weights"])
    rows = [[column, *(number(found["milliseconds"][name][0]) for name in names)]
            for column, found in model["columns"].items()]  # fmt: skip
    ratios = [[column, *(times(ratio) for ratio in found["speedups"])] for column, found in model["columns"].items()]
    pairs = [f"{ratio['of']} over {ratio['over']}" for ratio in next(iter(model["columns"].values()))["speedups"]]
    sizes = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in model["weights_bytes"].items())
    return (
        f"{grid(['milliseconds', *names], rows)}\n{grid(['times as fast', *pairs], ratios)}\n"
        f"The shape of {model['shape'].upper()}, {benchmark['context']} tokens of context, {benchmark['threads']} "
        f"threads. Packed weights: {sizes}.\n"
    )


def packed(benchmark: Record, grid: Grid) -> str:
    """Milliseconds per call of both runtimes on the same file, their ratio beside its target; memory, loading."""
    parts = []
    for model in benchmark["models"]:
        rows, head = [], ["", "native, ms", "llama.cpp, ms", "times as fast"]
        beside = any("over_openvino" in column for column in model["columns"].values())
        if beside:
            head += ["OpenVINO, ms", "times as fast"]
        for name, column in model["columns"].items():
            cell = times(column["speedup"])
            if column["target"] is not None:
                cell += f"; {verdict(column['speedup']['median'], column['target'])}"
            ours, theirs = (number(column["milliseconds"][runtime][0]) for runtime in ("native", "llama.cpp"))
            rows.append([name, ours, theirs, cell])
            if "over_openvino" in column:
                rows[-1] += [number(column["milliseconds"]["OpenVINO"][0]), times(column["over_openvino"])]
            elif beside:
                rows[-1] += ["-", "-"]
        loads = model["loads"]
        first, again, other = (loads[name]["seconds"] for name in ("native, first", "native", "llama.cpp"))
        most = [loads[name]["VmHWM"] / 1e6 for name in ("native", "llama.cpp")]
        parts.append(
            f"**{model['weights']}, the shape of {model['shape'].upper()}** ({model['file_bytes'] / 1e6:,.0f} MB)\n\n"
            f"{grid(head, rows)}\nPacked weights {model['weights_bytes'] / model['file_bytes']:.3f} times the file; "
            f"largest memory {most[0]:,.0f} MB, llama.cpp {most[1]:,.0f} MB; loaded in {again:.2f} s ({first:.1f} s "
            f"the first time), llama.cpp {other:.2f} s.\n"
        )
    return "\n".join(parts)


def speculation(benchmark: Record, grid: Grid) -> str:
    """Per task and drafter: decoding time of plain over drafted, and how many texts stayed the same."""
    (run,) = benchmark["runs"]
    tasks = list(dict.fromkeys(row["task"] for row in run["rows"]))
    drafters = list(dict.fromkeys(row["drafter"] for row in run["rows"]))
    found = {(row["task"], row["drafter"]): row for row in run["rows"]}
    rows = []
    for task in tasks:
        cells = []
        for drafter in drafters:
            row = found[task, drafter]
            cell = f"{row['ratio']:.2f}× [{row['low']:.2f}, {row['high']:.2f}]"
            if drafter == "auto" and task in SPECULATION_TARGETS:
                cell += f"; {verdict(row['ratio'], SPECULATION_TARGETS[task])}"
            cells.append(cell)
        auto = found[task, "auto"]
        rows.append([task, *cells, f"{auto['ms_per_token']:.1f}", f"{auto['identical']} of {auto['texts']}"])
    head = ["task", *drafters, "ms per token, auto", "texts as without drafts, auto"]
    return f"{grid(head, rows)}\n{run['model']}, native {run['dtype']}, {run['tokens']} tokens a text.\n"
