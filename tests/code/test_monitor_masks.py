"""Masks of names: the known answer, brute force over a toy vocabulary, and what every monitor state allows."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor_toys import constraint, dereference, legal, vocabulary, write

from likely.code.name_masks import NameMasks, breaks
from likely.decoding.constraint import ConstraintViolation, members

HOSTS = ("host", "hostName", "port")


def texts(masks: NameMasks, names, space="") -> set[bytes]:
    mask = masks.allowed(frozenset(n.encode() for n in names), space)
    return {masks.vocabulary.tokens[i] for i in members(mask).tolist()}


def test_known_answer():
    vocab = vocabulary("h", "host", "hostN", "ost", "port(", "ports", "por", "(", "host.")
    masks = NameMasks(vocab)
    assert texts(masks, HOSTS) == {b"h", b"host", b"hostN", b"port(", b"por", b"host."}
    after = {"", "Name"}
    assert texts(masks, after) == {b"(", b""}  # a break, or the end; "Name" has no token here
    assert texts(NameMasks(vocabulary("Na", "Names", "Name)", ".x", "x", " =")), after) == {
        b"Na", b"Name)", b".x", b" =", b"",
    }  # fmt: skip


def test_every_id_of_a_text_counts_and_other_ids_never():
    vocab = vocabulary("host", "host", b"", "x")
    assert members(NameMasks(vocab).allowed(frozenset({b"host"}))).tolist() == [0, 1]


def test_a_part_of_a_character_is_never_a_break():
    arrow, eacute = "→".encode(), "é".encode()
    vocab = vocabulary("a", b"a" + arrow, b"a" + arrow[:1], arrow, arrow[:2], eacute[:1], eacute[1:], b"a" + eacute)
    masks = NameMasks(vocab)
    assert texts(masks, ["a"]) == {b"a", b"a" + arrow}  # a letter with an accent goes on with the name
    assert texts(masks, [""]) == {arrow, b""}
    assert masks.allowed(frozenset({eacute})).tolist() != masks.allowed(frozenset({b"e"})).tolist()
    assert texts(masks, ["é"]) == {eacute[:1]}
    assert [breaks(t) for t in (b"", b"a", b"(", arrow, arrow[:1], eacute, b"1", b"_")] == [
        False, False, True, True, False, False, False, False,
    ]  # fmt: skip


def test_blanks_may_stand_before_a_name_until_it_begins():
    vocab = vocabulary(" ", "\n    ", " host", "\nport", "h", "  x", "ost")
    masks = NameMasks(vocab)
    assert texts(masks, HOSTS, "one") == {b" ", b" host", b"h"}
    assert texts(masks, HOSTS, "lines") == {b" ", b"\n    ", b" host", b"\nport", b"h"}
    assert texts(masks, HOSTS, "break") == {b"\n    ", b"\nport", b"h"}
    assert texts(masks, HOSTS, "indent") == {b" ", b" host", b"h"}
    assert texts(masks, HOSTS) == {b"h"}


PIECES = ["h", "o", "s", "t", "ho", "st", "host", "N", "hostN", "p", "(", "t(", "host(", "port", ".", "t.", "op", "Na"]


def spellings(text: str, pieces) -> list[tuple[str, ...]]:
    """Every way to cut a text into pieces."""
    if not text:
        return [()]
    return [(p, *rest) for p in pieces if text.startswith(p) for rest in spellings(text[len(p) :], pieces)]


def test_every_spelling_of_every_name_is_reachable():
    names = ["host", "hostN", "port", "ho"]
    vocab = vocabulary(*dict.fromkeys(PIECES))
    found = 0
    for name in names:
        for path in spellings(name + "(", vocab_texts(vocab)):
            state = constraint(vocab, "x.", dereference({"x": names}))
            write(state, *path)
            found += 1
    assert found == 17


def vocab_texts(vocab):
    return [t.decode() for t in vocab.tokens if t]


def test_no_other_name_can_be_formed():
    """All token strings of length 4 that the masks allow spell a beginning of a legal name, or a whole one and more."""
    names = ["host", "hostN", "port"]
    vocab = vocabulary(*dict.fromkeys(PIECES))
    formed = set()

    def walk(state, depth):
        text = state.written.decode()
        word = re.match(r"\w*", text)[0]
        if len(word) < len(text):
            assert word in names, text
            formed.add(word)
            return
        assert any(name.startswith(word) for name in names), text
        if depth:
            for token in members(state.allowed()).tolist():
                if token in vocab.end_ids:
                    assert word in names
                elif state.permits(token):
                    following = state.fork()
                    following.advance(token)
                    walk(following, depth - 1)

    walk(constraint(vocab, "x.", dereference({"x": names})), 4)
    assert formed == set(names)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="abé_", min_size=1, max_size=4), min_size=1, max_size=5),
    st.lists(st.text(alphabet="abé_(. ", min_size=1, max_size=4), min_size=1, max_size=25, unique=True),
)
def test_masks_are_what_the_definition_says(names, pieces):
    """Against the sentence itself: w begins a name, or is a name and goes on with a character that ends it."""
    vocab = vocabulary(*pieces)
    slow = {
        p.encode()
        for p in pieces
        if any(n.startswith(p) for n in names)
        or any(p.startswith(n) and len(p) > len(n) and not ("a" + p[len(n)]).isidentifier() for n in names)
    }
    assert texts(NameMasks(vocab), names) == slow


def test_masks_are_kept_per_set_of_names():
    masks = NameMasks(vocabulary("a", "b"))
    one = masks.allowed(frozenset({b"a"}))
    assert masks.allowed(frozenset({b"a"})) is one and masks.allowed(frozenset({b"b"})) is not one


def test_an_illegal_token_leaves_the_state():
    vocab = vocabulary("host", "guest", "(")
    state = constraint(vocab, "x.", dereference({"x": HOSTS}))
    before = state.allowed().copy()
    with pytest.raises(ConstraintViolation, match="guest"):
        write(state, "guest")
    assert np.array_equal(state.allowed(), before) and legal(state) == {b"host"}


def test_all_token_strings_agree_with_the_bytes_they_write():
    """Whatever the cut, the same text is legal or not, and the masks after it are the same."""
    vocab = vocabulary(*dict.fromkeys(PIECES))
    monitor = dereference({"x": ["host", "hostN", "port"], "host": ["port"]})
    verdicts: dict[str, set] = {}
    for path in itertools.chain.from_iterable(itertools.product(vocab_texts(vocab), repeat=n) for n in (1, 2)):
        state = constraint(vocab, "x.", monitor)
        try:
            write(state, *path)
            verdict = tuple(sorted(legal(state)))
        except ConstraintViolation:
            verdict = None
        verdicts.setdefault("".join(path), set()).add(verdict)
    assert all(len(found) == 1 for found in verdicts.values())
    assert sum(None in found for found in verdicts.values()) > 50
