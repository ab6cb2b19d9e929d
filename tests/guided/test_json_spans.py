"""Spans of JSON values, against Python's own reader."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.guided.fields import NotJson, json_spans, open_string

KEYS = st.text(max_size=6) | st.sampled_from(["", "a/b", "~", "~1", '"', "\\", "é🙂", "\u2028", "0"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KEYS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
WAYS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([(",", ":"), (", ", " : "), (" ,\n", ":\r\n")]),
    }
)


def leaves(value, pointer=""):
    """(pointer, value) of all values that hold no others: the slow, obvious way."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not inner:
        yield pointer, value
    for key, item in inner:
        yield from leaves(item, f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")


@settings(max_examples=400)
@given(VALUES, WAYS)
def test_spans_read_again_are_the_values_at_their_pointers(value, way):
    text = json.dumps(value, **way).encode("utf-8", "surrogatepass")
    found = json_spans(text)
    assert [(span.pointer, span.value) for span in found] == list(leaves(value))
    assert [json.loads(text[span.start : span.end]) for span in found] == [span.value for span in found]
    assert all(a.end <= b.start for a, b in pairwise(found))
    # what lies between the values is structure and keys: no scalar outside of them
    assert all(text[span.start : span.end].strip() == text[span.start : span.end] for span in found)


@settings(max_examples=400)
@given(VALUES, WAYS, st.integers(0, 400), st.sampled_from(["cut", "drop", "swap"]), st.sampled_from(b'{}[]",:1 \\ex'))
def test_what_python_refuses_is_refused(value, way, at, how, byte):
    raw = json.dumps(value, **way).encode("utf-8", "surrogatepass")
    at %= len(raw)
    text = {"cut": raw[:at], "drop": raw[:at] + raw[at + 1 :], "swap": raw[:at] + bytes([byte]) + raw[at + 1 :]}[how]
    try:
        expected = list(leaves(json.loads(text.decode("utf-8", "surrogatepass"))))
    except (ValueError, UnicodeDecodeError):
        if b"\\u" not in text and text.decode("utf-8", "replace").encode() == text:
            with pytest.raises(NotJson):
                json_spans(text)
        return
    found = {span.pointer: span.value for span in json_spans(text)}  # of a key given twice, Python keeps the last
    for pointer, wanted in expected:
        assert found[pointer] == wanted


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": "x', "/a"),
        ('{"a": ["x", "y', "/a/1"),
        ('{"a": "x\\', "/a"),
        ('{"a": "x\\u12', "/a"),
        ('"', ""),
        ('{"a', ""),
        ('{"a": 1', None),
        ('{"a": ', None),
        ('{"a": "x"', None),
        ('{"a": "x"}', None),
        ("[1, 2", None),
        ("", None),
        ('{"a": "x\ny', None),  # no JSON: a newline inside a string
    ],
)
def test_a_cut_inside_a_string_is_named(text, where):
    found = open_string(text.encode())
    assert found == where or (where == "" and found is not None)


def test_an_open_string_may_end_inside_a_character():
    assert open_string('{"a": "é'.encode()[:-1]) == "/a"


def test_deep_nesting_is_no_recursion():
    depth = 100_000
    (span,) = json_spans(b"[" * depth + b"1" + b"]" * depth)
    assert span.value == 1 and span.start == depth and span.pointer.count("/0") == depth
