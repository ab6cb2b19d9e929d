"""FINAL: the table of rules, and, by brute force over all short texts, that what is called final never changes."""

from __future__ import annotations

import itertools

import pytest
from follow_maps import after, follow, mask
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.queries.where.counting import _CLASS, AUTOMATA, TokenCounts, count
from likely.queries.where.final import DEC, FIN, INC, VAR, Partial, apply, compare, conjunction, evaluate, negation
from likely.queries.where.nodes import (
    And,
    Compare,
    Const,
    Contains,
    Count,
    FunctionCall,
    Hole,
    In,
    Matches,
    Not,
    Or,
    StartsWith,
)

ALPHABET = "ab ."
LONGEST = 6
X = Hole("X")
TEXTS = ["".join(t) for n in range(LONGEST + 1) for t in itertools.product(ALPHABET, repeat=n)]


def walk(kind, text: bytes, state: int = 0):
    """(count, state after the text) of a text that begins in `state`; not for tokens."""
    automaton, total = AUTOMATA[kind], 0
    for byte in text:
        cls = _CLASS[byte]
        total += int(automaton.adds[state, cls])
        state = int(automaton.next[state, cls])
    return total, state


def on(text, done=False, tokens=None):
    return {"X": Partial(text, len(text) if tokens is None else tokens, done)}


@pytest.mark.parametrize(
    "node, state, expected",
    [
        (Const(3), {}, (3, FIN)),
        (X, on("ab", done=True), ("ab", FIN)),
        (X, on("ab"), ("ab", INC)),
        (X, {}, (None, VAR)),
        (Count("chars", X), on("ab"), (2, INC)),
        (Count("words", X), on("a b", done=True), (2, FIN)),
        (Count("tokens", X), on("abab", tokens=2), (2, INC)),
        (Count("chars", X), {}, (None, VAR)),
        (X.chars < 3, on("ab"), (True, VAR)),
        (X.chars < 3, on("abb"), (False, FIN)),
        (X.chars > 1, on("ab"), (True, FIN)),
        (X.chars > 2, on("ab"), (False, VAR)),
        (X.chars.equals(1), on("ab"), (False, FIN)),
        (X.chars.equals(3), on("ab"), (False, VAR)),
        (X.chars.differs(1), on("ab"), (True, FIN)),
        (In(X, ("ab", "b")), on("a"), (False, VAR)),
        (In(X, ("ab", "b")), on("ab"), (True, VAR)),
        (In(X, ("ab", "b")), on("bb"), (False, FIN)),
        (In(X, ("ab", "b")), on("ab", done=True), (True, FIN)),
        (Contains(Const("b"), X), on("ab"), (True, FIN)),
        (Contains(Const("b"), X), on("aa"), (False, VAR)),
        (Contains(Const("b"), X), on("aa", done=True), (False, FIN)),
        (Compare("==", X, Const("ab")), on("a"), (False, VAR)),
        (Compare("==", X, Const("ab")), on("b"), (False, FIN)),
        (StartsWith(X, ("ab",)), on("abb"), (True, FIN)),
        (StartsWith(X, ("ab",)), on("a"), (False, VAR)),
        (StartsWith(X, ("ab",)), on("b"), (False, FIN)),
        (Matches(X, "a+"), on("a"), (True, VAR)),
        (Not(In(X, ("ab",))), on("bb"), (True, FIN)),
        (FunctionCall("f", len, (X,)), on("ab"), (2, VAR)),
        (FunctionCall("f", len, (X,)), on("ab", done=True), (2, FIN)),
    ],
)
def test_the_table(node, state, expected):
    assert evaluate(node, state) == expected


@pytest.mark.parametrize(
    "op, a, b, expected",
    [
        ("<", (1, DEC), (2, INC), (True, FIN)),
        ("<", (1, INC), (2, FIN), (True, VAR)),
        ("<", (3, INC), (2, DEC), (False, FIN)),
        ("<", (3, DEC), (2, FIN), (False, VAR)),
        (">", (3, INC), (2, DEC), (True, FIN)),
        (">=", (1, DEC), (2, INC), (False, FIN)),
        ("==", (1, DEC), (2, INC), (False, FIN)),
        ("==", (2, INC), (2, FIN), (True, VAR)),
        ("!=", (3, INC), (2, FIN), (True, FIN)),
        ("<", (1, VAR), (2, FIN), (True, VAR)),
    ],
)
def test_comparisons_by_direction(op, a, b, expected):
    assert compare(op, a, b) == expected


def test_and_or_not_of_pairs():
    yes, no, perhaps, unknown = (True, FIN), (False, FIN), (False, VAR), (None, VAR)
    assert conjunction([yes, yes]) == yes and conjunction([yes, (True, VAR)]) == (True, VAR)
    assert conjunction([no, unknown]) == no and conjunction([perhaps, unknown]) == (False, VAR)
    assert conjunction([yes, unknown]) == unknown
    assert negation(yes) == no and negation(unknown) == unknown and negation(perhaps) == (True, VAR)


ATOMS = st.sampled_from(
    [
        X.chars < 3, X.chars >= 2, X.chars.equals(4), X.chars.differs(2), X.words <= 1, X.words > 1, X.sentences < 2,
        X.sentences.equals(1), X.tokens <= 3, X.one_of(["a", "ab", "ab b"]), X.one_of(["b."]), X.contains("a."),
        X.starts_with("ab", "b"), X.matches("(ab)*"), Compare("==", X, Const("ab")), Compare("!=", X, Const("a")),
        Compare("<", Const(2), X.chars), FunctionCall("even", lambda t: len(t) % 2 == 0, (X,)),
        X.contains("b") & (X.chars < 5),
    ]
)  # fmt: skip
CLAUSES = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds(lambda a, b: And((a, b)), inner, inner)
        | st.builds(lambda a, b: Or((a, b)), inner, inner)
        | st.builds(Not, inner)
    ),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(CLAUSES)
def test_a_final_value_never_changes(node):
    """Whenever a clause is (v, FIN) on a text, it is v on every longer one, finished or not, up to six characters."""
    found = {t: evaluate(node, on(t)) for t in TEXTS}
    ended = {t: evaluate(node, on(t, done=True)) for t in TEXTS}
    for text in TEXTS:
        if len(text) == LONGEST:
            continue
        for c in ALPHABET:
            longer = text + c
            if found[text][1] is FIN:
                assert found[longer] == found[text] and ended[longer] == found[text]
        if found[text][1] is FIN:
            assert ended[text] == found[text]


@pytest.mark.parametrize("kind", ["chars", "words", "sentences", "tokens"])
def test_counts_only_grow(kind):
    node = Count(kind, X)
    for text in TEXTS:
        if text:
            assert evaluate(node, on(text[:-1]))[0] <= evaluate(node, on(text))[0]


@pytest.mark.parametrize("kind", list(AUTOMATA))
def test_the_automata_count_as_the_plain_functions(kind):
    """Over all short texts, and by whole tokens of any cut."""
    for text in [*TEXTS, "é ü. 日本 x", "3.14 is pi. Yes!  No?\n"]:
        assert walk(kind, text.encode())[0] == count(kind, text, 0)
    pieces = ("", "a", ". b", " .", "b. a.", "\u00e9".encode()[:1], "\u00e9".encode()[1:])
    pieces = tuple(p if isinstance(p, bytes) else p.encode() for p in pieces)
    adds, after_ = TokenCounts(kind, pieces).tables
    for state in range(len(AUTOMATA[kind].next)):
        for i, piece in enumerate(pieces):
            assert (adds[state, i], after_[state, i]) == walk(kind, piece, state)


def test_words_and_sentences_of_a_known_text():
    text = "Pi is 3.14. Is it?  Yes"
    assert (count("words", text, 0), count("sentences", text, 0), count("chars", text, 0)) == (6, 3, 23)


VOCABULARY = ["a", "b", "ab", " ", ". ", "b."]


@settings(max_examples=20, deadline=None)
@given(CLAUSES, st.lists(st.sampled_from(range(len(VOCABULARY))), max_size=3))
def test_follow_maps_are_the_evaluation_after_each_token(node, written):
    """The product of operand maps equals evaluating the whole clause on every longer text, and covers all tokens."""
    state = on("".join(VOCABULARY[t] for t in written), tokens=len(written))
    rows = follow(node, state, "X", VOCABULARY)
    seen = [t for tokens, _ in rows for t in tokens]
    assert sorted(seen, key=str) == sorted([None, *range(len(VOCABULARY))], key=str)
    for tokens, pair in rows:
        for t in tokens:
            assert evaluate(node, after(state, "X", t, VOCABULARY)) == pair
    assert all(t in mask(rows) or evaluate(node, after(state, "X", t, VOCABULARY)) == (False, FIN) for t in seen)


def test_apply_refuses_what_is_no_condition():
    with pytest.raises(TypeError, match="not a condition"):
        apply(Count("chars", X), [("a", FIN)])
