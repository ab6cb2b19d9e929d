"""Keywords of older drafts, and some that no engine holds, in words that it holds: exactly the same texts."""

from __future__ import annotations

from typing import Any

Schema = Any  # bool or dict[str, Any]
ONE = (
    "items", "contains", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties", "not",
    "if", "then", "else", "contentSchema",
)  # fmt: skip
LISTS = ("prefixItems", "allOf", "anyOf", "oneOf")
MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


def rewrite_schema(root: Schema) -> Schema:
    """The schema, changed in place."""
    todo = [root]
    while todo:
        node = todo.pop()
        if not isinstance(node, dict):
            continue
        _older_lists(node)
        _older_dependencies(node)
        _listed_names(node, root)
        _required_together(node)
        _if_on_value(node)
        for key, value in node.items():
            if key in ONE:
                todo.append(value)
            elif key in LISTS and isinstance(value, list):
                todo += value
            elif key in MAPS and isinstance(value, dict):
                todo += value.values()
    return root


def _older_lists(node: dict[str, Any]) -> None:
    """Draft 7: `items` is a list of schemas, `additionalItems` what follows them."""
    if isinstance(node.get("items"), list) and node["items"] and "prefixItems" not in node:
        node["prefixItems"] = node.pop("items")
        if "additionalItems" in node:
            node["items"] = node.pop("additionalItems")
    elif "prefixItems" not in node:
        node.pop("additionalItems", None)  # without a list it says nothing


def _older_dependencies(node: dict[str, Any]) -> None:
    """Draft 7: names or a schema."""
    found = node.get("dependencies")
    if not isinstance(found, dict) or not all(isinstance(value, (list, dict, bool)) for value in found.values()):
        return
    for name, value in node.pop("dependencies").items():
        keyword = "dependentRequired" if isinstance(value, list) else "dependentSchemas"
        node.setdefault(keyword, {}).setdefault(name, value)


def _listed_names(node: dict[str, Any], root: Schema) -> None:
    """Where all names are listed and nothing else is said of any, they are the properties."""
    names = node.get("propertyNames")
    if isinstance(names, dict) and set(names) == {"$ref"} and str(names["$ref"]).startswith("#/$defs/"):
        names = root.get("$defs", {}).get(names["$ref"].removeprefix("#/$defs/")) if isinstance(root, dict) else None
    if not isinstance(names, dict) or set(names) - {"enum", "const", "type", "title", "description"}:
        return
    values = names.get("enum", [names["const"]] if "const" in names else None)
    others = ("properties", "patternProperties", "unevaluatedProperties", "$ref", "allOf", "anyOf", "oneOf")
    if not isinstance(values, list) or names.get("type", "string") != "string" or any(key in node for key in others):
        return
    each = node.get("additionalProperties", True)
    node["properties"] = {value: each for value in values if isinstance(value, str)}
    node["additionalProperties"] = False
    del node["propertyNames"]


def _required_together(node: dict[str, Any]) -> None:
    """`a` needs `b`: either `a` is absent, or `b` is there."""
    found = node.get("dependentRequired")
    if not isinstance(found, dict) or not all(_are_names(names) for names in found.values()):
        return
    required = node.get("required", [])
    if not _are_names(required):
        return
    rest: dict[str, list[str]] = {}
    growing = True
    while growing:  # what is required anyway requires its dependents
        growing = False
        for name, names in found.items():
            if name in required and set(names) - set(required):
                required = [*required, *(n for n in names if n not in required)]
                growing = True
    for name, names in found.items():
        if name not in required and (missing := [n for n in names if n not in required and n != name]):
            rest[name] = missing
    del node["dependentRequired"]
    if required:
        node["required"] = required
    for name, names in rest.items():
        ways = [{"properties": {name: False}}, {"required": [name, *names]}]
        node.setdefault("allOf", []).append({"anyOf": ways})


def _if_on_value(node: dict[str, Any]) -> None:
    """A condition on a property that is there and whose values are listed: one way for each of its two sides."""
    test, properties = node.get("if"), node.get("properties")
    if node.get("type") != "object" or not isinstance(test, dict) or not isinstance(properties, dict):
        return
    tested = test.get("properties")
    if set(test) - {"properties", "required", "type"} or not isinstance(tested, dict) or len(tested) != 1:
        return
    [(name, wanted)] = tested.items()
    here, there = _values(properties.get(name)), _values(wanted)
    required = node.get("required", [])
    if here is None or there is None or not (_are_names(required) and name in required):
        return
    if test.get("type", "object") != "object" or test.get("required", [name]) != [name]:
        return
    ways = []
    for part, then in (([v for v in here if v in there], "then"), ([v for v in here if v not in there], "else")):
        if part:
            ways.append({"allOf": [{"properties": {name: {"enum": part}}}, node.get(then, True)]})
    for keyword in ("if", "then", "else"):
        node.pop(keyword, None)
    node.setdefault("allOf", []).append({"anyOf": ways})


def _values(node: Any) -> list[Any] | None:
    """The strings, or the truth values, that a subschema lists; None where it does not, or says more."""
    if not isinstance(node, dict) or set(node) - {"enum", "const", "type", "title", "description", "default"}:
        return None
    named = node.get("type")
    if "const" in node and "enum" in node:
        return None
    values = [node["const"]] if "const" in node else node.get("enum", [True, False] if named == "boolean" else None)
    if not isinstance(values, list) or named not in ("string", "boolean", None):
        return None
    kinds = (str, bool) if named is None else (str,) if named == "string" else (bool,)
    return values if all(isinstance(value, kinds) for value in values) else None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
