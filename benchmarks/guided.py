"""Guided decoding of likely and of other libraries: same weights, prompts and schemas, greedy, each against its own
unguided loop.

Reported per engine: milliseconds per token after the prompt (the time of a one-token unguided run is taken off), their
ratio to unguided, time to compile a schema at first and at repeated use, time to set up, and the share of valid texts.
Engines that are not installed are named under "missing".  Then the parts of one of our guided steps, in microseconds.

  python benchmarks/guided.py           about 10 minutes
  python benchmarks/guided.py --quick   every engine once, two schemas, 24 tokens
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guided_engines
import guided_parts
import protocol

import likely
from likely.bench import timed
from likely.metrics.bootstrap import bootstrap_ratio
from likely.metrics.intervals import wilson
from likely.models.catalog import find_model
from likely.models.convert import convert
from likely.runtimes.machine import cores
from likely.tokenizers.protocol import decode

sys.path.insert(0, str(Path(__file__).parents[1] / "reproductions"))
from function_schemas import Case, cases, follows


@dataclass
class Taken:
    """What one engine did: per schema, a value per round."""

    token_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    first_compile_s: list[float] = field(default_factory=list)
    repeated_compile_s: list[float] = field(default_factory=list)
    valid: dict[int, bool] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def medians(self, schemas: Sequence[int]) -> list[float]:
        return [statistics.median(self.token_s[i]) for i in schemas]


def measure(
    engines: Sequence[guided_engines.Engine], lm: likely.Model, asked: Sequence[Case], *, count: int, rounds: int
) -> dict[str, Taken]:
    """All engines on every schema in turn, `rounds` times after one that only warms up."""
    taken = {engine.name: Taken() for engine in engines}
    plain = {engine.name: engine for engine in engines if engine.plain is None}
    for number in range(rounds + 1):
        for at, case in enumerate(asked):
            ids = list(lm.render([{"role": "user", "content": case.prompt}]).tokens)
            for engine in engines:
                store = taken[engine.name]
                if any(line.startswith(f"{case.function}:") for line in store.refused):
                    continue
                compiled = None
                if engine.compile is not None:
                    try:
                        compiled, seconds = timed(engine.compile, case.schema)
                    except Exception as error:  # other libraries raise what they like: it is named in the results
                        store.refused.append(f"{case.function}: {str(error).splitlines()[0][:160]}")
                        continue
                    (store.repeated_compile_s if number else store.first_compile_s).append(seconds)
                _, prefill_s = timed((plain[engine.plain] if engine.plain else engine).run, ids, 1, None)
                try:
                    tokens, whole_s = timed(engine.run, ids, count, compiled)
                except Exception as error:
                    store.refused.append(f"{case.function}: while running: {str(error).splitlines()[0][:160]}")
                    continue
                if number:
                    store.token_s[at].append((whole_s - prefill_s) / max(1, len(tokens) - 1))
                text = decode(lm.tokenizer, [t for t in tokens if t not in lm.tokenizer.end_ids])
                store.valid[at], store.tokens[at] = follows(text, case.schema), len(tokens)
        print(f"round {number} of {rounds} done", flush=True)
    return taken


def row_of(engine: guided_engines.Engine, taken: dict[str, Taken]) -> dict[str, Any]:
    store = taken[engine.name]
    schemas = sorted(store.token_s)
    valid = sum(store.valid.values())
    row: dict[str, Any] = {
        "engine": engine.name,
        "unguided": engine.plain,
        "schemas": len(schemas),
        "ms_per_token": 1e3 * statistics.mean(store.medians(schemas)) if schemas else None,
        "tokens": sum(store.tokens.values()),
        "valid": valid,
        "texts": len(store.valid),
        "valid_interval": list(wilson(valid, len(store.valid))),
        "refused": store.refused,
    }
    if row["ms_per_token"]:
        row["tokens_per_s"] = 1e3 / row["ms_per_token"]
    if engine.plain and schemas:
        mine, theirs = store.medians(schemas), taken[engine.plain].medians(schemas)
        row["ratio_to_unguided"] = sum(mine) / sum(theirs)
        row["ratio_interval"] = list(bootstrap_ratio(mine, theirs))
        row["overhead_us_per_token"] = 1e6 * (statistics.mean(mine) - statistics.mean(theirs))
        row["first_compile_ms"] = 1e3 * statistics.median(store.first_compile_s)
        row["repeated_compile_ms"] = 1e3 * statistics.median(store.repeated_compile_s)
    return row


def line_of(row: dict[str, Any]) -> str:
    if row["ms_per_token"] is None:
        return f"{row['engine']:<38} ran on no schema: {row['refused'][:1]}"
    text = f"{row['engine']:<38} {row['ms_per_token']:8.2f} ms per token  {row['valid']}/{row['texts']} valid"
    if "ratio_interval" in row:
        low, high = row["ratio_interval"]
        text += (
            f"  {row['ratio_to_unguided']:.3f}x [{low:.3f}, {high:.3f}] of unguided"
            f"  compile {row['first_compile_ms']:.1f} / {row['repeated_compile_ms']:.1f} ms"
        )
    return text


def against_ours(engines: Sequence[guided_engines.Engine], taken: dict[str, Taken]) -> list[dict[str, Any]]:
    """Time per token of every other guided engine over that of ours on the same weights, where both ran."""
    rows = []
    for engine in engines:
        ours = "likely, llama.cpp" if engine.name.startswith("llama-cpp") else "likely, torch"
        if not engine.plain or engine.name.startswith("likely") or ours not in taken:
            continue
        schemas = sorted(set(taken[engine.name].token_s) & set(taken[ours].token_s))
        if schemas:
            theirs, mine = (taken[name].medians(schemas) for name in (engine.name, ours))
            interval = list(bootstrap_ratio(theirs, mine))
            rows.append({"engine": engine.name, "over": ours, "ratio": sum(theirs) / sum(mine), "interval": interval})
    return rows


def main() -> None:
    options = protocol.arguments(__doc__.splitlines()[0])
    import torch

    torch.set_num_threads(cores())
    rounds = 1 if options.quick else options.rounds
    count = 24 if options.quick else 48
    asked = cases(2 if options.quick else 3)
    path = find_model("smollm2")
    missing: list[str] = []
    setup: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        convert(path, folder, to="safetensors", verify=False)
        cpp = likely.load("smollm2", runtime="llamacpp", threads=cores(), context=guided_engines.CONTEXT)
        ours = likely.load(str(folder), runtime="torch", dtype="float32")
        cpp.drafters.default = ours.drafters.default = "none"
        ends = cpp.tokenizer.end_ids
        engines: list[guided_engines.Engine] = []
        for name, make in {
            "likely, llama.cpp": lambda: guided_engines.of_likely(cpp, "likely, llama.cpp"),
            "llama-cpp-python": lambda: guided_engines.of_llama_cpp_python(path, ends, missing),
            "likely, torch": lambda: guided_engines.of_likely(ours, "likely, torch"),
            "transformers": lambda: guided_engines.of_transformers(folder, ends, missing),
        }.items():
            made, setup[name] = timed(make)
            engines += made
        for engine in engines:  # what is made once per tokenizer is no part of compiling a schema
            if engine.compile is not None:
                _, setup[f"{engine.name}: the first schema of all"] = timed(engine.compile, {"type": "integer"})
        taken = measure(engines, cpp, asked, count=count, rounds=rounds)
        rows = [row_of(engine, taken) for engine in engines]
        for row in rows:
            print(line_of(row))
        record = {
            "tokens_at_most": count,
            "threads": cores(),
            "rounds": rounds,
            "schemas": [case.function for case in asked],
            "rows": rows,
            "against_ours": against_ours(engines, taken),
            "setup_s": setup,
            "missing": missing,
            "parts": guided_parts.parts(cpp, times=3 if options.quick else 50),
        }
        cpp.close()
        ours.close()
        with likely.load("gemma3", runtime="llamacpp", threads=cores()) as wide:
            record["parts"] += guided_parts.parts(wide, times=3 if options.quick else 50)
    for line in missing:
        print(f"missing: {line}")
    protocol.write("guided", record, quick=options.quick)


if __name__ == "__main__":
    main()
