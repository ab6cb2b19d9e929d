"""The other engine of the comparison: the protocol of constraints, and the same sets as the package's engine."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from other_engine import XGRAMMAR, engine, plain_body
from toy_texts import BYTES, MERGES, Schemas, uniform

from likely.decoding.constraint import ConstraintViolation, count, members
from likely.guided.engines.llguidance import LLGuidance
from likely.guided.json_schema.errors import InvalidSchema, InvalidText, UnsupportedSchema
from likely.guided.json_schema.form import schema_form
from likely.guided.json_schema.formats import FORMATS, has_format
from likely.guided.json_schema.report import LLGUIDANCE, check_schema
from likely.guided.settings import FormSettings
from likely.guided.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[2] / "reproductions"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b", 12]},
        "n": {"type": "integer", "minimum": 0, "maximum": 300},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["kind", "n", "tags"],
    "additionalProperties": False,
}


def test_without_the_package_the_error_names_the_command():
    code = (
        "import sys; sys.modules['xgrammar'] = None\n"
        f"sys.path.append({str(FOLDER)!r})\n"
        "from likely.errors import CapabilityError\n"
        "import xgrammar_constraint\n"
        "try: xgrammar_constraint.byte_engine()\n"
        "except CapabilityError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "xgrammar is not installed. Run: pip install xgrammar\n"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return uniform().guide.vocabulary


def held(vocabulary, schema, backend=XGRAMMAR):
    form = schema_form(schema, FormSettings(close_on_budget=False), backend)
    make = engine if backend is XGRAMMAR else LLGuidance
    return make(vocabulary).compile_schema(form.source, form.settings)


def test_its_masks_are_those_of_llguidance(vocabulary):
    """Along random texts of a schema that both hold exactly, token for token."""
    pytest.importorskip("llguidance")
    rng = random.Random(0)
    for _ in range(30):
        mine, other = held(vocabulary, SCHEMA), held(vocabulary, SCHEMA, LLGUIDANCE)
        while not mine.finished:
            allowed = members(mine.allowed()).tolist()
            assert allowed == members(other.allowed()).tolist()
            assert mine.accepting == other.accepting
            token = rng.choice(allowed)
            mine.advance(token)
            other.advance(token)


def test_rollback_and_fork(vocabulary):
    rng = random.Random(1)
    for _ in range(20):
        state, masks, taken = held(vocabulary, SCHEMA), [], []
        while not state.ended:
            masks.append(state.allowed().copy())
            token = rng.choice(members(masks[-1]).tolist())
            state.advance(token)
            taken.append(token)
        twin = state.fork()
        back = rng.randint(1, len(taken))
        state.rollback(back)
        assert (state.allowed() == masks[len(taken) - back]).all()
        for token in taken[len(taken) - back :]:
            state.advance(token)
        assert state.ended and twin.ended and count(twin.allowed()) == 0


def test_a_wrong_token_is_refused_and_changes_nothing(vocabulary):
    state = held(vocabulary, SCHEMA)
    before = state.allowed().copy()
    for token in (ord("x"), vocabulary.eos_id):
        with pytest.raises(ConstraintViolation):
            state.advance(token)
        assert not state.permits(token)
    assert (state.allowed() == before).all()


def test_forced_tokens_do_follow(vocabulary):
    rng, met = random.Random(2), 0
    for _ in range(10):
        state = held(vocabulary, SCHEMA)
        while not state.ended:
            for token in (ahead := state.fork()).forced():
                if token not in vocabulary.end_ids:
                    met += 1
                ahead.advance(token)
            state.advance(rng.choice(members(state.allowed()).tolist()))
    assert met > 20


def test_padded_rows_and_control_tokens_are_never_allowed():
    tokenizer = PieceTokenizer([*BYTES, *MERGES], control=["<end>", "<other>"])
    vocabulary = Vocabulary.of(tokenizer, tokenizer.vocab_size + 77)
    state = held(vocabulary, {"type": "string"})
    state.advance(ord('"'))
    assert all(vocabulary.tokens[token] for token in members(state.allowed()))


def test_generated_values_follow_the_schema(vocabulary):
    results = uniform().generate("a", constraint=held(vocabulary, SCHEMA), n=20, max_tokens=300)
    form = schema_form(SCHEMA, FormSettings(), XGRAMMAR)
    whole = [r.text for r in results if r.complete]
    assert whole and all(set(form.read(text)) >= {"kind", "n", "tags"} for text in whole)
    assert np.isfinite([r.log_weight for r in results]).all()


def checker():
    formats = jsonschema.FormatChecker(formats=())
    for name in FORMATS:
        formats.checks(name)(lambda v, name=name: not isinstance(v, str) or has_format(name, v))
    return formats


@pytest.mark.parametrize("mode", ["error", "validate"])
def test_random_schemas(mode, vocabulary):
    """What the preflight lets through is held; with "validate" the check of the finished text finds the rest."""
    lm, made, seen, seed = uniform(), engine(vocabulary), Counter(), 0
    bounds = FormSettings(on_unsupported=mode, max_string=10, max_items=3, max_number_digits=5)
    while seen["schemas"] < 60:
        seed += 1
        schema = Schemas(seed, mode == "validate").draw()
        try:
            form = schema_form(schema, bounds, XGRAMMAR)
        except UnsupportedSchema:
            seen["unsupported"] += 1
            continue
        except InvalidSchema:  # some contradict themselves
            continue
        seen["schemas"] += 1
        constraint = made.compile_schema(form.source, form.settings)
        for result in lm.generate("a", constraint=constraint, n=5, seed=seed, max_tokens=300):
            if not result.complete:
                continue
            try:
                value = form.read(result.text)
            except InvalidText:
                assert mode == "validate"
                continue
            seen["whole"] += 1
            jsonschema.Draft202012Validator(schema, format_checker=checker()).validate(value)
    assert seen["whole"] > 180 and (seen["unsupported"] > 0) == (mode == "error")


@pytest.mark.parametrize(
    "schema",
    [
        {"minimum": 1, "type": "integer", "multipleOf": 2},
        {"type": "string", "pattern": "a"},
        {"type": "string", "pattern": "^a$", "maxLength": 3},
        {"type": "string", "format": "email"},
        {"anyOf": [{"type": "integer"}], "minimum": 3},
        {"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {"type": "integer"}}},
        {"allOf": [{"minimum": 1}, {"maximum": 3}]},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"patternProperties": {"^a$": {"type": "integer"}}},
        {"properties": {"a": {}}, "minProperties": 1},
        {"properties": {'a"b': {"type": "integer"}}},
    ],
)
def test_what_xgrammar_does_not_hold_is_refused_there(schema):
    assert check_schema(schema, XGRAMMAR).refused
    assert schema_form(schema, FormSettings(on_unsupported="validate"), XGRAMMAR)


def test_plain_patterns():
    assert plain_body("^a[b-d]+$") == "a[b-d]+"
    for other in ("a", "^a", "^a*?$", '^"$', "^[^a]$", "^.$", "^é$", "^\\\\$", "^[ -~]$", "^a$|^b$"):
        assert plain_body(other) is None, other
