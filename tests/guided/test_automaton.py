from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabularies import texts_over

from likely.errors import ConstraintError
from likely.guided.engines.automaton import DEAD, UNREACHABLE, ByteAutomaton
from likely.guided.engines.code_points import _split, complement, utf8

PATTERNS = [
    "", "a", "ab|ba", "a*", "(ab)+b?", "a{2}", "a{1,3}b", "(a|b){2,}", "[^a]b", "[ab]*a", "(a*)*b", "((a|ab)(b|))?",
    "^ab?$", "(?:a|b)(?P<x>b)", "a*?b", "()", "a|", "b{0}a", "[a-b]{3}",
]  # fmt: skip


def accepts(automaton: ByteAutomaton, text: bytes) -> bool:
    state = automaton.walk(0, text)
    return state != DEAD and bool(automaton.accepting[state])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_language_is_that_of_pythons_engine(pattern):
    automaton = ByteAutomaton.of_regex(pattern)
    for text in texts_over(b"abc", 5):
        assert accepts(automaton, text) == bool(re.fullmatch(pattern, text.decode())), text


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[ab(|)*+?]{1,8}", fullmatch=True))
def test_random_patterns_agree_with_pythons_engine(pattern):
    try:
        automaton = ByteAutomaton.of_regex(pattern)
    except ConstraintError:
        return
    for text in texts_over(b"ab", 4):
        assert accepts(automaton, text) == bool(re.fullmatch(pattern, text.decode()))


@pytest.mark.parametrize("pattern", ["é+", "[à-ü]", "[^é]", ".", "[α-ω€]{2}", "\\u20ac", "[\U0001f600-\U0001f64f]"])
def test_characters_areutf8(pattern):
    automaton = ByteAutomaton.of_regex(pattern)
    for text in ("é", "éé", "a", "ü", "ω€", "€", "αω", "\U0001f601", "\n", "ÿ", "\ud7ff", "\ue000", "\U0010ffff", "ab"):
        assert accepts(automaton, text.encode()) == bool(re.fullmatch(pattern, text)), text
    for broken in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xa9"):
        assert not accepts(automaton, broken)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_byte_ranges_hold_exactly_the_code_points_between(one, other, probe):
    low, high = sorted((one, other))
    if 0xD800 <= probe < 0xE000:
        return
    text = chr(probe).encode()
    hits = [
        s
        for s in utf8(((low, high),))
        if len(s) == len(text) and all(a <= b <= c for (a, c), b in zip(s, text, strict=True))
    ]
    assert len(hits) == (low <= probe <= high)


def test_splitting_and_complements():
    assert _split(b"\xc2\x80", b"\xdf\xbf") == [((0xC2, 0xDF), (0x80, 0xBF))]
    assert complement(complement(((5, 9), (20, 30)))) == ((5, 9), (20, 30))


def test_classes_follow_unicode_and_not_python():
    word, space, digit = (ByteAutomaton.of_regex(p) for p in (r"\w", r"\s", r"\d"))
    assert accepts(word, "Ⓐ".encode()) and accepts(word, "\u0301".encode()) and accepts(word, "\u200d".encode())
    assert not accepts(word, "²".encode()) and "²".isalnum()  # a number, not a letter
    assert accepts(space, "\u2003".encode()) and not accepts(space, b"\x1c")
    assert accepts(digit, "٣".encode()) and not accepts(digit, "²".encode())
    assert not accepts(ByteAutomaton.of_regex(r"\W"), b"a") and accepts(ByteAutomaton.of_regex(r"[^\d\s]"), b"x")


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"(a)\1", r"\1"), ("a(?=b)", "lookahead"), (r"\bab", r"\b"), ("(?i)a", "flag"), ("a{,3}", "brace"),
        ("x{a}", "brace"), ("[[:alpha:]]", "class"), ("[a&&b]", "class"), (r"\pL", r"\p"), ("a*+b", "possessive"),
        (r"\<a", r"\<"), ("a^b", "anchor"), ("^a|b", "anchor"), ("(a", "not a regular expression"),
        ("a{3,2}", "not a regular expression"), (r"\Aa", r"\A"), ("a(?#x)", "comment"),
        ("[]", "not a regular expression"), (r"\017", r"\0"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(pattern, named):
    with pytest.raises(ConstraintError) as caught:
        ByteAutomaton.of_regex(pattern)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", [r"[a-z]{6000}", r"(a|b)*a(a|b){20}", r"\w{200}"])
def test_too_large_is_an_error_and_quick(pattern):
    with pytest.raises(ConstraintError, match="states"):
        ByteAutomaton.of_regex(pattern, max_states=1000)


def test_a_language_without_texts_is_an_error():
    with pytest.raises(ConstraintError, match="no text"):
        ByteAutomaton.of_regex(r"[^\s\S]")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_distances_are_those_of_the_shortest_completion(pattern):
    automaton = ByteAutomaton.of_regex(pattern)
    distances = automaton.distances()
    assert (distances < UNREACHABLE).all()  # no dead states
    for start in range(len(distances)):
        states, steps = {start}, 0
        while not any(automaton.accepting[s] for s in states):  # breadth first, the slow obvious way
            states, steps = {int(t) for s in states for t in automaton.table[s] if t != DEAD}, steps + 1
        assert distances[start] == steps


def test_distances_over_usable_bytes_only():
    automaton = ByteAutomaton.of_texts(["ab", "cccc"])
    usable = np.ones(256, np.bool_)
    usable[ord("b")] = False
    assert automaton.distances()[0] == 2 and automaton.distances(usable)[0] == 4
    usable[ord("c")] = False
    assert automaton.distances(usable)[0] == UNREACHABLE


def test_texts_where_one_is_the_beginning_of_another():
    automaton = ByteAutomaton.of_texts(["no", "not", "é"])
    assert [t for t in ("", "n", "no", "not", "nott", "é") if accepts(automaton, t.encode())] == ["no", "not", "é"]
    assert automaton.final.sum() == 2
