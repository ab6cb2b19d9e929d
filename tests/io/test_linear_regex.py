from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import ConstraintError
from likely.io.linear_regex import MAX_TEXT, LinearRegex

LEAVES = [
    *"ab1A ", "\n", ".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "[ab]", "[^a]", "[a-c1]", r"[^\d]", r"[\w-]",
    "^", "$", r"\b", r"\B", r"\A", r"\Z",
]  # fmt: skip
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "*?", "{0,2}?", "{2,}"]
PATTERNS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(REPEATS)).map("(?:{0[0]}){0[1]}".format),
        inner.map("({})".format),
        inner.map("(?i:{})".format),
    ),
    max_leaves=8,
)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(["", "(?i)", "(?m)", "(?s)", "(?a)"]), PATTERNS, st.text(alphabet="abAB1_ \ncé", max_size=8))
def test_it_says_what_re_says(flags, pattern, text):
    try:
        expected = re.search(flags + pattern, text) is not None
    except re.error:
        with pytest.raises(ConstraintError):
            LinearRegex(flags + pattern)
        return
    assert LinearRegex(flags + pattern).search(text) is expected


class CountedText(str):
    """A text that counts how often a character of it is read."""

    reads = 0

    def __getitem__(self, key):
        self.reads += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+$b", "a*a*a*a*a*b", "(?:a?){20}a{20}b"])
def test_patterns_that_ruin_a_backtracking_engine_read_each_character_once(pattern):
    text = CountedText("a" * 2000)
    assert not LinearRegex(pattern).search(text)
    assert text.reads <= 2 * len(text)
    assert LinearRegex(pattern).search("a" * 50 + "b") is (pattern != "(a|aa)+$b")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(a", "not a regular expression"),
        (r"(a)\1", "backreference"),
        ("a(?=b)", "lookahead"),
        ("(?<!a)b", "lookbehind"),
        ("(?>a)b", "atomic|not a regular"),
        ("a++", "possessive|not a regular"),
        ("a{99999}", "states"),
        ("(?:a{100}){100}", "states"),
        ("(((((a{9}){9}){9}){9}){9}){9}", "states"),
        ("a{5,99999999999999999999}", "not a regular expression"),
        ("(" * 499 + ")" * 499, "nested too deeply"),
        ("x" * 2000, "at most"),
    ],
)
def test_what_it_cannot_bound_is_refused_in_one_line(pattern, why):
    with pytest.raises(ConstraintError, match=why) as error:
        LinearRegex(pattern)
    assert "\n" not in str(error.value)


def test_a_billion_times_nothing_is_nothing():
    assert LinearRegex("(){999999999}x(?:)*").search("x")


def test_a_text_without_bound_is_refused():
    with pytest.raises(ConstraintError, match="at most"):
        LinearRegex("a").search("a" * (MAX_TEXT + 1))
