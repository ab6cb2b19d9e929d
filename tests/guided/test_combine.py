from __future__ import annotations

import re

import pytest
from small_vocabularies import all_bytes, all_spellings, of, reachable, texts_over

from likely.decoding.constraint import ConstraintViolation, count
from likely.errors import CapabilityError
from likely.guided.combinators import AllOf, AnyOf, InOrder
from likely.guided.engines.reference import Reference
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.settings import FormSettings

VOCABULARY = of(b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ba", b"cc", b"ab")
GUIDE = Guide(VOCABULARY)
LONGEST = 4
BACKENDS = ["reference", "llguidance"]


def part(pattern, backend="reference"):
    return GUIDE.constraint(make_form(regex=pattern, settings=FormSettings(backend=backend, close_on_budget=False)))


def spellings(holds):
    """Every token string of at most LONGEST tokens that writes a text of the language."""
    longest_text = LONGEST * VOCABULARY.longest
    out = set()
    for text in texts_over(b"abc", min(longest_text, 8)):
        if holds(text.decode()):
            out |= {s for s in all_spellings(VOCABULARY, text) if len(s) <= LONGEST}
    return out


def found(constraint):
    return {s for s in reachable(constraint, VOCABULARY, LONGEST) if len(VOCABULARY.text(s)) <= 8}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "patterns",
    [("a", "b"), ("a*", "a*b"), ("(ab)*", "b?c"), ("a|ab", "bc|c"), ("", "ab"), ("a?", "b?", "c?"),
     ("[ab]{2}", "[bc]{1,2}"), ("ab|abc", "c*")],
    ids=str,
)  # fmt: skip
def test_sequence_is_concatenation_over_bytes(patterns, backend):
    """Tokens that hold the end of one part and the beginning of the next included; all readings stay alive."""
    if backend == "llguidance":
        pytest.importorskip("llguidance")
    constraint = InOrder(tuple(part(p, backend) for p in patterns), VOCABULARY)
    joined = re.compile("".join(f"(?:{p})" for p in patterns))
    assert found(constraint) == spellings(joined.fullmatch)


def test_sequence_of_engines_and_of_sequences():
    pytest.importorskip("llguidance")
    inner = InOrder((part("a*", "llguidance"), part("b")), VOCABULARY)
    outer = InOrder((inner, part("c|bc", "llguidance")), VOCABULARY)
    assert found(outer) == spellings(re.compile("a*b(c|bc)").fullmatch)


@pytest.mark.parametrize(("one", "other"), [("[ab]*", "[bc]*"), ("(ab)*", "a.*"), (".{2}", "[ac]*"), ("a*b", "ab*")])
def test_and_is_the_intersection(one, other):
    expected = spellings(lambda t: bool(re.fullmatch(one, t) and re.fullmatch(other, t)))
    assert found(AllOf(part(one), part(other))) == expected


@pytest.mark.parametrize(("one", "other"), [("a*", "ab"), ("abc", "b*"), ("a|b", "b|c"), ("", "c+")])
def test_or_is_the_union(one, other):
    expected = spellings(lambda t: bool(re.fullmatch(one, t) or re.fullmatch(other, t)))
    assert found(AnyOf(part(one), part(other))) == expected


def test_a_contradiction_is_a_dead_end():
    constraint = AllOf(part("a+b"), part("a+c"))
    constraint.advance(0)
    constraint.advance(0)
    assert count(constraint.allowed()) == 1  # another a, for ever
    assert count(AllOf(part("b"), part("c")).allowed()) == 0


def test_or_forgets_parts_that_a_token_ruled_out():
    constraint = AnyOf(part("ab"), part("ac"))
    constraint.advance(0)
    constraint.advance(2)
    assert constraint.finished and constraint.accepting
    with pytest.raises(ConstraintViolation):
        constraint.advance(1)
    constraint.rollback(1)
    constraint.advance(1)
    assert constraint.finished


def test_masks_of_a_sequence_do_not_depend_on_what_was_asked_before():
    constraint = InOrder((part("a*"), part("[ab]*c")), VOCABULARY)
    other = constraint.fork()
    for token in (3, 0, 1):
        constraint.allowed()
        constraint.advance(token)
        other.advance(token)
    assert (constraint.allowed() == other.allowed()).all()


def test_bad_parts_are_errors():
    with pytest.raises(ValueError, match="at least one"):
        AllOf()
    with pytest.raises(ValueError, match="different vocabularies"):
        AnyOf(part("a"), Reference(all_bytes()).regex("a"))
    whole = of(b"ab", b"a")
    with pytest.raises(CapabilityError, match="byte 98"):
        InOrder((Reference(whole).regex("a"), Reference(whole).regex("b")), whole)
