"""Which objects of a schema take the properties that it names and no others, unless the user says so.

JSON Schema leaves objects open where nothing closes them; a model then goes on inventing properties, and nobody who
lists properties means that.
"""

from __future__ import annotations

from typing import Any

from likely.guided.json_schema.document import IN_PLACE, Document

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
