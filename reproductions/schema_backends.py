"""JSON Schema in two engines: what they accept by themselves, and behind the preflight.

Each instance of the JSON-Schema test suite (draft 2020-12), as json.dumps writes it, byte by byte through a constraint:

  right    accepted if and only if it is valid
  over     a valid instance is not accepted (order: it is with its keys in another order; spelling: it is as other
           digits or unescaped characters)
  under    an invalid instance is accepted
  refused  the schema is an error

raw: the engine alone, its own defaults.  error, validate: what `generate` does with on_unsupported="error" and
"validate": the constraint, then the check of the finished text.

  python reproductions/schema_backends.py          the test suite
  python reproductions/schema_backends.py --full   and functions of bfcl: schemas taken, true calls accepted
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import xgrammar_constraint
from function_schemas import as_json_schema
from study import arguments, conclude, data_sources, run_script, run_study, share_figure

from likely.data import load_records
from likely.errors import ConstraintError
from likely.evidence import Check, Evidence, Figure, Source
from likely.guided.json_schema.errors import InvalidText
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.report import LLGUIDANCE, byte_engine
from likely.guided.settings import FormSettings
from likely.io.hashes import fingerprint

SUITE = ("json-schema-tests", "draft2020-12.jsonl")
CALLS = tuple(("bfcl", f"{name}.jsonl.gz") for name in ("simple_python", "multiple", "live_simple", "live_multiple"))
BACKENDS = ("llguidance", "xgrammar")
MODES = ("raw", "error", "validate")
OUTCOMES = ("right", "over", "under", "refused")
RIGHT_WITH_VALIDATE = 0.9
MOST_ORDERS = 720

Accepts = Callable[[str], bool]


# --- one schema -------------------------------------------------------------------------------------------------------


def raw_engine(backend: str) -> Callable[[Any], Accepts]:
    """Schemas as the engine itself takes them."""
    if backend == "xgrammar":
        engine = xgrammar_constraint.byte_engine()
        return lambda schema: walked(engine.compile_json(schema))
    return lambda schema: walked(byte_engine().compile("start: %json " + json.dumps(schema)))


def public(backend: str, mode: str) -> Callable[[Any], Accepts]:
    """Schemas as `generate` takes them: a text counts as accepted if it would be returned as a value."""
    settings = FormSettings(on_unsupported=mode, whitespace="any", extra_properties=True)  # type: ignore[arg-type]
    engine = xgrammar_constraint.XGRAMMAR if backend == "xgrammar" else LLGUIDANCE

    def compiled(schema: Any) -> Accepts:
        form = schema_form(schema, settings, engine)
        accepted = walked(engine.compile(form.source, settings))

        def accepts(text: str) -> bool:
            if not accepted(text):
                return False
            try:
                form.read(text)
            except InvalidText:
                return False
            return True

        return accepts

    return compiled


def walked(start: Any) -> Accepts:
    def accepts(text: str) -> bool:
        constraint = start.fork()
        for byte in text.encode():
            if not constraint.permits(byte):
                return False
            constraint.advance(byte)
        return constraint.accepting

    return accepts


def outcomes(rows: Sequence[Mapping[str, Any]], compiled: Callable[[Any], Accepts]) -> Counter[str]:
    """How many instances came out which way."""
    found: Counter[str] = Counter()
    for row in rows:
        try:
            accepts = compiled(row["schema"])
        except ConstraintError:
            found["refused"] += len(row["tests"])
            continue
        for test in row["tests"]:
            taken = accepts(json.dumps(test["data"]))
            if taken == test["valid"]:
                found["right"] += 1
            elif taken:
                found["under"] += 1
            else:
                found["over"] += 1
                found[f"over: {why_over(test['data'], accepts)}"] += 1
    return found


def why_over(data: Any, accepts: Accepts) -> str:
    """What would have been accepted in place of json.dumps(data)."""
    if any(accepts(json.dumps(other)) for other in itertools.islice(reordered(data), MOST_ORDERS)):
        return "order"
    if accepts(json.dumps(data, ensure_ascii=False)) or accepts(json.dumps(whole(data), ensure_ascii=False)):
        return "spelling"
    if any(accepts(json.dumps(other, ensure_ascii=False)) for other in itertools.islice(reordered(data), MOST_ORDERS)):
        return "order"
    return "language"


def reordered(data: Any) -> Iterator[Any]:
    """The value with the keys of its objects in every order."""
    if isinstance(data, dict):
        for names in itertools.permutations(data):
            for values in itertools.product(*(list(itertools.islice(reordered(data[n]), 24)) for n in names)):
                yield dict(zip(names, values, strict=True))
    elif isinstance(data, list):
        yield from map(list, itertools.product(*(list(itertools.islice(reordered(each), 24)) for each in data)))
    else:
        yield data


def whole(data: Any) -> Any:
    """1.0 as 1."""
    if isinstance(data, dict):
        return {key: whole(value) for key, value in data.items()}
    if isinstance(data, list):
        return [whole(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


# --- functions --------------------------------------------------------------------------------------------------------


def calls(files: Sequence[tuple[str, str]]) -> list[tuple[Any, Any]]:
    """(schema of the arguments, a true call that follows it) of each case with a single call."""
    found = []
    for file in files:
        for row in load_records(*file):
            if len(row["ground_truth"]) != 1:
                continue
            [(name, arguments)] = row["ground_truth"][0].items()
            [function] = [f for f in row["function"] if f["name"] == name] or [None]
            if function is None:
                continue
            schema = as_json_schema(function["parameters"])
            order = list(schema.get("properties", ()))
            chosen = {key: _first(values) for key, values in arguments.items() if values and values[0] != ""}
            call = {key: chosen[key] for key in order if key in chosen}
            if jsonschema.Draft202012Validator(schema).is_valid(call):  # some break their own function's schema
                found.append((schema, call))
    return found


def _first(values: list[Any]) -> Any:
    """The first acceptable value, parts of objects likewise."""
    value = values[0]
    if isinstance(value, dict):
        return {key: _first(part) if isinstance(part, list) and part else part for key, part in value.items()}
    return value


# --- the study --------------------------------------------------------------------------------------------------------


def installed() -> list[str]:
    return [name for name in BACKENDS if importlib.util.find_spec(name)]


def share(subject: str, quantity: str, count: int, total: int, of: str) -> Figure:
    return share_figure(subject, quantity, count, total, unit="share", of=of)


def study(
    rows: Sequence[Mapping[str, Any]],
    functions: Sequence[tuple[Any, Any]],
    *,
    backends: Sequence[str],
    full: bool,
    data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:
    started = time.perf_counter()
    total = sum(len(row["tests"]) for row in rows)
    figures: list[Figure] = []
    checks: list[Check] = []
    said = []
    for backend in backends:
        for mode in MODES:
            compiled = raw_engine(backend) if mode == "raw" else public(backend, mode)
            found = outcomes(rows, compiled)
            subject = f"{backend}, {mode}"
            figures += [share(subject, name, found[name], total, "instances") for name in OUTCOMES]
            if found["over"]:
                figures += [
                    share(subject, f"over, by {why}", found[f"over: {why}"], found["over"], "instances refused wrongly")
                    for why in ("order", "spelling", "language")
                ]
            counts = ", ".join(f"{name} {found[name]}" for name in OUTCOMES)
            report(f"{subject}: {counts}")
            said.append(f"{subject}: {counts}")
            if mode != "raw":
                checks.append(
                    Check(
                        statement=f"{subject}: invalid instances accepted",
                        value=found["under"], bound=0, unit="instances",
                    )
                )  # fmt: skip
            if mode == "validate":
                checks.append(
                    Check(
                        statement=f"{subject}: share of instances not right",
                        value=1 - found["right"] / total, bound=1 - RIGHT_WITH_VALIDATE, unit="share",
                    )
                )  # fmt: skip
        if functions:
            figures += function_figures(backend, functions, report)
    libraries = ("llguidance", "xgrammar", "jsonschema")
    versions = {name: importlib.metadata.version(name) for name in libraries if importlib.util.find_spec(name)}
    return conclude(
        "schema_backends",
        title="JSON Schema: what two engines enforce",
        claim=(
            "Behind a preflight that refuses what an engine does not enforce, and with a check of the finished text, "
            "no invalid instance is returned, whatever the engine accepts by itself."
        ),
        paper_figure=None,
        ours="; ".join(said),
        figures=figures,
        checks=checks,
        samples=f"{total} instances of {len(rows)} schemas" + f", {len(functions)} function calls" * bool(functions),
        intervals="95 %, Wilson",
        full=full,
        models=[Source(name="single bytes as tokens, no model", sha256=fingerprint(bytes(range(256)), 64))],
        data=data,
        seconds=time.perf_counter() - started,
        not_shown=[
            "How often a text must be drawn again until it is valid: that depends on model and schema.",
            "Speed: benchmarks/masks.py.",
            "Schemas that refer to other documents, which are refused; remote references are not in the data.",
            *(f"{name}: not installed." for name in BACKENDS if name not in backends),
        ],
        versions=versions,
    )


def function_figures(backend: str, functions: Sequence[tuple[Any, Any]], report: Callable[[str], None]) -> list[Figure]:
    """How many real schemas are taken without further words, and how many true calls are then accepted."""
    compiled, taken, accepted = public(backend, "error"), 0, 0
    for schema, call in functions:
        try:
            accepts = compiled(schema)
        except ConstraintError:
            continue
        taken += 1
        accepted += accepts(json.dumps(call, ensure_ascii=False))
    report(f"{backend}: {taken} of {len(functions)} function schemas taken, {accepted} true calls accepted")
    return [
        share(f"{backend}, functions of bfcl", "schemas taken", taken, len(functions), "schemas"),
        share(f"{backend}, functions of bfcl", "true calls accepted", accepted, max(taken, 1), "calls"),
    ]


def measure(options: argparse.Namespace) -> Evidence:
    return study(
        list(load_records(*SUITE)), calls(CALLS) if options.full else [], backends=installed(), full=options.full,
        data=data_sources((SUITE, *(CALLS if options.full else ()))),
    )  # fmt: skip


def main() -> None:
    run_study(arguments(full="the functions of bfcl, too"), measure)


if __name__ == "__main__":
    run_script(main)
