"""Objects take the properties that their schema names: where, and where that would be wrong."""

from __future__ import annotations

import pytest

from likely.guided.json_schema.document import Document
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.generation import closed_objects
from likely.guided.json_schema.report import compile_bytes
from likely.guided.settings import FormSettings

ONE = {"type": "object", "properties": {"a": {"type": "integer"}}}
TWO = {"type": "object", "properties": {"b": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (ONE, {""}),
        ({"type": "array", "items": ONE}, {"/items"}),
        ({"properties": {"x": ONE}}, {"", "/properties/x"}),
        ({**ONE, "additionalProperties": {"type": "null"}}, set()),
        ({**ONE, "additionalProperties": True}, set()),
        ({**ONE, "patternProperties": {"^x": True}}, set()),
        ({**ONE, "required": ["b"]}, set()),
        ({**ONE, "minProperties": 2}, set()),
        ({**ONE, "dependentRequired": {"a": ["b"]}}, set()),
        ({"type": "object", "required": ["a"]}, set()),
        ({"anyOf": [ONE, TWO]}, {"/anyOf/0", "/anyOf/1"}),
        ({"properties": {"c": True}, "anyOf": [ONE, TWO]}, set()),
        ({"allOf": [ONE, TWO]}, set()),
        ({"allOf": [{"anyOf": [ONE, TWO]}]}, set()),
        ({"if": ONE, "then": TWO}, set()),
        ({"$defs": {"one": ONE}, "items": {"$ref": "#/$defs/one"}}, {"/$defs/one"}),
        ({"$defs": {"one": ONE}, "properties": {"x": {"$ref": "#/$defs/one", "required": ["z"]}}}, {""}),
        ({"$defs": {"one": ONE}, "items": {"$ref": "#/$defs/one"}, "contains": {"allOf": [{"$ref": "#/$defs/one"}]}},
         set()),
    ],
)  # fmt: skip
def test_objects_described_in_one_place_are_closed(schema, closed):
    assert closed_objects(Document.of(schema)) == closed


@pytest.mark.parametrize("extra", [False, True])
def test_properties_that_nobody_named(extra):
    form = schema_form({"anyOf": [ONE, {"allOf": [TWO, {"required": ["c"]}]}]}, FormSettings(extra_properties=extra))
    for text, fits in (('{"a": 1}', True), ('{"a": 1, "z": 2}', extra), ('{"b": 1, "c": 2}', True), ("{}", True)):
        constraint = compile_bytes(form.source, form.settings)
        assert all(_take(constraint, byte) for byte in text.encode()) == fits or not fits
        if fits:
            assert constraint.accepting and form.read(text) is not None
        else:
            assert not constraint.accepting


def _take(constraint, byte: int) -> bool:
    if not constraint.permits(byte):
        return False
    constraint.advance(byte)
    return True
