from __future__ import annotations

import json

import numpy as np
import pytest
from small_vocabularies import all_bytes, of
from toy_texts import uniform

from likely.decoding.constraint import contains, members
from likely.errors import ConstraintError
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.length_limit.constraint import LengthLimit, why_cut
from likely.guided.length_limit.tokenization import UNWRITABLE, ShortestTokenization
from likely.guided.settings import FormSettings

pytest.importorskip("llguidance")

GUIDE = Guide(all_bytes())
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"],
     "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
    {"enum": ["yes", "maybe not", 12, None]},
    {"type": "object"},
    {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 9}]},
    {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"},
     "value": {"type": "number"}}, "required": ["value"], "additionalProperties": False}}},
]  # fmt: skip
REGEXES = [
    r"[0-9]{2}", r"a|b[0-9]{40}", r"(ab)*c", r"[^\n]*\n", r"\"[^\"]*\"", r"(yes|no)( maybe)*!", r"\w+@\w+", r"x{3,30}y",
    r"(a|b{20}c)+d",
]  # fmt: skip
PATTERNS = [
    {"type": "string", "format": "email"}, {"type": "string", "format": "uri"}, {"type": "string", "format": "time"},
    {"type": "string", "pattern": r"^\S+@\S+$"}, {"type": "string", "pattern": "foo[0-9]+bar"},
    {"type": "string", "pattern": "^[A-Z][a-z]+ [A-Z][a-z]+$", "minLength": 12},
    {"type": "object", "properties": {"m": {"format": "email", "type": "string"}, "u": {"format": "uri"}},
     "required": ["m", "u"]},
]  # fmt: skip
SCHEMAS += PATTERNS
SQL = """start: "SELECT " cols " FROM " NAME (" WHERE " cond)? ";"
cols: "*" | NAME ("," NAME)*
cond: NAME "=" (NUM | STR) (" AND " cond)?
NAME: /[a-z_]+/
NUM: /[0-9]+/
STR: /'[^']*'/"""
GRAMMARS = [SQL, 'start: "(" start* ")" | /[a-z]+/', 'start: "{" (start ";")* "}" | "a" "b"* "end"']
LOVES = {"uniform": b"", "brackets": b"{[(", "quotes": b'"', "digits": b"0123456789", "letters": b"abxy z"}


FORMS = [
    *(make_form(schema=schema) for schema in SCHEMAS),
    *(make_form(regex=regex) for regex in REGEXES),
    *(make_form(grammar=grammar) for grammar in GRAMMARS),
    make_form(choices=["no", "not", "maybe not today"]),
]


def limited(form, guide=GUIDE) -> LengthLimit:
    constraint = guide.constraint(form)
    assert isinstance(constraint, LengthLimit)
    return constraint


def write(constraint, vocabulary, budget, love, rng, late=True):
    """A text of a model without opinions, or one that loves some bytes; as the loop writes it."""
    tokens = []
    while len(tokens) < budget:
        ids = members(constraint.allowed(budget - len(tokens)))
        assert len(ids), vocabulary.text(tokens)
        weights = np.array([1 + 1e6 * sum(vocabulary.tokens[i].count(b) for b in love) for i in ids], float)
        while True:
            at = int(rng.choice(len(ids), p=weights / weights.sum()))
            if not late or constraint.permits(int(ids[at])):
                break
            weights[at] = 0
        tokens.append(int(ids[at]))
        constraint.advance(tokens[-1])
        if tokens[-1] in vocabulary.end_ids:
            break
    return tokens


@pytest.mark.sampled(12)
@pytest.mark.parametrize("love", LOVES)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.kind} {str(f.source)[:30]}")
def test_every_budget_from_the_shortest_completion_upward_is_enough(form, love):
    rng = np.random.default_rng(0)
    shortest = limited(form).completer.tokens_needed
    for budget in [max(1, shortest), *(shortest + n for n in (1, 2, 3, 4, 5, 7, 9, 12, 16, 23, 40))]:
        constraint = limited(form)
        tokens = write(constraint, GUIDE.vocabulary, budget, LOVES[love], rng)
        assert constraint.accepting, GUIDE.vocabulary.text(tokens)
        if form.kind == "schema":
            json.loads(GUIDE.vocabulary.text(tokens))


def random_schema(rng, depth=0, inside=False):
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "short"]
    kind = str(
        rng.choice([*kinds, *(["object", "array", "any"] * 2 if depth < 3 else []), *(["ref"] if inside else [])])
    )
    if kind == "enum":
        return {"enum": ["red", "a rather long constant", 7, None][: int(rng.integers(1, 5))]}
    if kind == "short":
        return {"type": "string", "minLength": int(rng.integers(0, 6)), "maxLength": int(rng.integers(6, 9))}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": int(rng.integers(0, 4))}
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth + 1, inside) for _ in range(2)]}
    if kind == "object":
        names = ["a", "name", "the long name", "x1"][: int(rng.integers(1, 5))]
        required = [n for n in names if rng.random() < 0.5]
        properties = {n: random_schema(rng, depth + 1, inside=n not in required) for n in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "ref":
        return {"$ref": "#"}
    return {"type": kind}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("late", [True, False], ids=["judged late", "masks alone"])
@pytest.mark.parametrize("seed", range(30))
def test_random_schemas_are_always_completed(seed, late):
    rng = np.random.default_rng(seed)
    form = make_form(schema=random_schema(rng))
    shortest = limited(form).completer.tokens_needed
    for extra in (0, 1, 2, 4, 8, 20, 45) if shortest < 100 else (0, 3):
        love = list(LOVES.values())[int(rng.integers(len(LOVES)))]
        constraint = limited(form)
        tokens = write(constraint, GUIDE.vocabulary, max(1, shortest + extra), love, rng, late)
        assert constraint.accepting, GUIDE.vocabulary.text(tokens)
        json.loads(GUIDE.vocabulary.text(tokens))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.kind} {str(f.source)[:30]}")
def test_too_small_a_budget_is_an_error_that_says_how_many(form):
    shortest = limited(form).completer.tokens_needed
    if shortest < 2:
        pytest.skip("nothing smaller")
    with pytest.raises(ConstraintError, match=f"takes {shortest} tokens"):
        limited(form).allowed(shortest - 1)


def test_without_the_limit_texts_are_cut():
    """The negative control: what the tests above would say of the bare constraint."""
    form = make_form(regex=r"\"[^\"]*\"", settings=FormSettings(close_on_budget=False))
    constraint = GUIDE.constraint(form)
    write(constraint, GUIDE.vocabulary, 30, LOVES["letters"], np.random.default_rng(0))
    assert not constraint.accepting


def test_far_from_the_end_nothing_is_left_out():
    for form in FORMS:
        constraint = limited(form)
        np.testing.assert_array_equal(constraint.allowed(5000), constraint.inner.allowed())
        assert not constraint.approximate


def brute_needed(automaton, vocabulary, state, most):
    """Fewest tokens to acceptance: breadth first over all tokens."""
    reached = {state}
    for n in range(most + 1):
        if any(automaton.accepting[s] for s in reached):
            return n
        reached = {e for s in reached for t in vocabulary.ids_of if (e := automaton.walk(s, t)) >= 0}
    return UNWRITABLE


@pytest.mark.parametrize("regex", [r"[0-9]{4}", r"(ab)*c", r"a{2}|bcbc", r"(abc){2}"])
def test_regex_masks_leave_out_exactly_what_cannot_be_completed(regex):
    """Where the shortest completion in bytes is the shortest in tokens the sets are exact, by brute force."""
    vocabulary = of(b"a", b"b", b"c", b"ab", b"abc", b"bc", b"0", b"1", b"01", b"00")
    constraint = limited(make_form(regex=regex), Guide(vocabulary))
    automaton = constraint.completer.automaton
    for budget in range(constraint.completer.tokens_needed, 9):
        if budget:
            mask = constraint.allowed(budget)
            for text, ids in vocabulary.ids_of.items():
                state = automaton.walk(0, text)
                fits = state >= 0 and brute_needed(automaton, vocabulary, state, 9) <= budget - 1
                assert all(contains(mask, i) == fits for i in ids), (text, budget)


@pytest.mark.slow
def test_the_mask_is_a_function_of_text_and_budget():
    """Asked or not before, forked, rolled back, on another path in between: the same set."""
    rng = np.random.default_rng(3)
    for form in FORMS:
        tokens = write(limited(form), GUIDE.vocabulary, 20, b"", rng)
        tokens = [t for t in tokens if t not in GUIDE.vocabulary.end_ids]
        asked, silent = limited(form), limited(form)
        for n, token in enumerate(tokens):
            asked.allowed(20 - n)
            fork = asked.fork()
            others = members(fork.allowed())
            if others[0] not in GUIDE.vocabulary.end_ids:
                fork.advance(int(others[0]))
                fork.allowed(19 - n)
                fork.rollback(1)
            np.testing.assert_array_equal(fork.allowed(20 - n), asked.allowed(20 - n))
            asked.advance(token)
            silent.advance(token)
            np.testing.assert_array_equal(silent.allowed(19 - n), asked.allowed(19 - n))


def test_a_form_whose_completion_is_not_found_is_not_closed():
    form = make_form(grammar='start: "a" start "b" | /[xy]{5000}/')
    held = GUIDE.constraint(form)
    assert not isinstance(held, LengthLimit)
    assert "no completion of this grammar was found" in why_cut(form, held)
    closed = make_form(regex="[ab]{3}")
    assert not why_cut(closed, GUIDE.constraint(closed))
    with pytest.warns(UserWarning, match="no completion of this grammar was found"):
        uniform().generate("", grammar=form.source, max_tokens=2)


def test_spelling_is_the_fewest_and_shrinks_by_one_with_its_first_token():
    vocabulary = of(b"a", b"ab", b"abc", b"bc", b"c", b"b", b"cab")
    spelling = ShortestTokenization(vocabulary)

    def slow(text):
        if not text:
            return 0
        return 1 + min(slow(text[len(t) :]) for t in vocabulary.ids_of if text.startswith(t))

    rng = np.random.default_rng(0)
    for _ in range(60):
        text = bytes(rng.choice(list(b"abc"), int(rng.integers(0, 9))).tolist())
        assert spelling.fewest_tokens(text) == slow(text)
        if text:
            assert spelling.fewest_tokens(text[len(spelling.first_token(text)) :]) == slow(text) - 1
    assert spelling.fewest_tokens(b"ad") >= UNWRITABLE
    with pytest.raises(ValueError, match="no tokens"):
        spelling.first_token(b"d")


def test_bytes_that_no_token_writes_are_not_planned_with():
    vocabulary = of(b"{", b"}", b'"', b"a", b":", b"1", b"2", b"b", b",", b" ")  # no 0
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    constraint = limited(make_form(schema=schema), Guide(vocabulary))
    assert json.loads(constraint.completer.completion) == {"a": 1}
