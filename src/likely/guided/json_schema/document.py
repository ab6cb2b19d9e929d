"""A JSON Schema as a document: its subschemas by JSON pointer, its references, and what is wrong with it.

Draft 2020-12 is read whatever $schema says; nothing is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from likely.guided.json_schema.errors import InvalidSchema
from likely.guided.json_schema.rewrites import LISTS, MAPS, ONE, Schema, rewrite_schema

MAX_BYTES = 2_000_000  # of the schema written as JSON
MAX_SUBSCHEMAS = 5_000
MAX_DEPTH = 64  # of objects and arrays within each other

TYPES = ("null", "boolean", "object", "array", "number", "string", "integer")
IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas")
OLDER = {
    "dependencies": "dependentRequired or dependentSchemas",
    "additionalItems": "prefixItems with items",
    "$recursiveRef": "$dynamicRef",
    "divisibleBy": "multipleOf",
    "disallow": "not",
    "extends": "allOf",
}


def escape(part: str | int) -> str:
    """One part of a JSON pointer."""
    return str(part).replace("~", "~0").replace("/", "~1")


def children(node: Schema) -> Iterator[tuple[str, str, Schema]]:
    """(keyword, pointer from the node, subschema) of everything directly inside."""
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ONE:
            yield key, f"/{key}", value
        elif key in LISTS:
            for i, each in enumerate(value):
                yield key, f"/{key}/{i}", each
        elif key in MAPS:
            for name, each in value.items():
                yield key, f"/{escape(key)}/{escape(name)}", each


@dataclass(frozen=True, eq=False)
class Document:
    """A schema whose shape was checked; `root` is a copy of plain JSON values."""

    root: Schema
    text: str  # as JSON
    _bases: dict[str, str] = field(default_factory=dict, repr=False)  # pointer -> base URI
    _ids: dict[str, str] = field(default_factory=dict, repr=False)  # URI -> pointer
    _anchors: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, schema: Any) -> Document:
        """InvalidSchema for what is no schema, too large, or refers to nowhere; everything else is checked later."""
        if not isinstance(schema, (Mapping, bool)):
            raise InvalidSchema("", f"a schema is an object or a boolean, got {type(schema).__name__}")
        try:
            text = json.dumps(schema if isinstance(schema, bool) else dict(schema), ensure_ascii=False, allow_nan=False)
            root = json.loads(text)
        except RecursionError:
            raise InvalidSchema("", f"it is nested more than {MAX_DEPTH} deep") from None
        except (TypeError, ValueError) as error:
            raise InvalidSchema("", f"it is not JSON ({error})") from None
        if len(text) > MAX_BYTES:
            raise InvalidSchema("", f"it has {len(text):,} characters, at most {MAX_BYTES:,} are taken")
        _check_depth(root)
        document = cls(rewrite_schema(root), text)
        document._index("", root, "")
        if len(document._bases) > MAX_SUBSCHEMAS:
            raise InvalidSchema("", f"it has {len(document._bases):,} subschemas, at most {MAX_SUBSCHEMAS:,} are taken")
        document._check_cycles()
        if not document.can_end(""):
            raise InvalidSchema(*document._never_ends())
        return document

    def _index(self, pointer: str, node: Schema, base: str) -> None:
        check_shape(pointer, node)
        if isinstance(node, dict):
            if "$id" in node:
                base = urldefrag(urljoin(base, node["$id"]))[0]
                self._ids.setdefault(base, pointer)
            for name in ("$anchor", "$dynamicAnchor"):
                if name in node:
                    self._anchors[base, node[name]] = pointer
        self._bases[pointer] = base
        if pointer == "":
            self._ids.setdefault("", "")
        for _, below, child in children(node):
            self._index(pointer + below, child, base)

    def at(self, pointer: str) -> Schema:
        """The subschema at a pointer."""
        node = self.root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            node = node[int(part)] if isinstance(node, list) else node[part]
        return node

    def target(self, pointer: str, keyword: str = "$ref") -> str:
        """The pointer that the $ref of the subschema at `pointer` means ($dynamicRef: where it first looks)."""
        ref = self.at(pointer)[keyword]
        base = self._bases[pointer]
        url, fragment = urldefrag(base + ref if ref.startswith("#") else urljoin(base, ref))
        start = self._ids.get(url)
        if start is None:
            raise InvalidSchema(
                f"{pointer}/{keyword}", f"{ref!r} is outside the schema and nothing is fetched: put it under $defs"
            )
        fragment = unquote(fragment)
        found = self._anchors.get((url, fragment)) if fragment and not fragment.startswith("/") else start + fragment
        try:
            node = None if found is None else self.at(found)
        except (KeyError, IndexError, ValueError, TypeError):
            node = None
        if found is None or not isinstance(node, (dict, bool)):
            raise InvalidSchema(f"{pointer}/{keyword}", f"{ref!r} refers to nothing")
        if found not in self._bases:  # under a keyword that holds no schemas
            self._index(found, node, url)
        return found

    @cached_property
    def reachable(self) -> list[str]:
        """Pointers of all subschemas that bear on the text, the root first."""
        seen = {"": None}
        todo = [""]
        while todo:
            pointer = todo.pop()
            for below in self.steps(pointer):
                if below not in seen:
                    seen[below] = None
                    todo.append(below)
        return list(seen)

    def steps(self, pointer: str, only: tuple[str, ...] | None = None) -> list[str]:
        """Pointers of the subschemas that a subschema applies, by all or some of its keywords."""
        node = self.at(pointer)
        if not isinstance(node, dict):
            return []
        found = [
            pointer + below
            for key, below, _ in children(node)
            if key not in ("$defs", "definitions", "contentSchema") and (only is None or key in only)
        ]
        for key in ("$ref", "$dynamicRef"):
            if key in node and (only is None or key in only):
                found.append(self.target(pointer, key))
        return found

    def _check_cycles(self) -> None:
        """A schema that refers to itself without going down into the text has no meaning."""
        done: set[str] = set()
        for start in self.reachable:
            path: dict[str, Iterator[str]] = {}  # from `start` down: what is left to follow at each
            here: str | None = start if start not in done else None
            while here is not None:
                path.setdefault(here, iter(self.steps(here, IN_PLACE)))
                below = next(path[here], None)
                if below is None:
                    done.add(here)
                    del path[here]
                    here = next(reversed(path), None)
                elif below in path:
                    raise InvalidSchema(below, "$ref leads back to itself without going deeper into the text")
                elif below not in done:
                    here = below

    # --- whether a text can end -----------------------------------------------------------------------------------

    @cached_property
    def _ending(self) -> set[str]:
        """Pointers of subschemas that some finite text may satisfy; others need themselves again, or are false."""
        ending: set[str] = set()
        users: dict[str, set[str]] = {}
        for pointer in self.reachable:
            for below in self.steps(pointer):
                users.setdefault(below, set()).add(pointer)
        todo = list(reversed(self.reachable))
        while todo:
            pointer = todo.pop()
            if pointer not in ending and self._may_end(pointer, ending):
                ending.add(pointer)
                todo += users.get(pointer, ())
        return ending

    def can_end(self, pointer: str) -> bool:
        return pointer in self._ending

    def _may_end(self, pointer: str, ending: set[str]) -> bool:
        node = self.at(pointer)
        if isinstance(node, bool):
            return node
        if "enum" in node and not node["enum"]:
            return False
        if "$ref" in node and self.target(pointer) not in ending:
            return False
        if not all(f"{pointer}/allOf/{i}" in ending for i in range(len(node.get("allOf", ())))):
            return False
        for key in ("anyOf", "oneOf"):
            if key in node and not any(f"{pointer}/{key}/{i}" in ending for i in range(len(node[key]))):
                return False
        if "const" in node or "enum" in node:
            return True
        types = types_of(node)
        if types - {"object", "array"}:
            return True
        return ("object" in types and self._object_ends(pointer, node, ending)) or (
            "array" in types and self._array_ends(pointer, node, ending)
        )

    def _object_ends(self, pointer: str, node: dict[str, Any], ending: set[str]) -> bool:
        below = {f"{pointer}/{key}" for key in node if key == "additionalProperties"}
        for name in node.get("required", ()):
            if name in node.get("properties", {}):
                if f"{pointer}/properties/{escape(name)}" not in ending:
                    return False
            elif f"{pointer}/additionalProperties" in below - ending and "patternProperties" not in node:
                return False
        return True

    def _array_ends(self, pointer: str, node: dict[str, Any], ending: set[str]) -> bool:
        least, first = node.get("minItems", 0), len(node.get("prefixItems", ()))
        if not all(f"{pointer}/prefixItems/{i}" in ending for i in range(min(least, first))):
            return False
        return least <= first or "items" not in node or f"{pointer}/items" in ending

    def _never_ends(self) -> tuple[str, str]:
        """Where and why no text satisfies the root."""
        empty = [p for p in self.reachable if self.at(p) is False or self._lists_nothing(p)]
        for pointer in empty:
            return pointer, "no text satisfies it"
        for pointer in self.reachable:
            node = self.at(pointer)
            if not self.can_end(pointer) and isinstance(node, dict) and "$ref" in node:
                return f"{pointer}/$ref", f"{node['$ref']!r} needs itself again without end"
        return "", "no text satisfies it"

    def _lists_nothing(self, pointer: str) -> bool:
        node = self.at(pointer)
        return isinstance(node, dict) and node.get("enum") == []


def types_of(node: Mapping[str, Any]) -> set[str]:
    """The types that `type` allows; all but "integer" (a kind of number) where it is absent."""
    named = node.get("type")
    if named is None:
        return set(TYPES) - {"integer"}
    return {named} if isinstance(named, str) else set(named)


def _check_depth(root: Any) -> None:
    level, depth = [root], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise InvalidSchema("", f"it is nested more than {MAX_DEPTH} deep")
        level = [
            child
            for value in level
            if isinstance(value, (dict, list))
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, (dict, list))
        ]


# --- the shape of keywords --------------------------------------------------------------------------------------------


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)


def _is_type(value: Any) -> bool:
    if isinstance(value, str):
        return value in TYPES
    return _are_names(value) and bool(value) and set(value) <= set(TYPES)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _maps_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNTS = (
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains",
)  # fmt: skip
SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(ONE, (_is_schema, "a schema")),
    **dict.fromkeys(LISTS, (_are_schemas, "a list of at least one schema")),
    **dict.fromkeys(MAPS, (_maps_schemas, "an object of schemas")),
    **dict.fromkeys(("$ref", "$dynamicRef", "$id", "$anchor", "$dynamicAnchor", "$schema"), (_is_text, "a string")),
    **dict.fromkeys(("pattern", "format"), (_is_text, "a string")),
    **dict.fromkeys(_COUNTS, (_is_count, "a whole number >= 0")),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), (_is_number, "a number")),
    "multipleOf": (lambda v: _is_number(v) and v > 0, "a number > 0"),
    "type": (_is_type, f"one or more of {', '.join(TYPES)}"),
    "enum": (lambda v: isinstance(v, list), "a list"),
    "required": (_are_names, "a list of different strings"),
    "uniqueItems": (lambda v: isinstance(v, bool), "true or false"),
    "dependentRequired": (lambda v: isinstance(v, dict) and all(map(_are_names, v.values())), "an object of names"),
}


def check_shape(pointer: str, node: Schema) -> None:
    """InvalidSchema where a keyword holds something else than it may; counts such as 2.0 become whole."""
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise InvalidSchema(pointer, f"a schema is an object or a boolean, got {json.dumps(node)[:40]}")
    for key, value in node.items():
        if key in OLDER:
            raise InvalidSchema(f"{pointer}/{key}", f'"{key}" is of an older draft: write {OLDER[key]}')
        shape = SHAPES.get(key)
        if shape and not shape[0](value):
            hint = " (a list of schemas is prefixItems)" if key == "items" else ""
            raise InvalidSchema(
                f"{pointer}/{escape(key)}", f'"{key}" must be {shape[1]}{hint}, got {json.dumps(value)[:40]}'
            )
        if key in _COUNTS:
            node[key] = int(value)
