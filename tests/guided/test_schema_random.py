"""Random schemas and a model that prefers nothing: every finished text follows its schema."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema
import pytest
from toy_texts import Schemas, uniform

from likely.guided.json_schema.errors import InvalidSchema, SchemaUnsatisfied, UnsupportedSchema
from likely.guided.json_schema.formats import FORMATS, has_format

BOUNDS = {"max_string": 10, "max_items": 3, "max_number_digits": 5, "max_tokens": 300, "close_on_budget": False}


def checker():
    formats = jsonschema.FormatChecker(formats=())
    for name in FORMATS:
        formats.checks(name)(lambda v, name=name: not isinstance(v, str) or has_format(name, v))
    return formats


def study(count: int, *, rich: bool, **options) -> Counter:
    """`count` schemas that are taken, five texts each."""
    lm, seen, seed, formats = uniform(), Counter(), 0, checker()
    while seen["schemas"] < count:
        seed += 1
        schema = Schemas(seed, rich).draw()
        try:
            results = lm.generate("a", schema=schema, n=5, seed=seed, **BOUNDS, **options)
        except UnsupportedSchema:
            seen["unsupported"] += 1
            continue
        except InvalidSchema:  # some contradict themselves
            seen["contradictory"] += 1
            continue
        except SchemaUnsatisfied:
            assert rich, schema
            results = []
            seen["unsatisfied"] += 1
        seen["schemas"] += 1
        for result in results:
            seen["whole" if result.complete else "cut"] += 1
            if result.complete:
                value = json.loads(result.text)
                # stock jsonschema, and not the validator that the library uses
                jsonschema.Draft202012Validator(schema, format_checker=formats).validate(value)
                assert value == result.value
            else:
                assert result.value is None
    return seen


@pytest.mark.slow
def test_two_hundred_schemas_that_are_enforced():
    pytest.importorskip("llguidance")
    seen = study(200, rich=False)
    assert seen["whole"] > 900 and seen["unsupported"] < 5 and seen["contradictory"] < 20


@pytest.mark.slow
def test_schemas_beyond_the_engine_with_validate():
    pytest.importorskip("llguidance")
    seen = study(100, rich=True, on_unsupported="validate", retries=6)
    assert seen["whole"] > 400 and seen["unsupported"] == 0 and seen["unsatisfied"] < 15


@pytest.mark.slow
def test_without_the_check_the_same_schemas_do_go_wrong():
    """The negative control: what is only ignored is broken by some texts."""
    pytest.importorskip("llguidance")
    lm, broken = uniform(), 0
    for seed in range(40):
        schema = Schemas(seed, rich=True).draw()
        try:
            results = lm.generate("a", schema=schema, n=5, seed=seed, on_unsupported="ignore", **BOUNDS)
        except (InvalidSchema, SchemaUnsatisfied):
            continue
        validator = jsonschema.Draft202012Validator(schema)
        broken += sum(r.complete and not validator.is_valid(json.loads(r.text)) for r in results)
    assert broken > 5
