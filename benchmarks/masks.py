"""What a mask costs: microseconds per token of real documents under their schemas, per engine and vocabulary.

The documents are true calls of bfcl's functions, in the tokens that the model's tokenizer writes them in; at each
position the set of allowed tokens is asked for and the next token taken.  llguidance with each of its ways to prepare
tokens (slices), xgrammar where it is installed, in turns.  compile: a schema that the engine has not seen, once the
engine is set up, without the preflight; preflight: what `schema_form` adds, once per schema.

  python benchmarks/masks.py           about 10 minutes
  python benchmarks/masks.py --quick   6 documents, one round
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import protocol

import likely
from likely.bench.timing import timed
from likely.guided.engines.llguidance import LLGuidance
from likely.guided.json_schema.document import Document
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.report import preflight
from likely.guided.json_schema.validator import Validator
from likely.guided.settings import FormSettings
from likely.guided.vocabulary import Vocabulary
from likely.metrics.bootstrap import median_interval

sys.path.insert(0, str(Path(__file__).parents[1] / "reproductions"))
import schema_backends
import xgrammar_constraint

MODELS = ("smollm2", "gemma3")
TARGETS = {"mask_us_median": 20.0, "mask_us_mean": 64.0, "compile_ms_median": 1.0}
DOCUMENTS = 120


@dataclass
class Times:
    """Microseconds per mask and per token taken; milliseconds per schema compiled."""

    mask: list[float] = field(default_factory=list)
    take: list[float] = field(default_factory=list)
    compile: list[float] = field(default_factory=list)


Compile = Callable[[Any], Any]  # a schema to generate from -> a constraint


def engines(vocabulary: Vocabulary) -> dict[str, tuple[Compile, float]]:
    """(compiler, seconds to set it up) by name."""
    import llguidance

    ways: dict[str, list[str]] = {"llguidance": llguidance.LLTokenizer.general_slices(), "llguidance, no slices": []}
    if (for_json := llguidance.LLTokenizer.json_slices()) != ways["llguidance"]:  # the same list up to 1.9.1 at least
        ways["llguidance, JSON slices"] = for_json
    found = {}
    settings = FormSettings()
    for name, slices in ways.items():
        engine = LLGuidance(vocabulary, slices=slices)
        found[name] = warmed(lambda schema, engine=engine: engine.compile_schema(schema, settings))
    if importlib.util.find_spec("xgrammar"):
        other = xgrammar_constraint.XGrammar(vocabulary)
        found["xgrammar"] = warmed(lambda schema: other.compile_schema(schema, settings))
    return found


def warmed(compiled: Compile) -> tuple[Compile, float]:
    schema = {"type": "object", "properties": {"warm": {"type": "string"}}}
    return compiled, timed(lambda: compiled(schema).allowed())[1]


def documents(vocabulary: Vocabulary, count: int) -> list[tuple[Any, list[int]]]:
    """(schema to generate from, tokens of a document that follows it and an end token)"""
    found = []
    for schema, call in schema_backends.calls(schema_backends.CALLS):
        source = schema_form(schema, FormSettings()).source
        text = json.dumps(call, separators=(",", ":"), ensure_ascii=False)
        found.append((source, [*vocabulary.spell(text.encode()), vocabulary.eos_id]))
    step = max(1, len(found) // count)
    return found[::step][:count]


def walk(compiled: Compile, schema: Any, tokens: Sequence[int], times: Times) -> None:
    constraint, seconds = timed(compiled, schema)
    times.compile.append(1e3 * seconds)
    for token in tokens:
        times.mask.append(1e6 * timed(constraint.allowed)[1])
        times.take.append(1e6 * timed(constraint.advance, token)[1])


def follows(compiled: Compile, schema: Any, tokens: Sequence[int]) -> bool:
    """Whether an engine can write the document at all (xgrammar does not hold every schema)."""
    try:
        walk(compiled, schema, tokens, Times())
    except likely.errors.ConstraintError:
        return False
    return True


def cell(rounds: list[Times], setup_s: float) -> dict[str, Any]:
    """Quantiles over everything; the interval is of each round's own median or mean."""
    masks = np.concatenate([times.mask for times in rounds])
    return {
        "mask_us_median": float(np.median(masks)),
        "mask_us_median_interval": median_interval([float(np.median(times.mask)) for times in rounds]),
        "mask_us_mean": float(masks.mean()),
        "mask_us_mean_interval": median_interval([float(np.mean(times.mask)) for times in rounds]),
        "mask_us_p99": float(np.quantile(masks, 0.99)),
        "mask_us_max": float(masks.max()),
        "take_us_median": float(np.median(np.concatenate([times.take for times in rounds]))),
        "compile_ms_median": statistics.median(ms for times in rounds for ms in times.compile),
        "compile_ms_max": max(ms for times in rounds for ms in times.compile),
        "setup_s": setup_s,
        "masks_per_round": len(rounds[0].mask),
    }


def measure(vocabulary: Vocabulary, count: int, rounds: int) -> dict[str, Any]:
    ready = engines(vocabulary)
    asked = [
        (schema, tokens)
        for schema, tokens in documents(vocabulary, count)
        if all(follows(compiled, schema, tokens) for compiled, _ in ready.values())
    ]
    found: dict[str, list[Times]] = {name: [] for name in ready}
    for number in range(rounds):
        for name in ready:
            found[name].append(Times())
        for schema, tokens in asked:
            for name, (compiled, _) in ready.items():
                walk(compiled, schema, tokens, found[name][number])
        print(f"round {number + 1} of {rounds} done", flush=True)
    cells = {name: cell(times, ready[name][1]) for name, times in found.items()}
    return {"documents": len(asked), "engines": cells}


def preflight_ms(count: int) -> float:
    """Milliseconds (median) to check a schema and to make what is generated from, as is done once per schema."""
    taken = []
    for schema, _ in schema_backends.calls(schema_backends.CALLS)[:count]:
        started = time.perf_counter()
        document = Document.of(schema)
        preflight(document, Validator(document), FormSettings())
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    options = protocol.arguments(__doc__)
    count, rounds = (6, 1) if options.quick else (DOCUMENTS, options.rounds)
    record: dict[str, Any] = {
        "rounds": rounds,
        "targets": TARGETS,
        "engines": {
            name: importlib.metadata.version(name)
            for name in ("llguidance", "xgrammar")
            if importlib.util.find_spec(name)
        },
        "preflight_ms_median": preflight_ms(count),
        "vocabularies": {},
    }
    for model in MODELS:
        with likely.load(model) as lm:
            vocabulary = lm.guide.vocabulary
            found = measure(vocabulary, count, rounds)
        record["vocabularies"][model] = {"tokens": vocabulary.size, **found}
        for name, row in found["engines"].items():
            print(
                f"{model} ({vocabulary.size:,}), {name}: mask median {row['mask_us_median']:.1f} us, "
                f"mean {row['mask_us_mean']:.1f}, p99 {row['mask_us_p99']:.0f}, max {row['mask_us_max']:.0f}; "
                f"compile {row['compile_ms_median']:.2f} ms; set up {row['setup_s']:.2f} s",
                flush=True,
            )
    protocol.write("masks", record, quick=options.quick)


if __name__ == "__main__":
    main()
