"""The preflight: what a backend will enforce of a schema, what says nothing, and what it would not hold.

The table of keywords comes first, then a trial: the schema is compiled for a vocabulary of single bytes, so that what
an engine itself refuses (branches of oneOf that overlap, ranges beyond its numbers) is named with its place, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from likely.errors import ConstraintError
from likely.guided.form import FormSettings
from likely.guided.json_schema.document import Document, escape
from likely.guided.json_schema.errors import InvalidSchema, UnsupportedSchema
from likely.guided.json_schema.formats import FORMATS
from likely.guided.json_schema.generation import Generation, is_bounded, unbounded
from likely.guided.json_schema.keywords import ANNOTATIONS, BACKENDS, effective, has_effect, why_uncheckable
from likely.guided.json_schema.validator import Validator
from likely.guided.vocabulary import Vocabulary

MOST_TRIALS = 400  # compilations spent on finding what an engine refuses
MOST_DROPPED = 32


@dataclass(frozen=True)
class Refused:
    """A keyword that would not be held.  `checkable`: whether a finished text can be tried against it."""

    pointer: str
    keyword: str
    reason: str = ""
    checkable: bool = True

    def error(self) -> UnsupportedSchema:
        return UnsupportedSchema(self.pointer, self.keyword, self.reason, checkable=self.checkable)


@dataclass(frozen=True)
class SchemaReport:
    """JSON pointers of keywords, in the order of the schema.

    enforced   every text that is generated obeys them
    ignored    they rule out no text: annotations, unknown words, assertions that say nothing where they stand
    refused    the backend would not hold them
    """

    backend: str
    enforced: tuple[str, ...]
    ignored: tuple[str, ...]
    refused: tuple[Refused, ...]


def check_schema(schema: Any, backend: str = "llguidance") -> SchemaReport:
    """What `backend` ("llguidance", "xgrammar") enforces of a JSON Schema (draft 2020-12).

    InvalidSchema for what is no schema, refers to nowhere or outside, or can never be satisfied.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    document = Document.of(schema)
    validator = Validator(document)
    return preflight(document, validator, FormSettings(backend=backend))[0]  # type: ignore[arg-type]


def preflight(document: Document, validator: Validator, settings: FormSettings) -> tuple[SchemaReport, Generation]:
    """(report, the schema to generate from: without what is refused)"""
    refused = _uncheckable(document)
    enforced, ignored = [], []
    seen, todo = {""}, [""]
    while todo:
        pointer = todo.pop()
        node = document.at(pointer)
        if isinstance(node, bool):
            continue
        held = []
        for key in node:
            place = f"{pointer}/{escape(key)}"
            if not has_effect(key, node):
                if key not in ANNOTATIONS:
                    ignored.append(place)
            elif any((r.pointer, r.keyword) == (pointer, key) for r in refused):
                continue
            elif (reason := BACKENDS[settings.backend][key](document, pointer, node)) is not None:
                known = key != "format" or node[key] in FORMATS
                refused.append(Refused(pointer, key, reason, checkable=known))
            else:
                enforced.append(place)
                held.append(key)
        for below in reversed(document.steps(pointer, (*held, "oneOf"))):  # oneOf becomes anyOf where it is refused
            if below not in seen:
                seen.add(below)
                todo.append(below)
    more, deep = _trial(document, validator, settings, refused)
    refused += more
    gone = {f"{r.pointer}/{escape(r.keyword)}" for r in refused}
    report = SchemaReport(settings.backend, tuple(e for e in enforced if e not in gone), tuple(ignored), tuple(refused))
    return report, _without(document, validator, settings, refused, deep)


def _uncheckable(document: Document) -> list[Refused]:
    """Patterns that no finished text can be tried against; InvalidSchema for those that are none."""
    found = []
    for pointer in document.reachable:
        node = document.at(pointer)
        for key in ("pattern", "patternProperties"):
            if isinstance(node, dict) and key in node and (reason := why_uncheckable(key, node)):
                if reason[0]:
                    raise InvalidSchema(f"{pointer}/{key}", reason[1])
                found.append(Refused(pointer, key, reason[1], checkable=False))
    return found


def _without(
    document: Document, validator: Validator, settings: FormSettings, refused: list[Refused], deep: bool
) -> Generation:
    dropped = frozenset((r.pointer, r.keyword) for r in refused)
    return Generation(document, validator, settings, dropped, deep=deep)


def _trial(
    document: Document, validator: Validator, settings: FormSettings, refused: list[Refused]
) -> tuple[list[Refused], bool]:
    """(what the engine itself refuses of the schema without what the table refuses, whether bounds can go deep)"""
    found: list[Refused] = []
    deep = is_bounded(settings)
    while True:
        generation = _without(document, validator, settings, [*refused, *found], deep)
        schema = generation.schema()
        if schema is False:
            raise InvalidSchema("", "no text satisfies it")
        try:
            compile_bytes(schema, settings)
            return found, deep
        except ConstraintError as error:
            if deep:
                deep = False
                continue
            if "nsatisfiable" in str(error):
                if is_bounded(settings):
                    _trial(document, validator, unbounded(settings), refused)  # says so if the schema is at fault
                    raise ConstraintError(f"no text satisfies the schema within the bounds given ({error})") from None
                raise InvalidSchema("", "no text satisfies it") from None
            if len(found) == MOST_DROPPED:
                raise
            found.append(_locate(generation, settings, error))


def _locate(generation: Generation, settings: FormSettings, error: ConstraintError) -> Refused:
    """The deepest subschema that the engine refuses by itself."""
    document = generation.document
    deepest = sorted(document.reachable, key=lambda pointer: -pointer.count("/"))
    for pointer in deepest if len(deepest) <= MOST_TRIALS else [""]:
        node = document.at(pointer)
        if isinstance(node, bool) or (pointer, "") in generation.dropped:
            continue
        try:
            compile_bytes(generation.schema(pointer), settings)
        except ConstraintError as own:
            if "nsatisfiable" in str(own) or generation.schema(pointer) is False:
                continue
            return Refused(pointer, _keyword_of(generation, pointer, node, settings), _reason(own))
    if ("", "") in generation.dropped:
        raise error
    return Refused("", "", _reason(error))


def _reason(error: ConstraintError) -> str:
    """The engine's words, without what stands around them."""
    text = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", str(error))
    return re.sub(r"\s+1 \| .*$", "", text).strip().rstrip(".")[:200]


def _keyword_of(generation: Generation, pointer: str, node: dict[str, Any], settings: FormSettings) -> str:
    """The keyword without which the engine takes the subschema; "" for none alone."""
    for key in effective(node):
        less = Generation(
            generation.document, generation.validator, settings, generation.dropped | {(pointer, key)}, deep=False
        )
        if (pointer, key) in generation.dropped or key == "type":
            continue
        try:
            compile_bytes(less.schema(pointer), settings)
        except ConstraintError:
            continue
        return key
    return ""


# --- the trial --------------------------------------------------------------------------------------------------------

_BYTES = Vocabulary((*(bytes([i]) for i in range(256)), b""), frozenset([256]), 256, lambda text: list(text.encode()))


def compile_bytes(schema: Any, settings: FormSettings) -> Any:
    """A constraint on single bytes; ConstraintError where the engine refuses."""
    return engine_of_bytes(settings.backend).compile_schema(schema, settings)


@cache
def engine_of_bytes(name: str) -> Any:
    """An engine whose tokens are the 256 bytes."""
    if name == "xgrammar":
        from likely.guided.engines.xgrammar import XGrammar

        return XGrammar(_BYTES)
    from likely.guided.engines.llguidance import LLGuidance

    return LLGuidance(_BYTES)
