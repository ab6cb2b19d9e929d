"""Which keywords of JSON Schema llguidance enforces: one table, with conditions where it is only partly.

A keyword stands for one of three things: it is enforced, it has no effect on the text (annotations, unknown words, and
assertions that say nothing where they stand), or it is refused for a reason.  Draft 2020-12: a keyword for strings says
nothing about numbers, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from likely.guided.json_schema.document import Document, types_of
from likely.guided.json_schema.formats import FORMATS
from likely.guided.json_schema.patterns import PatternError, is_quick, look_around, python_pattern, searcher

Subschema = Mapping[str, Any]
Rule = Callable[
    [Document, str, Subschema], str | None
]  # (document, pointer, node) -> why it is refused; None: enforced

ANNOTATIONS = frozenset(
    ("$schema", "$id", "$anchor", "$dynamicAnchor", "$comment", "$vocabulary", "$defs", "definitions", "title",
     "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
)  # fmt: skip
APPLIES_TO = {
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"), "array"),
    **dict.fromkeys(("minContains", "maxContains", "unevaluatedItems"), "array"),
    **dict.fromkeys(("properties", "patternProperties", "additionalProperties", "required"), "object"),
    **dict.fromkeys(("minProperties", "maxProperties", "propertyNames", "unevaluatedProperties"), "object"),
    **dict.fromkeys(("dependentRequired", "dependentSchemas"), "object"),
}
APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf")
SPREADING = (*APPLICATORS, "not", "if", "dependentSchemas", "$dynamicRef")  # what may evaluate properties beside a node

# assertions that say nothing where they stand
_IDLE: dict[str, Callable[[Any, Subschema], bool]] = {
    "uniqueItems": lambda value, node: not value or node.get("maxItems", 2) <= 1,
    "then": lambda value, node: "if" not in node or value in (True, {}),
    "else": lambda value, node: "if" not in node or value in (True, {}),
    "if": lambda value, node: node.get("then", True) in (True, {}) and node.get("else", True) in (True, {}),
    "minContains": lambda value, node: "contains" not in node or (value == 0 and "maxContains" not in node),
    "maxContains": lambda value, node: "contains" not in node,
    "contains": lambda value, node: node.get("minContains") == 0 and "maxContains" not in node,
    "dependentRequired": lambda value, node: not any(value.values()),
    "dependentSchemas": lambda value, node: all(v in (True, {}) for v in value.values()),
    "propertyNames": lambda value, node: value in (True, {}),
    "unevaluatedProperties": lambda value, node: value in (True, {}) or "additionalProperties" in node,
    "unevaluatedItems": lambda value, node: value in (True, {}) or "items" in node,
    "not": lambda value, node: value is False,
    "minLength": lambda value, node: value == 0,
    "minItems": lambda value, node: value == 0,
    "minProperties": lambda value, node: value <= len(node.get("required", ())),
    "required": lambda value, node: not value,
    "format": lambda value, node: value not in FORMATS,  # one that is not known is an annotation
    "patternProperties": lambda value, node: not value,
}
_HANDLED = frozenset(
    (*APPLIES_TO, *APPLICATORS, "type", "enum", "const", "not", "if", "then", "else", "$dynamicRef", "minContains",
     "maxContains")
)  # fmt: skip


def has_effect(keyword: str, node: Subschema) -> bool:
    """Whether the keyword can rule out any text here."""
    if keyword not in node or keyword not in _HANDLED:
        return False
    if ("const" in node or "enum" in node) and keyword not in ("const", "enum"):
        return False  # the listed values were tried against everything beside them
    applies = APPLIES_TO.get(keyword)
    if applies and not _allows(types_of(node), applies):
        return False
    idle = _IDLE.get(keyword)
    return not (idle and idle(node[keyword], node))


def _allows(types: set[str], wanted: str) -> bool:
    return wanted in types or (wanted == "number" and "integer" in types)


def effective(node: Subschema) -> list[str]:
    """The keywords that have an effect, in the order of the schema."""
    return [key for key in node if has_effect(key, node)]


# --- rules ------------------------------------------------------------------------------------------------------------


def _always(document: Document, pointer: str, node: Subschema) -> None:
    return None


def _never(document: Document, pointer: str, node: Subschema) -> str:
    return ""


def _pattern(document: Document, pointer: str, node: Subschema) -> str | None:
    found = look_around(node["pattern"])
    return f"the pattern holds {found}" if found else None


def _pattern_names(document: Document, pointer: str, node: Subschema) -> str | None:
    return next(
        (f"the pattern {p!r} holds {found}" for p in node["patternProperties"] if (found := look_around(p))), None
    )


def _least_properties(document: Document, pointer: str, node: Subschema) -> str | None:
    """Keys beyond the named ones may come twice, and then count once."""
    most = len(node.get("required", ())) + 1
    return None if node["minProperties"] <= most else f"only up to {most} here: further keys may repeat"


def _unevaluated(same_as: str) -> Rule:
    """Where nothing beside it evaluates anything, it is another keyword."""

    def rule(document: Document, pointer: str, node: Subschema) -> str | None:
        beside = [key for key in SPREADING if key in node]
        return f'beside "{beside[0]}"; write {same_as} there' if beside else None

    return rule


def _unevaluated_items(document: Document, pointer: str, node: Subschema) -> str | None:
    beside = [key for key in (*SPREADING, "contains") if key in node]
    return f'beside "{beside[0]}"; write items there' if beside else None


def at_most(most: int, *keywords: str) -> Rule:
    """Longer lists take the engine seconds to minutes to compile."""

    def rule(document: Document, pointer: str, node: Subschema) -> str | None:
        longest = max(len(node[key]) for key in keywords if key in node)
        return f"{longest:,} entries, at most {most:,} are taken" if longest > most else None

    return rule


LLGUIDANCE_RULES: dict[str, Rule] = {
    **dict.fromkeys(("type", "const", "$ref", "allOf"), _always),
    "enum": at_most(20_000, "enum"),
    **{name: at_most(1_000, name) for name in ("anyOf", "oneOf", "prefixItems")},
    **dict.fromkeys(("items", "minItems", "maxItems"), _always),
    **dict.fromkeys(("additionalProperties", "maxProperties"), _always),
    "properties": at_most(2_000, "properties"),
    "required": at_most(2_000, "required"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _always),
    **dict.fromkeys(("minLength", "maxLength"), _always),
    "pattern": _pattern,
    "patternProperties": _pattern_names,
    "format": _always,
    "minProperties": _least_properties,
    "unevaluatedProperties": _unevaluated("additionalProperties"),
    "unevaluatedItems": _unevaluated_items,
    **dict.fromkeys(("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"), _never),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "propertyNames", "$dynamicRef"), _never),
}


def why_uncheckable(keyword: str, node: Subschema) -> tuple[bool, str] | None:
    """(it is no regular expression, why) for a pattern that cannot even be checked afterwards; else None."""
    value = node[keyword]
    try:
        if keyword == "pattern":
            searcher(value)
        elif keyword == "patternProperties":
            for pattern in value:
                if not is_quick(python_pattern(pattern)):
                    raise PatternError(f"checking {pattern!r} could take very long")
    except PatternError as error:
        return error.wrong, str(error)
    return None
