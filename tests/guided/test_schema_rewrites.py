"""Schemas in words that no engine holds, written in others: exactly the same texts."""

from __future__ import annotations

import enum
import itertools
import json

import jsonschema
import pytest

from likely.guided.json_schema.errors import UnsupportedSchema
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.report import compile_bytes
from likely.guided.settings import FormSettings

pytest.importorskip("llguidance")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def takes(form, text: str) -> bool:
    constraint = compile_bytes(form.source, form.settings)
    for byte in text.encode():
        if not constraint.permits(byte):
            return False
        constraint.advance(byte)
    return constraint.accepting


A = {"type": "integer", "minimum": 1, "maximum": 1}
OBJECT = {"type": "object", "properties": {"k": {"enum": ["x", "y"]}, "a": A, "b": A}, "additionalProperties": False}
OBJECTS = [
    {name: value for name, value in zip("kab", values, strict=True) if value is not None}
    for values in itertools.product(("x", "y", None), (1, None), (1, None))
]


@pytest.mark.parametrize(
    "beside",
    [
        {"dependentRequired": {"a": ["b"]}},
        {"dependentRequired": {"a": ["b"], "b": ["k"]}},
        {"dependentRequired": {"k": ["a"], "a": ["b"]}, "required": ["k"]},
        {"required": ["k"], "if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["a"]}},
        {"required": ["k"], "if": {"properties": {"k": {"const": "x"}}, "required": ["k"]},
         "then": {"required": ["a"]}, "else": {"required": ["b"], "properties": {"a": False}}},
        {"required": ["k"], "if": {"properties": {"k": {"enum": ["x", "y"]}}}, "else": False},
        {"required": ["k"], "oneOf": [{"properties": {"k": {"const": "x"}}},
                                      {"properties": {"k": {"const": "y"}}, "required": ["b"]}]},
    ],
)  # fmt: skip
def test_conditions_on_objects(beside):
    schema = {**OBJECT, **beside}
    form, stock = schema_form(schema, FormSettings()), jsonschema.Draft202012Validator(schema)
    held = [takes(form, json.dumps(value)) for value in OBJECTS]
    assert held == [stock.is_valid(value) for value in OBJECTS] and any(held)


@pytest.mark.parametrize(
    "test", [{"const": "x", "enum": ["y"]}, {"type": ["string", "null"]}, {"const": 1}, {"minLength": 1}]
)
def test_conditions_on_more_than_listed_values_stay(test):
    schema = {**OBJECT, "required": ["k"], "if": {"properties": {"k": test}}, "then": {"required": ["a"]}}
    with pytest.raises(UnsupportedSchema, match=r"\"(if|then)\" at the top"):
        schema_form(schema, FormSettings())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": [A, {"type": "string", "maxLength": 0}]},
        {"type": "array", "items": [A, {"type": "string", "maxLength": 0}], "additionalItems": False},
        {"type": "array", "items": [A], "additionalItems": {"type": "null"}, "maxItems": 3},
    ],
)
def test_lists_of_draft_7(schema):
    form, stock = schema_form(schema, FormSettings()), jsonschema.Draft7Validator(schema)
    values = [list(v) for n in range(4) for v in itertools.product((1, "", None), repeat=n)]
    assert [takes(form, json.dumps(value)) for value in values] == [stock.is_valid(value) for value in values]


def test_dependencies_of_draft_7():
    schema = {**OBJECT, "dependencies": {"a": ["b"]}}
    form, stock = schema_form(schema, FormSettings()), jsonschema.Draft7Validator(schema)
    assert [takes(form, json.dumps(v)) for v in OBJECTS] == [stock.is_valid(v) for v in OBJECTS]


def test_sets_and_names_by_an_enum():
    form = schema_form(set[int], FormSettings())
    assert takes(form, "[1, 1, 2]") and form.read("[1, 1, 2]") == {1, 2}
    form = schema_form(dict[Colour, int], FormSettings())
    assert takes(form, '{"red": 1}') and not takes(form, '{"green": 1}')
    assert form.read('{"red": 1}') == {Colour.RED: 1}


def test_an_unknown_format_is_an_annotation_and_is_told():
    form = schema_form({"properties": {"a": {"format": "iri"}}}, FormSettings())
    assert form.warnings == ('not checked: the format "iri" at /properties/a is not known',)
    assert takes(form, '{"a": "x"}') and form.read('{"a": "x"}') == {"a": "x"}


@pytest.mark.slow
def test_general_categories_of_unicode():
    form = schema_form({"type": "string", "pattern": "^\\p{Lu}[\\p{Ll}\\p{Nd}]+\\P{L}$"}, FormSettings())
    for text, fits in (("Éa٣!", True), ("éa!", False), ("Aaa", False), ("Ab1-", True)):
        shown = json.dumps(text, ensure_ascii=False)
        assert takes(form, shown) == fits
        if fits:
            assert form.read(shown) == text
