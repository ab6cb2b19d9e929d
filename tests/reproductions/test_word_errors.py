"""Word errors: known answers, the slow way, jiwer, and what more transcripts can only improve."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import script

transcripts = script("transcripts")
oracle_word_error_rate, word_errors = transcripts.oracle_word_error_rate, transcripts.word_errors
word_error_rate = transcripts.word_error_rate

texts = st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join)
said_and_heard = st.lists(
    st.tuples(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join), texts), min_size=1, max_size=5
)


def slow_errors(said, heard):
    """By the definition: try every way to end."""

    @cache
    def fewest(a, b):
        if not a or not b:
            return len(a) + len(b)
        same = fewest(a[:-1], b[:-1]) + (a[-1] != b[-1])
        return min(same, fewest(a[:-1], b) + 1, fewest(a, b[:-1]) + 1)

    return fewest(tuple(said.split()), tuple(heard.split()))


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("wake me up at noon", "wake me up at noon", 0),
        ("wake me up at noon", "make me up noon", 2),
        ("wake me up", "", 3),
        ("", "oh no", 2),
        ("a b c d", "b c d a", 2),
    ],
)
def test_known_answers(said, heard, expected):
    assert word_errors(said, heard) == expected


@given(texts, texts)
def test_the_fast_way_is_the_slow_way(said, heard):
    assert word_errors(said, heard) == slow_errors(said, heard)


@given(texts, texts, texts)
def test_it_is_a_distance(a, b, c):
    assert (word_errors(a, b) == 0) == (a == b) and word_errors(a, b) == word_errors(b, a)
    assert word_errors(a, c) <= word_errors(a, b) + word_errors(b, c)


def test_the_rate_is_over_all_words():
    assert word_error_rate(["a b c", "d"], ["a b c", "x"]) == 0.25  # not the mean of 0 and 1
    assert word_error_rate(["a"], ["x y z"]) == 3


@given(said_and_heard)
def test_agreement_with_jiwer(pairs):
    jiwer = pytest.importorskip("jiwer")
    said, heard = [s for s, _ in pairs], [h for _, h in pairs]
    assert word_error_rate(said, heard) == pytest.approx(jiwer.wer(said, heard))


@given(st.lists(st.tuples(st.just("a b c"), st.lists(texts, min_size=1, max_size=6)), min_size=1, max_size=4))
def test_more_transcripts_never_raise_the_oracle_rate(entries):
    said, heard = [s for s, _ in entries], [h for _, h in entries]
    rates = [oracle_word_error_rate(said, heard, n) for n in range(1, 8)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == word_error_rate(said, [h[0] for h in heard])
    best = sum(min(slow_errors(s, h) for h in hs) for s, hs in zip(said, heard, strict=True))
    assert rates[-1] == pytest.approx(best / sum(len(s.split()) for s in said))


def test_what_has_no_rate_is_an_error():
    with pytest.raises(ValueError, match="n must be >= 1"):
        oracle_word_error_rate(["a"], [["a"]], 0)
    with pytest.raises(ValueError, match="2 texts were said, 1 heard"):
        word_error_rate(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="text 1 has no transcript"):
        oracle_word_error_rate(["a", "b"], [["a"], []], 1)
    with pytest.raises(ValueError, match="no word was said"):
        word_error_rate([""], ["a"])
