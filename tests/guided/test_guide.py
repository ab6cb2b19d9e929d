"""Forms become constraints: kept, bounded, one per language and order."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_type_hints

import pytest
from toy_texts import uniform

from likely.decoding.constraint import members
from likely.errors import ConstraintError
from likely.guided.form import make_form
from likely.guided.guide import KEPT, Guide
from likely.guided.settings import FORM_OPTIONS, FormOptions, FormSettings

pytest.importorskip("llguidance")


def fresh() -> Guide:
    return Guide(uniform().guide.vocabulary)


def plain(**form):
    return make_form(**form, settings=FormSettings(close_on_budget=False))


def test_a_form_is_compiled_once_and_its_constraints_are_independent():
    guide, form = fresh(), plain(choices=["ab", "ac"])
    first, second = guide.constraint(form), guide.constraint(form)
    first.advance(ord("a"))
    assert first.permits(ord("b")) and not second.permits(ord("b")) and second.permits(ord("a"))
    assert len(guide._compiled) == 1


def test_the_number_of_kept_forms_is_bounded():
    guide = fresh()
    for i in range(KEPT + 20):
        guide.constraint(plain(choices=[f"c{i}"]))
    assert len(guide._compiled) == KEPT


def test_the_order_of_properties_is_part_of_a_form():
    one = {"type": "object", "properties": {"a": {}, "b": {}}}
    other = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert plain(schema=one).key != plain(schema=other).key
    assert plain(schema=one).key == plain(schema=json.loads(json.dumps(one))).key


@pytest.mark.parametrize(
    "form, texts, others",
    [
        ({"regex": "[ab]{2}/"}, ["ab/"], ["a/", "ab"]),
        ({"regex": "a|bc"}, ["a", "bc"], ["ac", "b"]),
        ({"choices": ["a", "ab", 'q"\\']}, ["a", "ab", 'q"\\'], ["b", 'q"']),
        ({"grammar": 'start: "x" | "(" start ")"'}, ["x", "((x))"], ["(x", "xx"]),
        (
            {"schema": {"type": "array", "items": {"type": "null"}, "maxItems": 1}},
            ["[]", "[null]"],
            ["[null,null]", "{}"],
        ),
    ],
)
def test_languages(form, texts, others):
    for text, member in [*((t, True) for t in texts), *((t, False) for t in others)]:
        constraint = fresh().constraint(plain(**form))
        taken = True
        for byte in text.encode():
            taken = taken and constraint.permits(byte)
            if taken:
                constraint.advance(byte)
        assert (taken and constraint.accepting) == member, text


def test_control_tokens_and_gaps_are_never_text():
    constraint = fresh().constraint(plain(schema={"type": "string"}))
    constraint.advance(ord('"'))
    vocabulary = constraint.vocabulary
    allowed = set(members(constraint.allowed()).tolist())
    assert all(vocabulary.tokens[token] for token in allowed) and not allowed & vocabulary.end_ids


def test_errors_are_one_line():
    for form in ({"regex": "(a"}, {"grammar": "start: missing"}, {"regex": "(?=a)b"}):
        with pytest.raises(ConstraintError) as caught:
            fresh().constraint(plain(**form))
        assert "\n" not in str(caught.value)


def test_the_options_of_a_form_are_its_kinds_and_its_settings():
    assert set(get_type_hints(FormOptions)) == {*FORM_OPTIONS, *(f.name for f in fields(FormSettings))}
