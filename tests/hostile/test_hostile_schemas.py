"""Schemas made to hang, to fill memory or to reach out: refused in one line, or held, after bounded work."""

from __future__ import annotations

import os
import resource
import socket
from functools import lru_cache

import pytest
from toy_texts import uniform

from likely.errors import ConstraintError, LikelyError
from likely.guided import guide
from likely.guided.form import make_form
from likely.guided.json_schema import form as schema_module
from likely.guided.json_schema.document import MAX_BYTES, MAX_SUBSCHEMAS
from likely.guided.json_schema.errors import InvalidSchema, InvalidText, UnsupportedSchema
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.report import compile_bytes
from likely.guided.settings import FormSettings

pytest.importorskip("llguidance")
SECONDS = 20  # of processor time that one schema may take here; what is refused takes far less


@pytest.fixture(autouse=True)
def bounded():
    """Processor time, not wall time: other work on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    yield
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS


def compiled(schema, **settings):
    form = schema_form(schema, FormSettings(**settings))
    return compile_bytes(form.source, form.settings)


def test_patterns_that_make_others_backtrack():
    for pattern in ("^(a|a)*b$", "^(a+)+b$", "^([a-z]+)*x$", "(.*a){5}"):
        results = uniform().generate(
            "a", schema={"type": "string", "pattern": pattern}, n=3, max_tokens=60, close_on_budget=False
        )
        assert all(r.complete or r.value is None for r in results)
    read = schema_form({"type": "string", "pattern": "^(a|a)*b$"}, FormSettings()).read
    assert read('"' + "a" * 5000 + 'b"')
    with pytest.raises(InvalidText):
        read('"' + "a" * 5000 + '"')


@pytest.mark.parametrize(
    "pattern", ["^(a{100}){100}$", "^((a{99}){99}){99}$", "^(a{1000}|b{1000})*$", "(a*)*\\1" + "x" * 9]
)
def test_patterns_that_are_too_large_are_one_line(pattern):
    with pytest.raises(UnsupportedSchema) as caught:
        schema_form({"type": "string", "pattern": pattern}, FormSettings(on_unsupported="validate"))
    assert "\n" not in str(caught.value)


def test_automata_that_double_do_not_fill_memory():
    results = uniform().generate("a", regex="[ab]*a[ab]{30}c", n=2, max_tokens=400, close_on_budget=False)
    assert all(set(r.text) <= set("abc") for r in results)


@pytest.mark.slow
def test_long_lists_of_values():
    """Ten thousand compile; a hundred thousand are refused, with the number that is taken."""
    names = [f"value {i}" for i in range(100_000)]
    assert compiled({"enum": names[:10_000]})
    with pytest.raises(UnsupportedSchema, match="100,000 entries, at most 20,000"):
        schema_form({"enum": names}, FormSettings())
    form = schema_form({"enum": names}, FormSettings(on_unsupported="validate"))
    assert form.source == {"type": ["string"]} and form.read('"value 7"') == "value 7"
    with pytest.raises(InvalidText):
        form.read('"value"')


def test_size_is_refused_before_any_work():
    for schema, says in [
        ({"description": "x" * MAX_BYTES}, "characters"),
        ({"properties": {f"p{i}": {} for i in range(MAX_SUBSCHEMAS)}}, "subschemas"),
        ({"properties": {f"p{i}": {} for i in range(2001)}}, "2,001 entries"),
        ({"anyOf": [{"const": i} for i in range(1001)]}, "1,001 entries"),
    ]:
        with pytest.raises(ConstraintError, match=says):
            schema_form(schema, FormSettings())


def nested(levels: int):
    schema: dict = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return schema


def test_depth():
    assert compiled(nested(30))
    for levels in (40, 300, 3000):
        with pytest.raises(InvalidSchema, match="nested"):
            schema_form(nested(levels), FormSettings())


def doubling(keyword: str, levels: int = 24):
    """Each definition names the one before it twice: 2**levels by the time it is written out."""
    defs: dict = {"d0": {"type": "integer"}}
    for i in range(1, levels + 1):
        twice = [{"$ref": f"#/$defs/d{i - 1}"}, {"$ref": f"#/$defs/d{i - 1}"}]
        defs[f"d{i}"] = (
            {"prefixItems": twice, "type": "array", "minItems": 2} if keyword == "prefixItems" else {keyword: twice}
        )
    return {"$ref": f"#/$defs/d{levels}", "$defs": defs}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "prefixItems"])
def test_references_that_double(keyword):
    schema = doubling(keyword)
    try:
        form = schema_form(schema, FormSettings(on_unsupported="validate"))
    except LikelyError as error:
        assert "\n" not in str(error)
        return
    if keyword == "prefixItems":  # a text of 2**24 numbers: cut, not hung
        assert not uniform().generate("a", schema=schema, max_tokens=30, close_on_budget=False).complete
        return
    try:
        assert form.read("1") == 1
    except InvalidText as error:
        assert "$ref" in str(error)


def test_contradictions_that_double():
    wide = {"allOf": [{"anyOf": [{"required": [f"k{i}{j}"]} for j in range(8)]} for i in range(8)]}
    with pytest.raises(ConstraintError) as caught:
        schema_form({"type": "object", **wide}, FormSettings())
    assert "\n" not in str(caught.value)


def test_recursion_without_end():
    for schema in (
        {"$ref": "#"},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {"not": {"$ref": "#"}},
        {"if": {"$ref": "#"}},
        {"dependentSchemas": {"a": {"$ref": "#"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    ):
        with pytest.raises(InvalidSchema):
            schema_form(schema, FormSettings(on_unsupported="validate"))


def test_nothing_is_ever_fetched(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for schema in (
        {"$ref": "http://127.0.0.1:9/a.json"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$id": "http://127.0.0.1:9/root", "$ref": "other"},
        {"not": {"$ref": "ftp://127.0.0.1/x"}},
        {"items": {"$dynamicRef": "http://127.0.0.1:9/x#y"}},
    ):
        with pytest.raises(InvalidSchema, match="nothing is fetched"):
            schema_form(schema, FormSettings(on_unsupported="validate"))
    assert schema_form({"$schema": "http://127.0.0.1:9/meta", "type": "null"}, FormSettings()).read("null") is None


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def distinct(i: int):
    return {
        "type": "object",
        "properties": {
            f"field_{i}": {"type": "string", "maxLength": 5 + i % 50},
            "n": {"minimum": i, "type": "integer"},
        },
        "required": [f"field_{i}"],
    }


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's table of memory")
def test_many_schemas_leave_bounded_memory(monkeypatch):
    """Once the kept forms are full, further schemas leave nothing behind."""
    lm, kept = uniform(), 32
    monkeypatch.setattr(guide, "KEPT", kept)
    forms = lru_cache(maxsize=kept)(schema_module._form_of_text.__wrapped__)
    monkeypatch.setattr(schema_module, "_form_of_text", forms)

    def use(numbers):
        for i in numbers:
            lm.guide.constraint(make_form(schema=distinct(i), settings=FormSettings(close_on_budget=False))).allowed(10)

    use(range(3 * kept))
    before = resident_bytes()
    use(range(3 * kept, 15 * kept))
    assert len(lm.guide._compiled) <= kept and forms.cache_info().currsize == kept
    assert resident_bytes() - before < 20e6  # of 384 schemas
