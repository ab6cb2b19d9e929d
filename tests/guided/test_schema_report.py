"""The preflight: what is enforced, ignored and refused, where, and what is no schema at all."""

from __future__ import annotations

import json

import pytest
from toy_texts import uniform

from likely.errors import CapabilityError
from likely.guided.engines.llguidance import LLGuidance
from likely.guided.json_schema.disjoint import are_disjoint
from likely.guided.json_schema.document import MAX_DEPTH, Document
from likely.guided.json_schema.errors import InvalidSchema, UnsupportedSchema
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.keywords import ANNOTATIONS, APPLIES_TO
from likely.guided.json_schema.report import LLGUIDANCE, check_schema, compile_bytes
from likely.guided.settings import FormSettings

pytest.importorskip("llguidance")
TRAP = {"type": "object", "required": ["a"]}


@pytest.fixture(params=["llguidance", "xgrammar"])
def backend(request):
    if request.param == "llguidance":
        return LLGUIDANCE
    return pytest.importorskip("other_engine").XGRAMMAR


def refused(schema, backend=LLGUIDANCE) -> dict[str, str]:
    return {f"{r.pointer}/{r.keyword}": r.reason for r in check_schema(schema, backend).refused}


def accepts(schema, text: str, backend=LLGUIDANCE, **settings) -> bool:
    settings = {"extra_properties": True, **settings}
    form = schema_form(schema, FormSettings(whitespace="single", **settings), backend)
    constraint = backend.compile(form.source, form.settings)
    for byte in text.encode():
        if not constraint.permits(byte):
            return False
        constraint.advance(byte)
    return constraint.accepting


def test_a_report_has_pointers_for_every_keyword():
    schema = {
        "title": "order", "x-mine": 1, "type": "object",
        "properties": {"tags": {"type": "array", "uniqueItems": True, "minLength": 3}, "a/b": {"$ref": "#/$defs/n"}},
        "$defs": {"n": {"type": "integer", "not": {"const": 3}}, "unused": {"contains": True}},
    }  # fmt: skip
    report = check_schema(schema)
    assert set(report.enforced) == {
        "/type", "/properties", "/properties/tags/type", "/properties/a~1b/$ref", "/$defs/n/type",
    }  # fmt: skip
    assert set(report.ignored) == {"/x-mine", "/properties/tags/minLength"}
    assert {(r.pointer, r.keyword) for r in report.refused} == {
        ("/properties/tags", "uniqueItems"),
        ("/$defs/n", "not"),
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "uniqueItems": True, "contains": {}, "unevaluatedProperties": False},
        {"uniqueItems": False, "then": False, "else": False, "maxContains": 0, "dependentRequired": {}},
        {"if": {"const": 1}, "propertyNames": True, "not": False, "minProperties": 0},
        {"contains": {"const": 1}, "minContains": 0},
        {"type": "array", "uniqueItems": True, "maxItems": 1},
        {"const": 3, "not": {"const": 4}, "uniqueItems": True, "if": True, "then": {"type": "integer"}},
        {"format": "no-such", "type": "integer"},
    ],
)
def test_what_says_nothing_is_no_reason_to_refuse(schema, backend):
    assert check_schema(schema, backend).refused == ()


def test_listed_values_are_tried_against_everything_beside_them(backend):
    schema = {"enum": [1, 2, 3, "a"], "not": {"const": 2}, "type": "integer", "$ref": "#/$defs/odd",
              "$defs": {"odd": {"if": {"minimum": 3}, "then": {"const": 3}}}}  # fmt: skip
    for text, valid in [("1", True), ("2", False), ("3", True), ('"a"', False)]:
        assert accepts(schema, text, backend) == valid
    assert check_schema(schema, backend).enforced == ("/enum",)


def test_closed_objects_need_no_neighbours():
    alone = {"properties": {"a": {"type": "null"}}, "unevaluatedProperties": False, "type": "object"}
    assert not refused(alone)
    assert accepts(alone, '{"a": null}') and not accepts(alone, '{"b": null}')
    assert "/unevaluatedProperties" in refused({**alone, "allOf": [{"properties": {"b": True}}]})


def test_container_without_shape_is_not_the_empty_container(backend):
    """{"type": "object", "required": ["a"]}: a container type, no shape, one further keyword."""
    for schema, good, bad in [
        (TRAP, ['{"a": 1}', '{"a": {}}', '{"a": 1, "b": 2}'], ["{}", '{"b": 1}', "[]"]),
        ({"type": "object", "minProperties": 1}, ['{"a": 1}', '{"x": null, "y": 2}'], ["{}"]),
        ({"type": "object", "maxProperties": 1}, ['{"a": 1}', "{}"], ['{"a": 1, "b": 2}']),
        ({"type": "array", "minItems": 1}, ["[1]", '["a", {}]'], ["[]"]),
        ({"type": "array", "maxItems": 1}, ["[1]", "[]"], ["[1, 2]"]),
        ({"type": "array", "prefixItems": [{"type": "null"}]}, ["[null, 1]", "[]"], ["[1]"]),
    ]:
        for texts, valid in ((good, True), (bad, False)):
            for text in texts:
                assert accepts(schema, text, backend) == valid, (schema, text)
    form = schema_form({**TRAP, "additionalProperties": {"type": "null"}}, FormSettings(max_string=5), backend)
    engine = LLGuidance if backend is LLGUIDANCE else pytest.importorskip("other_engine").engine
    constraint = engine(uniform().guide.vocabulary).compile_schema(form.source, form.settings)
    results = uniform().generate("a", constraint=constraint, n=8, max_tokens=200)
    assert all("a" in form.read(r.text) for r in results if r.complete) and any(r.complete for r in results)


@pytest.mark.parametrize(
    "schema, keyword",
    [
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, "/oneOf"),
        ({"properties": {"a": {"type": "number", "minimum": 1e30}}}, "/properties/a/minimum"),
        ({"patternProperties": {"a": {"const": 1}, "b": {"const": 2}}}, "/patternProperties"),
        ({"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"pattern": "(?=a)b"}}}, "/$defs/x/pattern"),
        ({"type": "object", "minProperties": 2}, "/minProperties"),
    ],
)
def test_what_the_engine_refuses_is_named_with_its_place(schema, keyword):
    assert list(refused(schema)) == [keyword]
    form = schema_form(schema, FormSettings(on_unsupported="validate"))
    assert compile_bytes(form.source, form.settings)
    assert not form.warnings


@pytest.mark.parametrize(
    "branches, disjoint",
    [
        ([{"type": "string"}, {"type": "integer"}, {"type": ["null", "boolean"]}], True),
        ([{"type": "number"}, {"type": "integer"}], False),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": 1}, {"const": True}], True),
        ([{"enum": [1, 2]}, {"enum": [3]}], True),
        ([{"enum": [1, 2]}, {"type": "integer", "minimum": 3}], False),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], True),
        ([{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/cat"}], False),
        ([{"$ref": "#/$defs/cat"}, {"type": "object", "properties": {"k": {"const": "dog"}}}], False),  # not required
        ([{"properties": {"k": {"const": k}}, "required": ["k"]} for k in (1, 2)], False),  # both hold for a number
        ([False, {}], True),
    ],
)  # fmt: skip
def test_one_of_is_any_of_where_no_two_can_hold(branches, disjoint):
    def pet(kind):
        return {"type": "object", "properties": {"k": {"const": kind}}, "required": ["k"]}

    schema = {"oneOf": branches, "$defs": {"cat": pet("cat"), "dog": pet("dog")}}
    document = Document.of(schema)
    assert are_disjoint(document, [f"/oneOf/{i}" for i in range(len(branches))]) == disjoint


def test_many_branches_told_apart_by_one_property(backend):
    branches = [
        {"type": "object", "properties": {"k": {"const": i}}, "required": ["k"], "additionalProperties": False}
        for i in range(300)
    ]
    assert accepts({"oneOf": branches}, '{"k": 299}', backend) and not accepts(
        {"oneOf": branches}, '{"k": 300}', backend
    )


def test_every_assertion_of_the_draft_is_in_both_tables(backend):
    words = {
        *APPLIES_TO,
        "type",
        "enum",
        "const",
        "$ref",
        "$dynamicRef",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
    }
    assert set(backend.rules) == words and not words & ANNOTATIONS


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schema, pointer",
    [
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "/properties/a/$ref"),
        ({"items": {"$ref": "http://127.0.0.1:9/schema.json"}}, "/items/$ref"),
        ({"$ref": "other.json#/x"}, "/$ref"),
        ({"$ref": "#nowhere"}, "/$ref"),
        ({"$ref": "#"}, ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}, "/$defs/a"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "/properties/a/$ref"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "/items/$ref"),
        ({"properties": {"a": {"pattern": "(a"}}}, "/properties/a/pattern"),
        ({"patternProperties": {"[z-a]": {}}}, "/patternProperties"),
        ({"properties": {"a": {"type": "strnig"}}}, "/properties/a/type"),
        ({"items": [{"type": "strnig"}]}, "/prefixItems/0/type"),
        ({"required": "a"}, "/required"),
        ({"minLength": -1}, "/minLength"),
        ({"dependencies": {"a": "b"}}, "/dependencies"),
        ({"properties": {"a": 3}}, "/properties"),
        ({"enum": []}, ""),
        (False, ""),
        ({"anyOf": []}, "/anyOf"),
        ({"const": 1, "type": "string"}, ""),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, ""),
    ],
)
def test_what_is_no_schema_is_named_with_its_place(schema, pointer):
    for check in (check_schema, lambda s: schema_form(s, FormSettings(on_unsupported="validate"))):
        with pytest.raises(InvalidSchema) as caught:
            check(schema)
        assert caught.value.pointer == pointer and "\n" not in str(caught.value)


def test_nothing_but_an_object_or_a_boolean_is_a_schema():
    circle: dict = {}
    circle["items"] = circle
    deep: dict = {}
    for _ in range(MAX_DEPTH + 1):
        deep = {"items": deep}
    deeper: dict = {}
    for _ in range(5000):
        deeper = {"items": deeper}
    for wrong in (
        [],
        "string",
        3,
        None,
        circle,
        deep,
        deeper,
        {"const": float("nan")},
        {"const": {1, 2}},
        {1: object()},
    ):
        with pytest.raises(InvalidSchema):
            Document.of(wrong)


def test_recursion_that_can_end_works(backend):
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}
    assert accepts(tree, '{"next": {"next": {}}}', backend) and not accepts(tree, '{"next": 1}', backend)
    expression = {
        "$ref": "#/$defs/sum",
        "$defs": {"sum": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/$defs/sum"}}]}},
    }
    assert accepts(expression, "[1, [2, []], 3]", backend) and not accepts(expression, "[1, null]", backend)


def test_references_by_anchor_and_identifier(backend):
    schema = {
        "$id": "https://example.com/root.json",
        "properties": {"a": {"$ref": "#here"}, "b": {"$ref": "part.json"}, "c": {"$ref": "/root.json#/$defs/x~1y%25"}},
        "$defs": {
            "one": {"$anchor": "here", "type": "integer"},
            "two": {"$id": "part.json", "$ref": "#/$defs/own", "$defs": {"own": {"type": "null"}}},
            "x/y%": {"type": "boolean"},
        },
        "additionalProperties": False,
        "type": "object",
    }
    assert accepts(schema, '{"a": 1, "b": null, "c": true}', backend)
    for text in ('{"a": null}', '{"b": 1}', '{"c": 1}'):
        assert not accepts(schema, text, backend)


def test_whole_floats_are_counts():
    assert accepts({"type": "string", "minLength": 2.0}, '"ab"') and not accepts(
        {"type": "string", "minLength": 2.0}, '"a"'
    )


def test_a_schema_is_not_changed_and_may_share_its_parts():
    part = {"type": "integer", "minLength": 2.0}
    schema = {"properties": {"a": part, "b": part}, "required": ("a",)}
    before = json.dumps(schema)
    assert accepts(schema, '{"a": 1, "b": 2}') and json.dumps(schema) == before


def test_unknown_backend():
    for name in ("outlines", "xgrammar"):
        with pytest.raises(ValueError, match=f"backend must be one of llguidance, reference, got '{name}'"):
            uniform().generate("a", schema={}, backend=name)
    with pytest.raises(CapabilityError, match="reference"):
        uniform().generate("a", schema={}, backend="reference")


def test_patterns_that_could_hang_a_check_are_refused_in_every_mode():
    slow = {"pattern": "^(?=(a|a)*b)(a|aa)+$"}
    for mode in ("error", "validate"):
        with pytest.raises(UnsupportedSchema, match="very long"):
            schema_form(slow, FormSettings(on_unsupported=mode))
    assert schema_form(slow, FormSettings(on_unsupported="ignore")).warnings
