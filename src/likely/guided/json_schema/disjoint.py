"""Whether no value satisfies two of some subschemas: then oneOf is anyOf, which engines enforce."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from likely.guided.json_schema.document import TYPES, Document, escape, types_of

MOST_PAIRS = 2_000
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Outline:
    """What a subschema is known to be limited to.

    types   of its values ("number" for integers, too)
    values  all that it may allow, as canonical JSON; None: not listed
    named   for objects: required property -> its values, where they are listed
    """

    types: frozenset[str]
    values: frozenset[str] | None
    named: Mapping[str, frozenset[str]]

    def excludes(self, other: Outline) -> bool:
        if not self.types & other.types:
            return True
        if self.values is not None and other.values is not None and not self.values & other.values:
            return True
        if self.types | other.types != {"object"}:
            return False
        return any(not self.named[name] & other.named[name] for name in set(self.named) & set(other.named))


def are_disjoint(document: Document, pointers: Sequence[str], parent: Mapping[str, Any] = NOTHING) -> bool:
    """parent  the subschema whose branches these are: its type and what it requires hold of each

    True only if it can be seen from types, listed values, or a property that tells the subschemas apart."""
    outlines = [outline(document, pointer, parent) for pointer in pointers]
    if all(o.types == {"object"} for o in outlines):
        for name in outlines[0].named:
            each = [o.named.get(name) for o in outlines]
            if None not in each and len(frozenset().union(*each)) == sum(map(len, each)):  # type: ignore[arg-type]
                return True
    pairs = len(outlines) * (len(outlines) - 1) // 2
    return pairs <= MOST_PAIRS and all(a.excludes(b) for a, b in combinations(outlines, 2))


def outline(document: Document, pointer: str, parent: Mapping[str, Any] = NOTHING) -> Outline:
    node = document.at(pointer)
    if isinstance(node, bool):
        return Outline(frozenset(TYPES) - {"integer"} if node else frozenset(), None if node else frozenset(), {})
    beside = outline(document, document.target(pointer), parent) if "$ref" in node else None
    types = _plain_types(node) & _plain_types(parent)
    values = _listed(document, pointer)
    named = {}
    for name in (*node.get("required", ()), *parent.get("required", ())):
        below = f"{pointer}/properties/{escape(name)}"
        if name in node.get("properties", {}) and (found := _listed(document, below)) is not None:
            named[name] = found
    if values is not None:
        types &= frozenset(_type_of(json.loads(value)) for value in values)
    if beside:
        return Outline(types & beside.types, values if values is not None else beside.values, {**beside.named, **named})
    return Outline(types, values, named)


def _plain_types(node: Mapping[str, Any]) -> frozenset[str]:
    return frozenset("number" if t == "integer" else t for t in types_of(node))


def _listed(document: Document, pointer: str) -> frozenset[str] | None:
    node = document.at(pointer)
    if not isinstance(node, dict):
        return None
    if "const" in node:
        return frozenset([canonical(node["const"])])
    if "enum" in node:
        return frozenset(map(canonical, node["enum"]))
    return _listed(document, document.target(pointer)) if "$ref" in node else None


def canonical(value: Any) -> str:
    """Equal for values that JSON Schema calls equal: 1 and 1.0, objects in any order."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(each) for key, each in part.items()}
        if isinstance(part, list):
            return [plain(each) for each in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(plain(value), sort_keys=True)


def _type_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
