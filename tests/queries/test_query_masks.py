"""Masks of clauses against brute force over a toy vocabulary of several-character tokens."""

from __future__ import annotations

import pytest
from follow_maps import follow, mask
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_queries import END, PIECES, compiler, token_strings

from likely.decoding.constraint import ConstraintDeadEnd, ConstraintViolation, members
from likely.errors import ConstraintError
from likely.queries.where.final import FIN, VAR, Partial, evaluate
from likely.queries.where.nodes import And, Compare, Const, FunctionCall, Hole, Not, Or
from likely.queries.where.ops import op
from likely.queries.where.regular import normal, terminal

X = Hole("X")
MOST = 4  # tokens of a whole text


@pytest.fixture(scope="module")
def where():
    return compiler()


def text_of(tokens):
    return "".join(PIECES[t] for t in tokens)


def valid(node):
    """Token sequences (at most MOST) whose whole text fulfils the clause."""
    return {
        tokens
        for tokens in token_strings(PIECES, MOST)
        if evaluate(node, {"X": Partial(text_of(tokens), len(tokens), True)})[0]
    }


def allowed_after(constraint, tokens):
    fork = constraint.fork()
    for token in tokens:
        fork.advance(token)
    return set(members(fork.allowed()).tolist())


REGULAR = [
    X.one_of(["ab", "abba b", "b."]),
    X.one_of(["ab", "ba ab"]) & (X.chars > 2),
    X.starts_with("ab", "b."),
    X.contains(". "),
    X.matches(r"(ab|b )*\.? "),
    (X.chars <= 3) & ~X.contains("b"),
    ~X.one_of(["a", "ab"]) & (X.chars < 4),
    (X.one_of(["a b"]) | X.starts_with(".")) & (X.chars < 5),
    Compare("==", X, Const("b.a")) | Compare("==", X, Const("ab ")),
    X.chars.equals(3) & X.starts_with("b"),
    X.chars.differs(2) & (X.chars < 4),
    ~X.starts_with("ab", "b."),
    ~X.contains("b") & ~X.starts_with(" "),
]
COUNTED = [X.words <= 1, X.words.equals(2), X.tokens <= 2, X.tokens.equals(3), X.sentences < 2, X.words > 1,
           X.tokens.differs(2) & (X.tokens < 4), X.tokens.differs(0)]  # fmt: skip
OPAQUE = [X.satisfies(lambda t: t.count("a") == 2, "two_a"), ~X.satisfies(lambda t: "b" in t, "has_b")]


@pytest.mark.parametrize("node", REGULAR, ids=range(len(REGULAR)))
def test_regular_masks_are_sound_and_complete(where, node):
    """A token is allowed exactly if some text of at most MOST tokens goes on with it; the end exactly on valid texts.

    Texts that need more tokens than MOST are reached in the enumeration only as far as that: clauses are short.
    """
    assert terminal(normal(node)) is not None
    constraint = where.compile(node, "X").constraint
    texts = valid(node)
    prefixes = sorted({t[:k] for t in texts for k in range(len(t) + 1)}, key=lambda p: (len(p), p))
    following = {}
    for text in texts:
        for k in range(len(text)):
            following.setdefault(text[:k], set()).add(text[k])
    for prefix in prefixes[:300]:
        found = allowed_after(constraint, prefix)
        wanted = following.get(prefix, set()).copy()
        wanted |= {END} if prefix in texts else set()
        assert wanted <= found, (prefix, "unsound")
        for extra in found - wanted:  # complete, as far as the longer texts are not enumerated
            assert extra != END
            assert _reachable(node, text_of((*prefix, extra))), (prefix, PIECES[extra], "a dead end is allowed")


def _reachable(node, text, depth=5):
    """Whether the text, or one that is up to `depth` pieces longer, fulfils the clause."""
    layer = {text}
    for _ in range(depth + 1):
        if any(evaluate(node, {"X": Partial(t, 0, True)})[0] for t in layer):
            return True
        layer = {t + p for t in layer for p in PIECES if evaluate(node, {"X": Partial(t + p)}) != (False, FIN)}
    return False


@pytest.mark.parametrize("node", [*COUNTED, *OPAQUE], ids=range(len(COUNTED) + len(OPAQUE)))
def test_other_tiers_are_sound(where, node):
    constraint = where.compile(node, "X").constraint
    texts = valid(node)
    for tokens in sorted(texts)[::7]:
        fork = constraint.fork()
        for token in tokens:
            fork.advance(token)
        assert END in members(fork.allowed()) and fork.accepting
    for tokens in token_strings(PIECES, 3):
        if tokens in texts:
            continue
        fork = constraint.fork()
        try:
            for token in tokens:
                fork.advance(token)
        except ConstraintViolation:
            continue
        assert END not in members(fork.allowed())


IMPOSSIBLE = X.one_of(["ab", "abba b"]) & (X.one_of(["ab", "ba ab"]) & (X.chars > 2))


BRANCHES = [(X.words <= 1) | IMPOSSIBLE, IMPOSSIBLE | (X.words > 1), X.tokens.equals(3) | IMPOSSIBLE | IMPOSSIBLE]


@pytest.mark.slow
@pytest.mark.parametrize("node", BRANCHES, ids=range(len(BRANCHES)))
def test_a_branch_that_no_text_fulfils_takes_nothing_from_the_others(where, node):
    constraint, texts = where.compile(node, "X").constraint, valid(node)
    assert texts
    for tokens in sorted(texts)[::7]:
        assert END in allowed_after(constraint, tokens)


def test_branches_of_which_none_has_a_text_are_refused(where):
    with pytest.raises(ConstraintError, match="no text fulfils where"):
        where.compile((IMPOSSIBLE & (X.words <= 1)) | (IMPOSSIBLE & (X.tokens <= 2)), "X")


ATOMS = st.sampled_from([*REGULAR, *COUNTED, *OPAQUE])
CLAUSES = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds(lambda a, b: And((a, b)), inner, inner)
        | st.builds(lambda a, b: Or((a, b)), inner, inner)
        | st.builds(Not, inner)
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(CLAUSES)
def test_any_clause_is_sound_and_within_the_follow_mask(node):
    """No token of a valid text is masked; what is allowed, the FOLLOW mask allows; the end only on valid texts."""
    where = _shared()
    texts = valid(node)
    try:
        constraint = where.compile(node, "X").constraint
    except ConstraintError:
        assert not texts
        return
    if constraint is None:
        return
    for tokens in sorted(texts)[::40]:
        fork = constraint.fork()
        for token in tokens:
            fork.advance(token)
        assert fork.accepting and END in members(fork.allowed())
    for tokens in token_strings(PIECES, 2):
        fork = constraint.fork()
        try:
            for token in tokens:
                fork.advance(token)
            found = set(members(fork.allowed()).tolist())
        except (ConstraintViolation, ConstraintDeadEnd):
            continue
        rows = follow(node, {"X": Partial(text_of(tokens), len(tokens))}, "X", PIECES)
        assert {None if t == END else t for t in found} <= mask(rows)


_MADE = []


def _shared():
    if not _MADE:
        _MADE.append(compiler())
    return _MADE[0]


@settings(max_examples=40, deadline=None)
@given(CLAUSES, st.lists(st.integers(0, len(PIECES) - 1), max_size=5), st.integers(0, 5))
def test_rollback_is_as_if_never_advanced(node, tokens, back):
    where = _shared()
    try:
        constraint = where.compile(node, "X").constraint
    except ConstraintError:
        return
    if constraint is None:
        return
    masks, fork = [], constraint.fork()
    for token in tokens:
        try:
            masks.append(fork.allowed().tolist())
            fork.advance(token)
        except (ConstraintViolation, ConstraintDeadEnd):
            break
    steps = fork.texts
    back = min(back, len(steps))
    if back:
        fork.rollback(back)
        assert fork.allowed().tolist() == masks[len(steps)]


@pytest.mark.parametrize(
    "node",
    [
        X.one_of(["a"]) & (X.chars > 3),
        X.one_of(["a"]) & ~X.one_of(["a"]),
        X.starts_with("a") & X.starts_with("b"),
        X.words < 0,
        And((Const(False), X.chars < 3)),
        (X.chars < 2) & (X.chars > 4),
    ],
    ids=str,
)
def test_a_contradiction_is_refused_before_anything_is_generated(where, node):
    with pytest.raises(ConstraintError, match="hole X: no text fulfils"):
        where.compile(node, "X")


def test_a_dead_end_names_its_clause(where):
    """Counts and lists are no one language: that they exclude each other shows on the way."""
    constraint = where.compile(X.one_of(["a b", "b a"]) & (X.words <= 1), "X").constraint
    constraint.advance(0)
    with pytest.raises(ConstraintDeadEnd, match=r"where X in \['a b', 'b a'\] and len\(WORDS\(X\)\) <= 1"):
        constraint.advance(3)  # the space itself is fine
        constraint.allowed()


def test_unknown_holes_restrict_nothing(where):
    from likely.queries.where.nodes import UNKNOWN

    assert normal(And((X.one_of(["a"]), Compare("<", UNKNOWN, X.chars)))) == X.one_of(["a"])
    assert normal(Or((X.one_of(["a"]), Compare("==", UNKNOWN, Const(3))))) == Const(True)
    assert normal(Not(And((X.one_of(["a"]), UNKNOWN)))) == Const(True)


def test_an_operator_with_a_final_rule_avoids_tokens_and_says_it_is_approximate():
    import numpy as np

    few = op("few_a", final=lambda values, finals, result: VAR if result else FIN)(lambda t: t.count("a") < 2)
    compiled = compiler().compile(few(X), "X")
    constraint = compiled.constraint
    constraint.advance(0)
    row = np.arange(len(PIECES) + 1, dtype=np.float32)[::-1].copy()
    compiled.peek.apply((), row)
    found = {PIECES[t] for t in members(constraint.allowed()).tolist() if t != END}
    assert found == {p for p in PIECES if "a" not in p} and constraint.approximate


def test_an_operator_with_a_pattern_joins_the_regular_tier(where):
    doubled = op("doubled", regex=lambda text: "(ab){2}")(lambda t: t == "abab")
    assert terminal(normal(doubled(X))) is not None
    constraint = where.compile(doubled(X) & (X.chars > 3), "X").constraint
    assert {PIECES[t] for t in members(constraint.allowed())} == {"a", "ab"}


def test_a_length_that_explodes_is_counted(where):
    node = (X.chars < 1000) & ~X.contains("b") & (X.chars > 2)
    constraint = where.compile(node, "X").constraint
    assert {PIECES[t] for t in members(constraint.allowed())} == {"a", " ", ". ", "."}
    assert terminal(normal(X.chars < 1000)) is None


def test_predicates_see_whole_texts_only(where):
    seen = []
    node = FunctionCall("spy", lambda t: seen.append(t) or True, (X,))
    constraint = where.compile(node, "X").constraint
    constraint.advance(0)
    constraint.allowed()
    assert set(seen) <= {"", "a"}
