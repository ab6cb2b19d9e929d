"""Schemas through generate: every value follows its schema, or there is one clear error."""

from __future__ import annotations

import datetime
import json
import uuid
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel, Field, field_validator, model_validator
from toy_texts import opinionated, uniform
from typing_extensions import TypedDict

from likely.guided.json_schema.errors import InvalidSchema, InvalidText, SchemaUnsatisfied, UnsupportedSchema
from likely.guided.json_schema.form import schema_form
from likely.guided.settings import FormSettings
from likely.lm.outcomes import DRAWS_APART

pytest.importorskip("llguidance")
DIFFERENT = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
BOUNDS = {"max_string": 6, "max_items": 2, "max_number_digits": 3, "max_tokens": 200, "close_on_budget": False}


def test_error_names_the_keyword_and_its_place():
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(UnsupportedSchema) as caught:
        uniform().generate("a", schema=schema)
    assert str(caught.value) == (
        'Schema not supported: "uniqueItems" at /properties/tags. Remove it or use on_unsupported="validate".'
    )
    assert (caught.value.pointer, caught.value.keyword) == ("/properties/tags", "uniqueItems")


@pytest.mark.parametrize(
    "beyond",
    [
        {"not": {"const": 1}},
        {"if": {"minimum": 2}, "then": {"multipleOf": 2}, "else": {"const": 1}},
        {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True},
        {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "contains": {"const": 2}},
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "additionalProperties": False,
         "dependentSchemas": {"a": {"required": ["b"]}}},
        {"type": "object", "allOf": [{"properties": {"a": {"type": "null"}}}], "unevaluatedProperties": False},
        {"type": "object", "additionalProperties": {"type": "null"}, "propertyNames": {"maxLength": 8},
         "maxProperties": 2},
    ],
)  # fmt: skip
def test_what_no_engine_enforces_holds_with_validate(beyond):
    base = {"enum": [0, 1, 2, 3, 4]} if "type" not in beyond else {}
    schema = {"allOf": [base], **beyond} if base else beyond
    with pytest.raises(UnsupportedSchema):
        uniform().generate("a", schema=schema)
    results = uniform().generate("a", schema=schema, on_unsupported="validate", n=20, retries=40, seed=5, **BOUNDS)
    whole = [r for r in results if r.complete]
    assert len(whole) >= 10
    for result in whole:
        jsonschema.validate(result.value, schema, cls=jsonschema.Draft202012Validator)
    assert any(r.warnings for r in results) or beyond.get("unevaluatedProperties") is False


@pytest.mark.slow
def test_redraws_follow_the_law_conditioned_on_validity():
    """Uniform tokens, six valid pairs among nine: each valid one is as likely (χ², 5 degrees of freedom, 1e-6)."""
    drawn = uniform().generate("a", schema=DIFFERENT, on_unsupported="validate", n=480, retries=30, max_tokens=20)
    counts = np.unique([r.text for r in drawn], return_counts=True)
    assert set(counts[0]) == {f"[{a}, {b}]" for a in (1, 2, 3) for b in (1, 2, 3) if a != b}
    # spelled by tokens: "12" is no token of a pair here, each pair is five tokens of the same law
    expected = np.full(6, len(drawn) / 6)
    assert ((counts[1] - expected) ** 2 / expected).sum() < 37.3
    redrawn = [r for r in drawn if r.warnings]
    assert 0.2 < len(redrawn) / len(drawn) < 0.5  # a third of the first draws repeat an item


def test_results_depend_on_prompt_settings_and_seed_alone():
    lm = opinionated(3)
    options = {"schema": DIFFERENT, "on_unsupported": "validate", "retries": 30, "seed": 7, "max_tokens": 20}
    together = lm.generate(["a", "b", "ab"], n=4, **options)
    alone = [lm.generate(p, n=4, **options) for p in ("a", "b", "ab")]
    texts = [[(r.text, r.sample, r.warnings, r.token_logprobs) for r in group] for group in together]
    assert texts == [[(r.text, r.sample, r.warnings, r.token_logprobs) for r in group] for group in alone]
    assert [r.sample for group in together for r in group] == [0, 1, 2, 3] * 3
    assert any(r.warnings for group in together for r in group)


def test_a_redraw_has_noise_of_its_own():
    """Draw k of sample i is the plain sample i + k·DRAWS_APART of the schema without what is validated."""
    lm, loose = uniform(), {k: v for k, v in DIFFERENT.items() if k != "uniqueItems"}
    drawn = lm.generate("a", schema=DIFFERENT, on_unsupported="validate", n=8, retries=30, max_tokens=20, seed=1)

    for result in drawn:
        attempt = int(result.warnings[0].split()[1].rstrip(":")) - 1 if result.warnings else 0
        request = lm.request(lm.encode_prompt("a"), {"schema": loose, "max_tokens": 20, "seed": 1})
        for k in range(attempt + 1):
            [[plain]] = lm.run([replace(request, first_sample=result.sample + k * DRAWS_APART)])
            assert (plain.text == result.text) or k < attempt
            assert (len(set(plain.value)) == 2) == (k == attempt)


def test_greedy_is_drawn_again_by_sampling_and_says_so():
    lm = opinionated(4)
    for seed in range(40):
        lm = opinionated(seed)
        first = lm.generate("a", schema={**DIFFERENT, "uniqueItems": False}, temperature=0, max_tokens=20)
        if len(set(first.value)) == 1:
            break
    result = lm.generate("a", schema=DIFFERENT, on_unsupported="validate", temperature=0, retries=50, max_tokens=20)
    assert len(set(result.value)) == 2 and "at temperature 1" in result.warnings[0]
    beams = lm.generate(
        "a", schema=DIFFERENT, on_unsupported="validate", temperature=0, beams=2, retries=50, max_tokens=20
    )
    assert len(set(beams.value)) == 2


def test_what_nothing_drawn_satisfies_is_one_error_with_the_last_text():
    schema = {"enum": [1, 2, 3], "title": "x"}
    never = {"allOf": [schema, {"not": {"type": "integer"}}]}
    with pytest.raises(SchemaUnsatisfied) as caught:
        uniform().generate("a", schema=never, on_unsupported="validate", retries=2)
    assert caught.value.draws == 3 and caught.value.text in "123" and caught.value.errors
    assert "\n" not in str(caught.value)


def test_ignore_warns_and_keeps_the_rest():
    results = uniform().generate("a", schema=DIFFERENT, on_unsupported="ignore", n=30, max_tokens=20)
    assert all(r.warnings == ('not enforced: "uniqueItems" at the top',) for r in results)
    assert {len(set(r.value)) for r in results} == {1, 2}
    assert all(len(r.value) == 2 for r in results)


def test_a_stream_raises_at_its_end():
    lm, seen = uniform(), 0
    for seed in range(30):
        stream = lm.stream("a", schema=DIFFERENT, on_unsupported="validate", seed=seed, max_tokens=20)
        try:
            text = "".join(stream)
            assert len(set(json.loads(text))) == 2
        except SchemaUnsatisfied as error:
            assert len(set(json.loads(error.text))) == 1
            seen += 1
    assert 2 < seen < 25


def test_a_cut_text_has_no_value_and_is_not_drawn_again():
    result = uniform().generate("a", schema={"type": "string", "minLength": 50}, max_tokens=5, close_on_budget=False)
    assert (result.complete, result.value, result.finish_reason) == (False, None, "length")


# --- types ------------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int = Field(ge=0, le=9)
    y: Annotated[int, Field(ge=0, le=9)]
    colour: Colour = Colour.RED


@dataclass
class Pair:
    left: Literal["a", "b"]
    right: bool


class Entry(TypedDict):
    key: Literal[1, 2]
    flags: list[bool]


class Ordered(BaseModel):
    start: int = Field(ge=0, le=3)
    end: int = Field(ge=0, le=3)

    @model_validator(mode="after")
    def _in_order(self):
        if self.end < self.start:
            raise ValueError("end before start")
        return self


class Even(BaseModel):
    n: int = Field(ge=0, le=3)

    @field_validator("n")
    @classmethod
    def _fail(cls, value):
        return 1 // (value % 2)  # ZeroDivisionError for even numbers


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Literal[7, 9]


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Pet(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")


class Tree(BaseModel):
    value: bool
    children: list[Tree] = Field(max_length=1)


@pytest.mark.parametrize(
    "kind, check",
    [
        (Point, lambda v: isinstance(v, Point)),
        (Pair, lambda v: isinstance(v, Pair)),
        (Entry, lambda v: v["key"] in (1, 2)),
        (Colour, lambda v: isinstance(v, Colour)),
        (Literal["x", 3], lambda v: v in ("x", 3)),
        (list[Pair], lambda v: all(isinstance(each, Pair) for each in v)),
        (dict[str, bool], lambda v: all(isinstance(each, bool) for each in v.values())),
        (bool | None, lambda v: v in (True, False, None)),
        (tuple[int, bool], lambda v: isinstance(v, tuple) and len(v) == 2),
        (Tree, lambda v: isinstance(v, Tree)),
        (Pet, lambda v: isinstance(v.pet, (Cat, Dog))),
        (Path, lambda v: isinstance(v, Path)),
        (Decimal, lambda v: isinstance(v, Decimal)),
        (datetime.date | uuid.UUID, lambda v: isinstance(v, (datetime.date, uuid.UUID))),
        (Ordered, lambda v: v.start <= v.end),
        (Even, lambda v: v.n % 2 == 1),
    ],
)
def test_types_give_their_objects(kind, check):
    results = uniform().generate("a", schema=kind, n=12, retries=30, seed=2, **BOUNDS)
    whole = [r for r in results if r.complete]
    assert whole and all(check(r.value) for r in whole)


def test_a_type_that_rejects_everything_is_one_error():
    class Never(BaseModel):
        n: Literal[1]

        @field_validator("n")
        @classmethod
        def _no(cls, value):
            raise ValueError("never good enough")

    with pytest.raises(SchemaUnsatisfied, match="never good enough"):
        uniform().generate("a", schema=Never, retries=1)


def test_what_is_no_type_is_one_error():
    for wrong in (5, "string", [1], object()):
        with pytest.raises(InvalidSchema):
            schema_form(wrong, FormSettings())


# --- how it is written ------------------------------------------------------------------------------------------------


def test_properties_come_in_the_order_of_the_schema():
    both = {"a": {"type": "null"}, "b": {"type": "null"}}
    for names in (["a", "b"], ["b", "a"]):
        schema = {
            "type": "object", "properties": {n: both[n] for n in names}, "required": ["a", "b"],
            "additionalProperties": False,
        }  # fmt: skip
        texts = {r.text for r in uniform().generate("a", schema=schema, n=5)}
        assert texts == {"{" + ", ".join(f'"{n}": null' for n in names) + "}"}


LIST = {"type": "array", "items": {"const": 1}, "minItems": 3, "maxItems": 3}


def test_whitespace():
    options = {"schema": LIST, "n": 30, "max_tokens": 200}
    assert {r.text for r in uniform().generate("a", whitespace="compact", **options)} == {"[1,1,1]"}
    assert {r.text for r in uniform().generate("a", whitespace="single", **options)} == {"[1, 1, 1]"}
    loose = [r.text for r in uniform().generate("a", whitespace="any", **options)]
    runs = [len(run) for text in loose for run in "".join(c if c in " \n\r\t" else "|" for c in text).split("|")]
    assert max(runs) > 1 and max(runs) <= 8 and min(runs) == 0
    assert all(json.loads(text) == [1, 1, 1] for text in loose)


@pytest.mark.slow
def test_bounds_hold_where_the_schema_has_none():
    schema = {
        "type": "object",
        "properties": {
            "free": {"type": "string"},
            "own": {"type": "string", "minLength": 9, "maxLength": 9},
            "list": {"$ref": "#/$defs/list"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "array"}]},
            "any": {},
        },
        "required": ["free", "own", "list", "either", "any"],
        "additionalProperties": False,
        "$defs": {"list": {"type": "array", "items": {"type": "number"}}},
    }

    def depth_first(value):
        yield value
        if isinstance(value, (list, dict)):
            for child in value.values() if isinstance(value, dict) else value:
                yield from depth_first(child)

    results = uniform().generate(
        "a", schema=schema, n=40, max_string=4, max_items=2, max_number_digits=2, max_tokens=900
    )
    whole = [r.value for r in results if r.complete]
    assert len(whole) > 20
    for value in whole:
        assert len(value.pop("own")) == 9
        for part in depth_first(value):
            if isinstance(part, str):
                assert len(part) <= 4
            elif isinstance(part, list):
                assert len(part) <= 2
            elif isinstance(part, (int, float)) and not isinstance(part, bool):
                assert abs(part) <= 99 and round(part, 2) == part


def test_bounds_that_leave_nothing_are_one_error():
    with pytest.raises(Exception, match="within the bounds"):
        schema_form({"type": "integer", "minimum": 50, "maximum": 60, "allOf": [{"type": "integer"}]},
                    FormSettings(max_number_digits=1))  # fmt: skip


def test_control_characters_can_be_written_where_the_schema_wants_them():
    for schema, value in (({"const": "a\x01\x7f"}, "a\x01\x7f"), ({"type": "string", "pattern": "^\\u0001$"}, "\x01")):
        assert uniform().generate("a", schema=schema, max_tokens=60).value == value
    names = {
        "type": "object",
        "properties": {"\x02": {"const": 1}},
        "required": ["\x02"],
        "additionalProperties": False,
    }
    assert uniform().generate("a", schema=names, max_tokens=60).value == {"\x02": 1}


def test_a_key_has_one_spelling():
    """A further key may not be a named one in other words, whose value nobody would hold."""
    open_object = {"type": "object", "properties": {"a": {"type": "null"}}}
    form = schema_form(open_object, FormSettings(extra_properties=True))
    constraint = uniform().guide.constraint(form)
    for byte in b'{"':
        constraint.advance(byte)
    assert constraint.permits(ord("\\"))
    constraint.advance(ord("\\"))
    assert not constraint.permits(ord("u")) and constraint.permits(ord("n"))


def test_a_pattern_a_format_and_more_hold_together():
    schema = {
        "type": "string", "pattern": "^2", "format": "date", "allOf": [{"pattern": "9$"}, {"pattern": "0"}],
    }  # fmt: skip
    for result in uniform().generate("a", schema=schema, n=10, max_tokens=30):
        assert result.value[0] == "2" and result.value[-1] == "9" and datetime.date.fromisoformat(result.value)


def test_values_under_unusual_names_are_tried_too():
    schema = {"type": "object", "required": ["50% \"off\"/~é"], "additionalProperties": False,
              "properties": {"50% \"off\"/~é": {"enum": [1, 2, 3], "not": {"enum": [1, 3]}}}}  # fmt: skip
    assert uniform().generate("a", schema=schema, max_tokens=80).value == {'50% "off"/~é': 2}


def test_what_is_ignored_is_left_out_of_the_check_too():
    schema = {
        "type": "array",
        "items": {"type": "string", "pattern": "^\\S\\W$"},
        "minItems": 1,
        "maxItems": 1,
        "contains": {"const": 1},
    }
    result = uniform().generate("a", schema=schema, on_unsupported="ignore", max_tokens=60)
    assert result.complete and len(result.value[0]) == 2 and "contains" in result.warnings[0]


def test_read_refuses_what_is_no_json():
    form = schema_form({}, FormSettings())
    for text in ("NaN", "1e999", "-1e999", "[", "9" * 5000, "[" * 100_000):
        with pytest.raises(InvalidText):
            form.read(text)
