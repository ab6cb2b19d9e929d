from __future__ import annotations

import numpy as np
import pytest
from regexes import REGEXES, agree
from small_vocabularies import all_bytes, all_spellings, of, reachable

from likely.decoding.constraint import members, unpack
from likely.errors import CapabilityError
from likely.guided.engines.automaton import DEAD
from likely.guided.engines.reference import Reference
from likely.guided.form import make_form
from likely.guided.settings import FormSettings


def by_hand(constraint, state):
    """Token by token, byte by byte."""
    vocabulary, table = constraint.vocabulary, constraint.steps.automaton.table
    out = np.zeros(vocabulary.size, bool)
    for i, text in enumerate(vocabulary.tokens):
        at = state
        for byte in text:
            at = table[at, byte] if at != DEAD else DEAD
        out[i] = bool(text) and at != DEAD
    return out


@pytest.mark.parametrize("pattern", REGEXES[:25])
def test_all_tokens_at_once_equals_one_by_one(pattern):
    constraint = Reference(all_bytes()).regex(pattern)
    rng = np.random.default_rng(0)
    for _ in range(8):
        allowed = unpack(constraint.allowed(), constraint.vocab_size)
        expected = by_hand(constraint, constraint._state)
        expected[list(constraint.vocabulary.end_ids)] = constraint.accepting
        np.testing.assert_array_equal(allowed, expected)
        go_on = [t for t in members(constraint.allowed()) if t not in constraint.vocabulary.end_ids]
        if not go_on:
            break
        constraint.advance(int(rng.choice(go_on)))


def test_there_are_fifty_patterns():
    assert len(set(REGEXES)) == 50


@pytest.mark.parametrize("pattern", REGEXES)
def test_masks_are_bit_identical_to_llguidance(pattern):
    pytest.importorskip("llguidance")
    from likely.guided.guide import Guide

    guide = Guide(all_bytes())
    forms = [make_form(regex=pattern, settings=FormSettings(backend=b, close_on_budget=False))
             for b in ("reference", "llguidance")]  # fmt: skip
    agree(*map(guide.constraint, forms), pattern, 60, seed=REGEXES.index(pattern))


@pytest.mark.parametrize("backend", ["reference", "llguidance"])
@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"choices": ["no", "not", "nota"]}, ["no", "not", "nota"]),
        ({"regex": "[0-9]{2}"}, [f"{a}{b}" for a in range(10) for b in range(10)]),
        ({"choices": ["yes", "yes!"]}, ["yes", "yes!"]),
    ],
    ids=["prefixes", "digits", "one is the beginning of the other"],
)
def test_reachable_token_strings_are_all_spellings_of_the_language(backend, options, texts):
    if backend == "llguidance":
        pytest.importorskip("llguidance")
    from likely.guided.guide import Guide

    digits = [str(d).encode() for d in range(10)]
    vocabulary = of(b"n", b"no", b"o", b"t", b"ot", b"a", b"ta", b"nota", b"y", b"es", b"e", b"s", b"!", b"yes", b"s!",
                    *digits, b"12", b"21", b"00", b"123", b"no")  # fmt: skip
    form = make_form(**options, settings=FormSettings(backend=backend))
    found = reachable(Guide(vocabulary).constraint(form), vocabulary, 5)
    assert found == {s for text in texts for s in all_spellings(vocabulary, text.encode())}


def test_a_schema_is_refused():
    with pytest.raises(CapabilityError, match="llguidance"):
        Reference(all_bytes()).compile(make_form(schema={"type": "string"}))
