"""Fields of a structured text: every token counted once, forced and free told apart, values at their places."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.guided.fields import forced_tokens, owners
from likely.guided.form import make_form
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime

BYTES = [bytes([b]) for b in range(256)]
# merges that cross the borders of values, halves of characters among them
MERGES = [
    b'":"', b'":', b'","', b'",', b'"},{"', b'"}', b'{"', b'["', b'"]', b'"]}', b"},", b"1,", b",1", b"1}", b"true}",
    b"\xc3\xa9", b"\xa9", b'\xa9"', b'"\xc3', b"\\u00", b'\\"', b'\\\\"', b"null,", b'[{"', b"12", b'":[',
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "kind": {"const": "person"},
        "n": {"type": "integer", "minimum": -99, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["x", "yé", 12, None]}, "maxItems": 3},
        "in": {"type": "object", "properties": {"a/b": {"type": "boolean"}}, "additionalProperties": False},
    },
    "required": ["name", "kind", "n", "tags"],
    "additionalProperties": False,
}


@cache
def model(merged: bool = True, seed: int = 1) -> Model:
    tokenizer = PieceTokenizer([*BYTES, *(MERGES if merged else [])], control=["<end>"])
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=seed, order=3, context_length=512)
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float64", "0", "pieces", template=False))


def total(result) -> float:
    shares = [*result.fields, result.structure]
    return sum(share.logprob + share.forced_logprob for share in shares)


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("whitespace", ["compact", "any"])
def test_the_shares_of_all_fields_and_the_structure_are_the_whole(merged, whitespace):
    lm, straddled = model(merged), 0
    for seed in range(40):
        result = lm.generate("a", schema=SCHEMA, whitespace=whitespace, max_tokens=400, seed=seed, temperature=0.7)
        if not result.complete:
            assert result.fields is None and result.structure is None and result.value is None
            continue
        assert total(result) == pytest.approx(result.sequence_logprob, abs=1e-9)
        assert sum(f.n_tokens for f in [*result.fields, result.structure]) == len(result.token_ids)
        raw = result.text.encode()
        for field in result.fields:
            value = result.value
            for piece in field.pointer.split("/")[1:]:
                piece = piece.replace("~1", "/").replace("~0", "~")
                value = value[int(piece)] if isinstance(value, list) else value[piece]
            assert value == field.value == json.loads(raw[field.start : field.end]) == json.loads(field.text)
            assert field.guided_logprob <= 1e-9 and field.logprob <= field.guided_logprob + 1e-9
            assert (field.min_probability is None) == (field.n_free_tokens == 0)
            straddled += field.straddles
        assert {"/name", "/kind", "/n"} <= {f.pointer for f in result.fields}
        kind = next(f for f in result.fields if f.pointer == "/kind")
        # what the schema writes by itself is no choice of the model's (where whitespace may come first, the quote is)
        if not kind.straddles and whitespace == "compact":
            assert kind.n_free_tokens == 0 and kind.logprob == 0.0 and kind.n_tokens > 0
    assert bool(straddled) == merged


def test_a_field_of_two_values_has_the_models_law_between_them():
    """Bytes as tokens: one free token, and its probability among the two is the closed form."""
    lm = model(merged=False)
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    result = lm.generate("b", schema=schema, temperature=0, max_tokens=40)
    (field,) = result.fields
    place = result.text.encode().index(field.value.encode())
    prompt = lm.encode_prompt("b")
    law = log_softmax(lm.runtime._logits_of((*prompt, *result.token_ids[:place])))
    both = np.logaddexp(law[ord("x")], law[ord("y")])
    assert field.n_free_tokens == 1 and field.n_tokens == 3 and not field.straddles
    assert field.logprob == pytest.approx(law[ord(field.value)], abs=1e-5)
    assert field.guided_logprob == pytest.approx(law[ord(field.value)] - both, abs=1e-5)
    assert field.min_probability == pytest.approx(math.exp(law[ord(field.value)]), abs=1e-6)
    assert field.guided_logprob == pytest.approx(result.guided_logprob, abs=1e-5)  # nothing else could be chosen


@pytest.mark.parametrize("value", [1, 12])
def test_the_byte_that_ends_a_number_is_the_numbers(value):
    """P(1) is not P(1...): what ends it tells 1 from 12; at the end of the text that is the end token."""
    lm = model(merged=False)
    for schema, pointer in (
        ({"enum": [1, 12]}, ""),
        ({"type": "array", "items": {"enum": [1, 12]}, "minItems": 1}, "/0"),
    ):
        results = [lm.generate("c", schema=schema, seed=s, max_tokens=60, temperature=1.5) for s in range(60)]
        found = next(f for r in results if r.complete for f in r.fields if (f.pointer, f.value) == (pointer, value))
        # [1 is free only after it: "," or "]" or "2";  12 is free there, and before what ends it in the array
        assert found.n_tokens == len(str(value)) + 1 and not found.straddles
        ends_free = pointer == "/0"
        assert found.n_free_tokens == 1 + (value == 12 and ends_free)


def test_other_forms_are_one_field():
    lm = model()
    for form in ({"choices": ["x", "xy", "é"]}, {"regex": "[ab]{2,4}"}, {"grammar": 'start: "a" | "b" start'}):
        result = lm.generate("a", **form, max_tokens=60, seed=3)
        assert result.complete
        (field,) = result.fields
        assert (field.pointer, field.value, field.text) == ("", result.text, result.text)
        assert field.n_tokens == len(result.token_ids) and result.structure.n_tokens == 0
        assert total(result) == pytest.approx(result.sequence_logprob, abs=1e-9)
    assert lm.generate("a", max_tokens=3).fields is None


def test_a_text_cut_by_a_stop_string_has_no_fields():
    lm = model(merged=False)
    result = lm.generate("a", regex="aXb*", stop="X", max_tokens=9)
    assert result.text == "a" and result.fields is None


def test_forced_is_what_every_continuation_has_in_common():
    """Against the list of all texts."""
    texts = ["abc", "abd", "ab", "xéz", "xéy", "x\U0001f642"]
    lm = model(merged=False)
    constraint = lm.guide.constraint(make_form(choices=texts))
    for text in texts:
        raw = text.encode()
        tokens = [*raw, lm.tokenizer.eos_id]
        expected = []
        for i in range(len(raw) + 1):
            after = {t.encode()[i : i + 1] for t in texts if t.encode()[:i] == raw[:i]}  # b"": the text may end
            expected.append(len(after) == 1)
        assert forced_tokens(constraint, tokens, lm.tokenizer.token_bytes) == expected


@settings(max_examples=300)
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 4), min_size=1, max_size=10), st.booleans())
def test_tokens_belong_to_the_first_value_that_they_meet(gaps, lengths, over):
    """Against the slow way, byte by byte."""
    ranges, at = [], 0
    for gap, width in zip(gaps[::2], gaps[1::2], strict=False):
        at += gap
        if width:
            ranges.append((at, at + width))
            at += width
    size = max(sum(lengths), 1)
    ranges = [(a, b) for a, b in ranges if a < size and b <= size + over]
    pieces = [b"x" * n for n in lengths]
    mine, shared = owners(ranges, pieces)

    value_at = {byte: i for i, (a, b) in enumerate(ranges) for byte in range(a, b)}
    at, expected_shared = 0, set()
    for piece, owner in zip(pieces, mine, strict=True):
        touched = [value_at.get(byte) for byte in range(at, at + max(1, len(piece)))]
        values = [v for v in touched if v is not None]
        assert owner == (values[0] if values else None)
        if len(set(touched)) > 1:
            expected_shared |= set(values)
        at += len(piece)
    assert shared == expected_shared


def test_a_record_is_json():
    result = model().generate("a", schema=SCHEMA, max_tokens=400, seed=5)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["value"] == result.value and len(record["fields"]) == len(result.fields)
    assert record["fields"][0]["pointer"] == "/name" and record["structure"]["n_tokens"] == result.structure.n_tokens


def test_a_pydantic_value_is_plain_in_a_record():
    from pydantic import BaseModel

    class Person(BaseModel, extra="forbid"):
        n: int

    result = model(merged=False).generate("a", schema=Person, max_tokens=200, seed=1, temperature=0.5)
    assert result.complete and isinstance(result.value, Person)
    assert result.to_dict()["value"] == {"n": result.value.n}
