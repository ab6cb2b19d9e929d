"""Constraints by xgrammar, the other engine of the comparison: a pushdown automaton with masks per vocabulary.

It silently accepts what breaks many keywords, so that a schema reaches it only behind the preflight, with a table of
keywords and words of its own (`XGRAMMAR`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from likely.decoding.constraint import Mask, no_tokens
from likely.errors import CapabilityError, ConstraintError
from likely.guided.json_schema.disjoint import are_disjoint
from likely.guided.json_schema.document import Document, Schema, types_of
from likely.guided.json_schema.generation import ALL_TYPES, SchemaGeneration
from likely.guided.json_schema.keywords import (
    APPLICATORS,
    LLGUIDANCE_RULES,
    Rule,
    Subschema,
    at_most,
    effective,
    has_effect,
)
from likely.guided.json_schema.patterns import rewrite
from likely.guided.json_schema.report import SchemaBackend
from likely.guided.settings import FormSettings
from likely.guided.text_constraint import TextConstraint
from likely.guided.vocabulary import Vocabulary, byte_vocabulary
from likely.io.regular_expression import (
    Alternation,
    Anchor,
    Character,
    Concatenation,
    RegexGroup,
    RegexNode,
    Repetition,
    parse_regex,
)

MOST_WHITESPACE = 8


class XGrammar:
    """The engine for one vocabulary."""

    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        try:
            import xgrammar
        except ImportError:
            raise CapabilityError("xgrammar is not installed. Run: pip install xgrammar") from None
        self._library = xgrammar

    @cached_property
    def _compiler(self) -> Any:
        vocabulary, library = self.vocabulary, self._library
        info = library.TokenizerInfo(
            list(vocabulary.tokens),
            vocab_type=library.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=sorted(vocabulary.end_ids),
        )
        return library.GrammarCompiler(info, max_threads=1, cache_enabled=False)  # compiled forms are kept by the guide

    def compile_json(self, schema: Schema) -> XGrammarConstraint:
        """Of a schema as the engine itself reads it, open objects being open: nothing is promised."""
        return self._made(lambda: self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False))

    def compile_schema(self, schema: Schema, settings: FormSettings) -> XGrammarConstraint:
        """Of a schema that passed the preflight."""
        separators = {"compact": (",", ":"), "single": (", ", ": "), "any": None}[settings.whitespace]
        flexible = settings.whitespace == "any"
        return self._made(
            lambda: self._compiler.compile_json_schema(
                json.dumps(schema),
                any_whitespace=flexible,
                separators=separators,
                strict_mode=False,
                max_whitespace_cnt=MOST_WHITESPACE if flexible else None,
            )
        )

    def _made(self, compiled: Any) -> XGrammarConstraint:
        try:
            return XGrammarConstraint(self.vocabulary, self._library.GrammarMatcher(compiled()))
        except RuntimeError as error:
            raise ConstraintError(_one_line(str(error))) from None


@dataclass(eq=False)
class XGrammarConstraint(TextConstraint):
    """The state of one text."""

    matcher: Any
    _mask: Mask | None = field(default=None, repr=False)

    @property
    def accepting(self) -> bool:
        return self.ended or self.matcher.is_completed()

    def _text_mask(self) -> Mask:
        if self._mask is None:
            mask = no_tokens(self.vocab_size)
            if not self.matcher.fill_next_token_bitmask(mask.view("int32")[None]):
                mask[:] = 0xFFFFFFFF  # it left the mask alone: everything goes
            self._mask = mask & self.vocabulary.text_mask
        return self._mask

    @property
    def finished(self) -> bool:
        if self.ended:
            return True
        return self.accepting and not self._text_mask().any()

    def forced(self) -> list[int]:
        if self.ended:
            return []
        try:
            text = self.matcher.find_jump_forward_string().encode()
        except UnicodeDecodeError:  # it ends, or begins, inside a character
            return []
        if not text and self.finished:
            return [self.vocabulary.eos_id]
        return self.vocabulary.guess(text)

    def _take(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise ConstraintError(f"xgrammar refused token {token}, which its own mask allows")
        self._mask = None

    def _undo(self, n: int) -> None:
        self._mask = None
        try:
            self.matcher.rollback(n)
        except RuntimeError as error:
            raise ValueError(f"cannot take back {n} tokens: {_one_line(str(error))}") from None

    def fork(self) -> XGrammarConstraint:
        return replace(self, matcher=self.matcher.fork())


def _one_line(message: str) -> str:
    """Without the place in the engine's source."""
    return re.sub(r"^\[[\d:]+\] \S+: ", "", " ".join(message.split()))[:400]


# --- schemas in its words ---------------------------------------------------------------------------------------------


class XGrammarGeneration(SchemaGeneration):
    """Without what the engine reads in another way."""

    def _finished(self, out: dict[str, Any]) -> dict[str, Any]:
        _spell_lengths(out)
        for name in out.get("required", ()):  # it forgets required properties that it does not know by name
            known = out.setdefault("properties", {})
            if name not in known:
                known[name] = out.get("additionalProperties", {})
        if "type" not in out and not any(key in out for key in APPLICATORS):
            out = {"type": list(ALL_TYPES), **out}
        return out

    def _pattern(self, pattern: str) -> str:
        return f"^{plain_body(pattern)}$"

    def _is_loosened(self, pointer: str, key: str, node: dict[str, Any]) -> bool:
        return super()._is_loosened(pointer, key, node) and effective(node) == ["oneOf"]

    def _close(self, out: dict[str, Any], pointer: str, node: dict[str, Any]) -> None:
        least = {key: out[key] for key in ("minItems",) if key in out}
        super()._close(out, pointer, node)
        out.pop("minItems", None)
        out.update(least)

    def _may_be_cut(self, out: dict[str, Any], node: dict[str, Any]) -> bool:
        return super()._may_be_cut(out, node) and "pattern" not in out

    def _bound_number(self, out: dict[str, Any], digits: int, *, fractions: bool) -> None:
        super()._bound_number(out, digits, fractions=False)

    def _any_value(self) -> dict[str, Any]:
        out = super()._any_value()
        out.pop("multipleOf", None)
        _spell_lengths(out)
        return out


def _spell_lengths(out: dict[str, Any]) -> None:
    """It lets control characters into strings of bounded length: here a pattern without them, nor escapes."""
    if "minLength" in out or "maxLength" in out:
        low, high = out.pop("minLength", 0), out.pop("maxLength", "")
        out["pattern"] = rf'^[^\x00-\x1f"\\]{{{low},{high}}}$'


def plain_body(pattern: str) -> str | None:
    """The inside of ^...$ if the whole is made of printable ASCII that JSON writes as itself; else None."""
    parts = parse_regex(rewrite(pattern)).root.parts
    if len(parts) < 2 or parts[0] != Anchor("start") or parts[-1] != Anchor("end"):
        return None
    return rewrite(pattern)[1:-1] if all(map(_is_plain, parts[1:-1])) else None


def _is_plain(node: RegexNode) -> bool:
    match node:
        case Character(members, negated):
            return not negated and all(isinstance(m, tuple) and _is_plain_range(*m) for m in members)
        case Concatenation(parts) | Alternation(parts):
            return all(map(_is_plain, parts))
        case RegexGroup(body, added, removed):
            return not added and not removed and _is_plain(body)
        case Repetition(body, _, _, "greedy"):
            return _is_plain(body)
    return False


def _is_plain_range(low: int, high: int) -> bool:
    return low >= 0x20 and high < 0x7F and not any(low <= ord(c) <= high for c in '"\\')


# --- what it enforces -------------------------------------------------------------------------------------------------


def refused_always(document: Document, pointer: str, node: Subschema) -> str:
    return ""


def _alone(keyword: str) -> Rule:
    """xgrammar reads one of these and forgets the keywords beside it."""

    def rule(document: Document, pointer: str, node: Subschema) -> str | None:
        beside = [key for key in effective(node) if key != keyword]
        return f'beside "{beside[0]}"' if beside else LLGUIDANCE_RULES[keyword](document, pointer, node)

    return rule


def _one_alone(document: Document, pointer: str, node: Subschema) -> str | None:
    return "more than one schema" if len(node["allOf"]) > 1 else _alone("allOf")(document, pointer, node)


def _disjoint_alone(document: Document, pointer: str, node: Subschema) -> str | None:
    if not are_disjoint(document, [f"{pointer}/oneOf/{i}" for i in range(len(node["oneOf"]))]):
        return "two of its schemas may hold at once"
    return _alone("oneOf")(document, pointer, node)


def _plain_pattern(document: Document, pointer: str, node: Subschema) -> str | None:
    beside = [key for key in ("minLength", "maxLength", "format") if has_effect(key, node)]
    if beside:
        return f'beside "{beside[0]}"'
    return None if plain_body(node["pattern"]) else 'only ^...$ of printable ASCII without " and \\'


def _plain_format(document: Document, pointer: str, node: Subschema) -> str | None:
    if node["format"] not in ("date", "time", "date-time", "uuid", "ipv4", "duration"):
        return f'the format "{node["format"]}" is not enforced there'
    beside = [key for key in ("minLength", "maxLength") if has_effect(key, node)]
    return f'beside "{beside[0]}"' if beside else None


def _small_whole(keyword: str) -> Rule:
    def rule(document: Document, pointer: str, node: Subschema) -> str | None:
        value = node[keyword]
        if "integer" in types_of(node) and value != int(value):
            return "not a whole number"
        return None if abs(value) <= 10**15 else "too large a number"

    return rule


def _without_names(keyword: str) -> Rule:
    """Counts of properties: exact for keys that may be anything."""

    def rule(document: Document, pointer: str, node: Subschema) -> str | None:
        beside = [key for key in ("properties", "required") if node.get(key)]
        if beside:
            return f'beside "{beside[0]}"'
        return LLGUIDANCE_RULES["minProperties"](document, pointer, node) if keyword == "minProperties" else None

    return rule


def _plain_names(document: Document, pointer: str, node: Subschema) -> str | None:
    """Further keys may spell an unusual name in a second way."""
    if len(node["properties"]) > 500:
        return f"{len(node['properties']):,} entries, at most 500 are taken"
    if node.get("additionalProperties", True) is False:
        return None
    return next((f"the name {n!r} in an open object" for n in node["properties"] if not _is_plain_name(n)), None)


def _is_plain_name(name: str) -> bool:
    return name.isascii() and name.isprintable() and not set(name) & set('"\\')


RULES: dict[str, Rule] = {
    **LLGUIDANCE_RULES,
    "enum": at_most(2_000, "enum"),
    "required": at_most(500, "required"),
    "properties": _plain_names,
    **{name: _alone(name) for name in ("$ref", "anyOf")},
    "allOf": _one_alone,
    "oneOf": _disjoint_alone,
    "pattern": _plain_pattern,
    "patternProperties": refused_always,
    "format": _plain_format,
    "multipleOf": refused_always,
    **{name: _small_whole(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")},
    **{name: _without_names(name) for name in ("minProperties", "maxProperties")},
}


@cache
def byte_engine() -> XGrammar:
    return XGrammar(byte_vocabulary())


def _compile_bytes(schema: Schema, settings: FormSettings) -> XGrammarConstraint:
    return byte_engine().compile_schema(schema, settings)


XGRAMMAR = SchemaBackend("xgrammar", RULES, XGrammarGeneration, _compile_bytes)
