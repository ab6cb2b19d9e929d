"""The schema that an engine is given: what it enforces, with the user's bounds, without what it cannot.

Leaving a keyword out only makes the schema weaker: oneOf becomes anyOf, and where the names of patternProperties are
lost, so is what depends on them.  Subschemas that are referred to move to $defs under plain names; the order of
properties is the order of the schema.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

from likely.guided.json_schema.disjoint import are_disjoint
from likely.guided.json_schema.document import IN_PLACE, Document, Schema, children, escape, types_of
from likely.guided.json_schema.formats import FORMATS, HOSTNAME_LENGTH
from likely.guided.json_schema.keywords import APPLICATORS, effective, has_effect
from likely.guided.json_schema.patterns import rewrite
from likely.guided.json_schema.validator import Validator
from likely.guided.settings import FormSettings

_SCHEMAS = ("items", "additionalProperties")
ALL_TYPES = ("null", "boolean", "object", "array", "number", "string")
Dropped = Set[tuple[str, str]]  # (pointer, keyword); keyword "": all but the type


class SchemaGeneration:
    """Made once per schema; `schema()` gives the whole, `schema(pointer)` one part of it alone."""

    def __init__(
        self,
        document: Document,
        validator: Validator,
        settings: FormSettings,
        dropped: Dropped = frozenset(),
        *,
        deep: bool = True,
    ):
        """deep  the bounds also hold inside values that the schema says nothing about"""
        self.document, self.validator, self.settings, self.dropped = document, validator, settings, dropped
        self.deep = deep and is_bounded(settings)
        self._closed = frozenset() if settings.extra_properties else closed_objects(document)
        self._names: dict[str, str] = {}
        self._values: dict[str, list[Any]] = {}

    def schema(self, pointer: str = "") -> Schema:
        self._names = {}
        top = self._of(pointer)
        if not isinstance(top, dict):
            return top
        defs: dict[str, Schema] = {}
        while len(defs) < len(self._names):
            for target, name in list(self._names.items()):
                if name not in defs:
                    defs[name] = self._any_value() if target == _ANY else self._of(target)
        return {**top, "$defs": defs} if defs else top

    def _refer(self, target: str) -> dict[str, Any]:
        name = self._names.setdefault(target, _ANY_NAME if target == _ANY else f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _anything(self) -> Schema:
        return self._refer(_ANY) if self.deep else {}

    def _of(self, pointer: str) -> Schema:
        node = self.document.at(pointer)
        if isinstance(node, bool):
            return self._anything() if node else False
        if "enum" in node or "const" in node:
            values = self.listed(pointer, node)
            if self._is_dropped(pointer, "enum") or self._is_dropped(pointer, "const"):
                return {"type": sorted(set().union(*map(_types_of_value, values)) - {"integer"})}
            return {"enum": values} if values else False
        out: dict[str, Any] = {}
        for key, value in node.items():
            if not has_effect(key, node):
                continue
            if not self._is_dropped(pointer, key):
                self._keyword(out, pointer, key, value, node)
            elif self._is_loosened(pointer, key, node):
                self._either(out, self._branches(pointer, key, value))
        self._close(out, pointer, node)
        self._bound(out, node)
        if not out:
            return self._anything()
        return self._finished(out)

    def _finished(self, out: dict[str, Any]) -> dict[str, Any]:
        """The subschema in the engine's own words."""
        return out

    def _is_dropped(self, pointer: str, keyword: str) -> bool:
        return (pointer, keyword) in self.dropped or (keyword != "type" and (pointer, "") in self.dropped)

    def listed(self, pointer: str, node: dict[str, Any]) -> list[Any]:
        """The values of enum or const that everything beside it allows."""
        if pointer not in self._values:
            values = [node["const"]] if "const" in node else list(node["enum"])
            rest = {key: value for key, value in node.items() if key not in ("const", "enum")}
            if set(effective(rest)) - {"type"} or ("const" in node and "enum" in node):
                values = self.validator.keeps(pointer, values)
            elif "type" in node:
                values = [value for value in values if _types_of_value(value) & types_of(node)]
            self._values[pointer] = values
        return self._values[pointer]

    def _keyword(self, out: dict[str, Any], pointer: str, key: str, value: Any, node: dict[str, Any]) -> None:
        if key == "$ref":
            out[key] = self._refer(self.document.target(pointer))["$ref"]
        elif key in _SCHEMAS:
            if key == "additionalProperties" and self._is_dropped(pointer, "patternProperties"):
                return
            out[key] = self._of(f"{pointer}/{key}")
        elif key in ("allOf", "prefixItems"):
            out[key] = [*out.get(key, ())]  # a format beside a pattern may stand there already
            out[key] += [self._of(f"{pointer}/{key}/{i}") for i in range(len(value))]
        elif key == "anyOf":
            self._either(out, self._branches(pointer, key, value))
        elif key == "oneOf":
            branches = [f"{pointer}/{key}/{i}" for i in range(len(value))]
            if are_disjoint(self.document, branches, node):
                self._either(out, self._branches(pointer, key, value))
            else:
                out[key] = self._branches(pointer, key, value)
        elif key == "properties":
            out[key] = {name: self._of(f"{pointer}/{key}/{escape(name)}") for name in value}
        elif key == "patternProperties":
            out[key] = {rewrite(name): self._of(f"{pointer}/{key}/{escape(name)}") for name in value}
        elif key == "pattern":
            self._match(out, self._pattern(value))
        elif key == "format":
            self._match(out, f"^(?:{FORMATS[value]})$")
            if value == "hostname":
                out["maxLength"] = min(out.get("maxLength", HOSTNAME_LENGTH), HOSTNAME_LENGTH)
        elif key == "unevaluatedProperties":
            if self._is_dropped(pointer, "patternProperties"):
                return
            out["additionalProperties"] = self._of(f"{pointer}/{key}")
        elif key == "unevaluatedItems":
            out["items"] = self._of(f"{pointer}/{key}")
        elif key == "maxLength":
            out[key] = min(out.get(key, value), value)
        else:
            out[key] = value

    def _branches(self, pointer: str, key: str, value: list[Schema]) -> list[Schema]:
        each = [self._of(f"{pointer}/{key}/{i}") for i in range(len(value))]
        return [part for part in each if part is not False] or [False]

    def _is_loosened(self, pointer: str, key: str, node: dict[str, Any]) -> bool:
        """Whether a oneOf that was dropped may stand as anyOf."""
        return key == "oneOf" and (pointer, "") not in self.dropped

    def _pattern(self, pattern: str) -> str:
        return rewrite(pattern)

    @staticmethod
    def _either(out: dict[str, Any], branches: list[Schema]) -> None:
        if "anyOf" in out:
            out.setdefault("allOf", []).append({"anyOf": branches})
        else:
            out["anyOf"] = branches

    @staticmethod
    def _match(out: dict[str, Any], pattern: str) -> None:
        if "pattern" in out:
            out.setdefault("allOf", []).append({"pattern": pattern})
        else:
            out["pattern"] = pattern

    def _close(self, out: dict[str, Any], pointer: str, node: dict[str, Any]) -> None:
        """What dropped keywords still say for certain, and that properties which nobody named are not wanted."""
        if pointer in self._closed:
            out["additionalProperties"] = False
        if (pointer, "unevaluatedProperties") in self.dropped and node["unevaluatedProperties"] is False:
            names = self._evaluated_names(pointer, set())
            if names is not None and "additionalProperties" not in out:
                known = out.setdefault("properties", {})
                known.update({name: self._anything() for name in names if name not in known})
                out["additionalProperties"] = False
        if (pointer, "contains") in self.dropped:
            out["minItems"] = max(out.get("minItems", 0), node.get("minContains", 1))

    def _evaluated_names(self, pointer: str, seen: set[str]) -> dict[str, None] | None:
        """Names of properties that anything applied in place may evaluate; None: any name."""
        node = self.document.at(pointer)
        if isinstance(node, bool) or pointer in seen:
            return {}
        seen.add(pointer)
        if any(key in node for key in ("patternProperties", "additionalProperties", "$dynamicRef")):
            return None
        if "unevaluatedProperties" in node and node["unevaluatedProperties"] is not False:
            return None
        names = dict.fromkeys(node.get("properties", ()))
        below = [
            pointer + place
            for key, place, _ in children(node)
            if key in ("allOf", "anyOf", "oneOf", "if", "then", "else", "not", "dependentSchemas")
        ]
        if "$ref" in node:
            below.append(self.document.target(pointer))
        for each in below:
            found = self._evaluated_names(each, seen)
            if found is None:
                return None
            names |= found
        return names

    def _bound(self, out: dict[str, Any], node: dict[str, Any]) -> None:
        """The user's bounds, where the schema has none."""
        if not is_bounded(self.settings) or any(key in out for key in APPLICATORS):
            return
        settings, types = self.settings, types_of(node)
        if settings.max_string is not None and "string" in types and self._may_be_cut(out, node):
            out["maxLength"] = max(settings.max_string, out.get("minLength", 0))
        if "array" in types:
            if settings.max_items is not None and "maxItems" not in out:
                out["maxItems"] = max(settings.max_items, out.get("minItems", 0))
            if self.deep:
                out.setdefault("items", self._anything())
        if "object" in types and self.deep:
            out.setdefault("additionalProperties", self._anything())
        if settings.max_number_digits is not None and types & {"number", "integer"}:
            self._bound_number(out, settings.max_number_digits, fractions="number" in types)

    def _may_be_cut(self, out: dict[str, Any], node: dict[str, Any]) -> bool:
        """Whether a string without a bound of its own may get the user's."""
        return "maxLength" not in out and "format" not in node

    def _bound_number(self, out: dict[str, Any], digits: int, *, fractions: bool) -> None:
        largest = 10**digits - 1
        least = max((out[key] for key in ("minimum", "exclusiveMinimum") if key in out), default=None)
        most = min((out[key] for key in ("maximum", "exclusiveMaximum") if key in out), default=None)
        if least is None:
            out["minimum"] = -largest if most is None else min(-largest, most)
        if most is None:
            out["maximum"] = largest if least is None else max(largest, least)
        if fractions and "multipleOf" not in out:
            out["multipleOf"] = 10.0**-digits if digits else 1

    def _any_value(self) -> dict[str, Any]:
        """Any JSON value, within the user's bounds."""
        settings, again = self.settings, {"$ref": f"#/$defs/{_ANY_NAME}"}
        out: dict[str, Any] = {"type": list(ALL_TYPES), "items": again, "additionalProperties": again}
        if settings.max_string is not None:
            out["maxLength"] = settings.max_string
        if settings.max_items is not None:
            out["maxItems"] = settings.max_items
        if (digits := settings.max_number_digits) is not None:
            out["minimum"], out["maximum"] = 1 - 10**digits, 10**digits - 1
            out["multipleOf"] = 10.0**-digits if digits else 1
        return out


_ANY, _ANY_NAME = "*", "any"


def is_bounded(settings: FormSettings) -> bool:
    return not (settings.max_string is None and settings.max_items is None and settings.max_number_digits is None)


def unbounded(settings: FormSettings) -> FormSettings:
    return replace(settings, max_string=None, max_items=None, max_number_digits=None)


def _types_of_value(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, (int, float)):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}


# --- which objects are closed -----------------------------------------------------------------------------------------
#
# JSON Schema leaves objects open where nothing closes them; a model then goes on inventing properties, and nobody who
# lists properties means that.

_TOGETHER = ("allOf", "not", "if", "then", "else", "dependentSchemas")
_BRANCHES = ("anyOf", "oneOf", "$ref")
_OF_OBJECTS = (
    "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties",
    "minProperties", "maxProperties", "dependentRequired",
)  # fmt: skip
_OPENS = (
    "additionalProperties", "patternProperties", "propertyNames", "unevaluatedProperties", "dependentRequired",
    "$dynamicRef", *IN_PLACE,
)  # fmt: skip


def closed_objects(document: Document) -> frozenset[str]:
    """Pointers of subschemas that list properties, say nothing of others, and alone describe their object.

    To close one of several schemas of the same object (allOf, if, a $ref beside properties) could forbid what another
    one asks for; these stay open.
    """
    shared: set[str] = set()
    todo: list[str] = []
    for pointer in document.reachable:
        node = document.at(pointer)
        if not isinstance(node, dict):
            continue
        others = sum(key in node for key in (*IN_PLACE, *_OF_OBJECTS))
        todo += document.steps(pointer, _TOGETHER)
        if others > 1:
            todo += document.steps(pointer, _BRANCHES)
    while todo:
        pointer = todo.pop()
        if pointer not in shared:
            shared.add(pointer)
            todo += document.steps(pointer, IN_PLACE)
    return frozenset(p for p in document.reachable if p not in shared and _lists_its_properties(document.at(p)))


def _lists_its_properties(node: Any) -> bool:
    if not isinstance(node, dict) or not node.get("properties") or any(key in node for key in _OPENS):
        return False
    named = node["properties"]
    return (
        set(node.get("required", ())) <= set(named)
        and node.get("minProperties", 0) <= len(named)
        and all(part is not False for part in named.values())
    )
