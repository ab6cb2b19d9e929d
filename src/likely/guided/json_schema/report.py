"""The preflight: what a backend will enforce of a schema, what says nothing, and what it would not hold.

The table of keywords comes first, then a trial: the schema is compiled for a vocabulary of single bytes, so that what
an engine itself refuses (branches of oneOf that overlap, ranges beyond its numbers) is named with its place, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from likely.errors import ConstraintError
from likely.guided.engines.llguidance import LLGuidance
from likely.guided.json_schema.document import Document, Schema, escape
from likely.guided.json_schema.errors import InvalidSchema, UnsupportedSchema
from likely.guided.json_schema.generation import SchemaGeneration, is_bounded, unbounded
from likely.guided.json_schema.keywords import (
    ANNOTATIONS,
    LLGUIDANCE_RULES,
    Rule,
    effective,
    has_effect,
    why_uncheckable,
)
from likely.guided.json_schema.validator import Validator
from likely.guided.settings import FormSettings
from likely.guided.vocabulary import byte_vocabulary

MOST_TRIALS = 400  # compilations spent on finding what an engine refuses
MOST_DROPPED = 32


@cache
def byte_engine() -> LLGuidance:
    """llguidance on a vocabulary of the 256 bytes."""
    return LLGuidance(byte_vocabulary())


def compile_bytes(schema: Schema, settings: FormSettings) -> Any:
    """A constraint on single bytes; ConstraintError where the engine refuses."""
    return byte_engine().compile_schema(schema, settings)


@dataclass(frozen=True, eq=False)
class SchemaBackend:
    """What the preflight knows of an engine.

    rules       per keyword, why it is refused where it stands
    generation  writes schemas in the engine's words
    compile     (schema, settings) -> a constraint on single bytes; ConstraintError
    """

    name: str
    rules: Mapping[str, Rule]
    generation: type[SchemaGeneration]
    compile: Callable[[Schema, FormSettings], Any]


LLGUIDANCE = SchemaBackend("llguidance", LLGUIDANCE_RULES, SchemaGeneration, compile_bytes)


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


def check_schema(schema: Any, backend: SchemaBackend = LLGUIDANCE) -> SchemaReport:
    """What the backend enforces of a JSON Schema (draft 2020-12).

    InvalidSchema for what is no schema, refers to nowhere or outside, or can never be satisfied.
    """
    document = Document.of(schema)
    return preflight(document, Validator(document), FormSettings(), backend)[0]


def preflight(
    document: Document, validator: Validator, settings: FormSettings, backend: SchemaBackend = LLGUIDANCE
) -> tuple[SchemaReport, SchemaGeneration]:
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
            elif (reason := backend.rules[key](document, pointer, node)) is not None:
                refused.append(Refused(pointer, key, reason))
            else:
                enforced.append(place)
                held.append(key)
        for below in reversed(document.steps(pointer, (*held, "oneOf"))):  # oneOf becomes anyOf where it is refused
            if below not in seen:
                seen.add(below)
                todo.append(below)
    trial = _Trial(document, validator, settings, backend)
    found, deep = trial.refusals(refused)
    refused += found
    gone = {f"{r.pointer}/{escape(r.keyword)}" for r in refused}
    report = SchemaReport(backend.name, tuple(e for e in enforced if e not in gone), tuple(ignored), tuple(refused))
    return report, trial.generation(refused, deep)


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


@dataclass(frozen=True)
class _Trial:
    """A schema that is compiled, with less and less of it, until the engine takes it."""

    document: Document
    validator: Validator
    settings: FormSettings
    backend: SchemaBackend

    def generation(self, refused: list[Refused], deep: bool) -> SchemaGeneration:
        dropped = frozenset((r.pointer, r.keyword) for r in refused)
        return self.backend.generation(self.document, self.validator, self.settings, dropped, deep=deep)

    def refusals(self, refused: list[Refused]) -> tuple[list[Refused], bool]:
        """(what the engine itself refuses of the schema without `refused`, whether bounds can go deep)"""
        found: list[Refused] = []
        deep = is_bounded(self.settings)
        while True:
            generation = self.generation([*refused, *found], deep)
            schema = generation.schema()
            if schema is False:
                raise InvalidSchema("", "no text satisfies it")
            try:
                self.backend.compile(schema, self.settings)
                return found, deep
            except ConstraintError as error:
                if deep:
                    deep = False
                    continue
                if "nsatisfiable" in str(error):
                    if is_bounded(self.settings):  # the schema may be at fault itself: then that is said
                        replace(self, settings=unbounded(self.settings)).refusals(refused)
                        raise ConstraintError(
                            f"no text satisfies the schema within the bounds given ({error})"
                        ) from None
                    raise InvalidSchema("", "no text satisfies it") from None
                if len(found) == MOST_DROPPED:
                    raise
                found.append(self._locate(generation, error))

    def _locate(self, generation: SchemaGeneration, error: ConstraintError) -> Refused:
        """The deepest subschema that the engine refuses by itself."""
        deepest = sorted(self.document.reachable, key=lambda pointer: -pointer.count("/"))
        for pointer in deepest if len(deepest) <= MOST_TRIALS else [""]:
            node = self.document.at(pointer)
            if isinstance(node, bool) or (pointer, "") in generation.dropped:
                continue
            try:
                self.backend.compile(generation.schema(pointer), self.settings)
            except ConstraintError as own:
                if "nsatisfiable" in str(own) or generation.schema(pointer) is False:
                    continue
                return Refused(pointer, self._keyword_of(generation, pointer, node), _reason(own))
        if ("", "") in generation.dropped:
            raise error
        return Refused("", "", _reason(error))

    def _keyword_of(self, generation: SchemaGeneration, pointer: str, node: dict[str, Any]) -> str:
        """The keyword without which the engine takes the subschema; "" for none alone."""
        for key in effective(node):
            if (pointer, key) in generation.dropped or key == "type":
                continue
            dropped = generation.dropped | {(pointer, key)}
            less = self.backend.generation(self.document, self.validator, self.settings, dropped, deep=False)
            try:
                self.backend.compile(less.schema(pointer), self.settings)
            except ConstraintError:
                continue
            return key
        return ""


def _reason(error: ConstraintError) -> str:
    """The engine's words, without what stands around them."""
    text = re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", str(error))
    return re.sub(r"\s+1 \| .*$", "", text).strip().rstrip(".")[:200]
