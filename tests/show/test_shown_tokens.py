"""What is shown of a record, and text that hides nothing."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HOSTILE, generation, scored

from likely.errors import CapabilityError
from likely.show.tokens import one_line, probability, shown, visible


@given(st.text(st.characters(codec=None, categories=None), max_size=20))
def test_visible_text_holds_nothing_invisible(text):
    for char in visible(text):
        assert char in "\n " or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a b", "a b"), ("\n", "↵\n"), ("\t", "⇥"), ("\r\n", "␍↵\n"), ("\x1b[31m", "␛[31m"), ("\u202e", "⟨U+202E⟩"),
        ("\u200b", "⟨U+200B⟩"), ("\u3000", "⟨U+3000⟩"), ("\ud800", "⟨U+D800⟩"), ("\u0301", "◌\u0301"), ("é", "é"),
        ("日本😀", "日本😀"), ("\x9b", "⟨U+009B⟩"), ("\u2028", "⟨U+2028⟩"), ("", ""),
    ],
)  # fmt: skip
def test_visible_forms(text, seen):
    assert visible(text) == seen


def test_long_titles_are_cut_in_the_middle():
    line = one_line("a" * 500 + "b" * 500, 100)
    assert line.startswith("aaa") and line.endswith("bbb") and len(line) < 110


def test_numbers_are_those_of_the_record():
    record = scored(["a", "b", "c"])
    text = shown(record)
    assert [t.logprob for t in text.tokens] == record.token_logprobs
    assert [t.entropy for t in text.tokens] == record.entropies
    assert text.sequence_logprob == record.sequence_logprob and text.mean_logprob == record.mean_logprob
    assert [t.rank for t in text.tokens] == [1, 1, 1]


def test_rank_counts_likelier_alternatives_and_is_unknown_outside_of_them():
    record = scored(["a", "b"])
    second = replace(record, token_ids=[5000, 7])  # the second alternative; none of them
    assert [t.rank for t in shown(second).tokens] == [2, None]
    by_text = replace(record, token_ids=None)  # a server that gives no ids
    assert [t.rank for t in shown(by_text).tokens] == [1, 1]


def test_notes_and_what_is_missing():
    assert "prompt" in shown(scored(["a"], straddles=True)).note
    assert "length" in shown(generation(["a"], [-1.0])).note
    assert shown(scored([])).tokens == () and shown(scored([])).mean_logprob is None
    with pytest.raises(CapabilityError, match="no log-probabilities"):
        shown(replace(generation(["a"], [-1.0]), token_logprobs=None, sequence_logprob=None))


def test_probabilities_are_short_and_never_a_rounded_zero():
    assert probability(-0.25) == "0.7788" and probability(-16.0) == "1.1e-07" and probability(0.0) == "1.0000"
    assert probability(1e-6) == "1.0000" and float(probability(-700.0)) > 0 and probability(float("-inf")) == "0.0000"


def test_hostile_tokens_can_be_shown():
    assert len(shown(scored(HOSTILE)).tokens) == len(HOSTILE)
