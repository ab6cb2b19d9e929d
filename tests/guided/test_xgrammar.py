"""The xgrammar backend: the protocol of constraints, and the same sets as the default backend."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from toy_texts import BYTES, MERGES, uniform

from likely.decoding.constraint import ConstraintViolation, count, members
from likely.errors import CapabilityError
from likely.guided.form import FormSettings, make_form
from likely.guided.guide import Guide
from likely.guided.json_schema.form import schema_form
from likely.guided.vocabulary import Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b", 12]},
        "n": {"type": "integer", "minimum": 0, "maximum": 300},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        "when": {"type": "string", "format": "date"},
    },
    "required": ["kind", "n", "tags"],
    "additionalProperties": False,
}


def test_without_the_package_the_error_names_the_command():
    code = (
        "import sys; sys.modules['xgrammar'] = None\n"
        "from likely.guided.form import FormSettings, make_form\n"
        "from likely.errors import CapabilityError\n"
        "try: make_form(schema={'type': 'null'}, settings=FormSettings(backend='xgrammar'))\n"
        "except CapabilityError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "xgrammar is not installed. Run: pip install 'likely[xgrammar]'\n"


@pytest.fixture(scope="module")
def guide() -> Guide:
    pytest.importorskip("xgrammar")
    return Guide(uniform().guide.vocabulary)


def constraint(guide, backend="xgrammar", **form):
    return guide.constraint(make_form(**form, settings=FormSettings(backend=backend, close_on_budget=False)))


def test_its_masks_are_those_of_llguidance(guide):
    """Along random texts of a schema that both hold exactly, token for token."""
    pytest.importorskip("llguidance")
    rng = random.Random(0)
    for _ in range(30):
        mine, other = constraint(guide, schema=SCHEMA), constraint(guide, "llguidance", schema=SCHEMA)
        while not mine.finished:
            allowed = members(mine.allowed()).tolist()
            assert allowed == members(other.allowed()).tolist()
            assert mine.accepting == other.accepting
            token = rng.choice(allowed)
            mine.advance(token)
            other.advance(token)


def test_rollback_and_fork(guide):
    rng = random.Random(1)
    for _ in range(20):
        state, masks, taken = constraint(guide, schema=SCHEMA), [], []
        while not state.ended:
            masks.append(state.allowed().copy())
            token = rng.choice(members(masks[-1]).tolist())
            state.advance(token)
            taken.append(token)
        twin = state.fork()
        back = rng.randint(1, len(taken))
        state.rollback(back)
        assert (state.allowed() == masks[len(taken) - back]).all()
        for token in taken[len(taken) - back :]:
            state.advance(token)
        assert state.ended and twin.ended and count(twin.allowed()) == 0


def test_a_wrong_token_is_refused_and_changes_nothing(guide):
    state = constraint(guide, schema=SCHEMA)
    before = state.allowed().copy()
    for token in (ord("x"), guide.vocabulary.eos_id):
        with pytest.raises(ConstraintViolation):
            state.advance(token)
        assert not state.permits(token)
    assert (state.allowed() == before).all()


def test_forced_tokens_do_follow(guide):
    rng, met = random.Random(2), 0
    for _ in range(10):
        state = constraint(guide, schema=SCHEMA)
        while not state.ended:
            for token in (ahead := state.fork()).forced():
                if token not in guide.vocabulary.end_ids:
                    met += 1
                ahead.advance(token)
            state.advance(rng.choice(members(state.allowed()).tolist()))
    assert met > 20


def test_padded_rows_and_control_tokens_are_never_allowed():
    pytest.importorskip("xgrammar")
    tokenizer = PieceTokenizer([*BYTES, *MERGES], control=["<end>", "<other>"])
    vocabulary = Vocabulary.of(tokenizer, tokenizer.vocab_size + 77)
    state = constraint(Guide(vocabulary), schema={"type": "string"})
    state.advance(ord('"'))
    assert all(vocabulary.tokens[token] for token in members(state.allowed()))


def test_choices_and_plain_regular_expressions(guide):
    for form, texts in (
        ({"choices": ["a", "ab", 'é"\\\n']}, {"a", "ab", 'é"\\\n'}),
        ({"regex": "[ab]{1,2}-(x|y)"}, {f"{a}-{b}" for a in ("a", "b", "aa", "ab", "ba", "bb") for b in "xy"}),
    ):
        seen = {r.text for r in uniform().generate("a", **form, backend="xgrammar", n=150, max_tokens=20)}
        assert seen == texts
    for form in ({"regex": "^a$"}, {"regex": "[^a]"}, {"regex": "(?=a)."}, {"grammar": 'start: "a"'}):
        with pytest.raises(CapabilityError, match="llguidance"):
            constraint(guide, **form)


def test_generated_values_follow_the_schema(guide):
    results = uniform().generate("a", schema=SCHEMA, backend="xgrammar", n=20, max_tokens=300)
    form = schema_form(SCHEMA, FormSettings(backend="xgrammar"))
    assert all(form.read(r.text) == r.value for r in results if r.complete) and any(r.complete for r in results)
    assert np.isfinite([r.log_weight for r in results]).all()
