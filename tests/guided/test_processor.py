"""Forms inside transformers and llama-cpp-python: what they write is what likely writes under the same form."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from tiny_gguf import write_tiny_llama

import likely
from likely.decoding.constraint import ConstraintDeadEnd
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.processor import TrackedConstraint, for_llama_cpp, for_transformers, widened
from likely.guided.vocabulary import Vocabulary
from likely.models.convert import convert

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
FORMS = {
    "schema": {"schema": SCHEMA},
    "regex": {"regex": "(cat|dog)s? [0-9]{2,3}"},
    "choices": {"choices": ["yes", "yes please", "no"]},
    "grammar": {"grammar": 'start: "a" start "b" | "-"'},
}
PROMPTS = ["the cat sat", "this is the answer to the question, then"]
TOKENS = 40


# --- states are found again by their text -----------------------------------------------------------------------------

PIECES = [b"a", b"b", b"ab", b"ba", b"c"]
TOY = Vocabulary.of(PieceTokenizer(PIECES, control=["<end>"]), 6)
END = 5


def tracked(pattern: str, **options) -> TrackedConstraint:
    form = make_form(regex=pattern)
    return TrackedConstraint(Guide(TOY).constraint(form), TOY, **options)


def fresh(pattern: str, text) -> np.ndarray:
    """The mask after a text, by walking there from the beginning."""
    constraint = Guide(TOY).constraint(make_form(regex=pattern))
    for token in text:
        constraint.advance(token)
    from likely.decoding.constraint import unpack

    return unpack(constraint.allowed(), TOY.size)


PATTERN = "(ab|ba)*c?"


def texts_of(length: int) -> list[tuple[int, ...]]:
    """All token texts of this length that the pattern still allows."""
    found = [()]
    for _ in range(length):
        found = [(*t, int(v)) for t in found for v in np.flatnonzero(fresh(PATTERN, t)) if v != END]
    return found


def test_rows_may_be_any_texts_in_any_order():
    """Beams change places, double and vanish; drafts are taken back."""
    ours, rng = tracked(PATTERN), np.random.default_rng(0)
    prompt = [4, 4, 1]
    ours.allowed(np.array([prompt]))
    for length in (1, 2, 3, 2, 3, 4, 1, 2):
        every = texts_of(length)
        chosen = [every[i] for i in rng.integers(0, len(every), 5)]
        masks = ours.allowed(np.array([[*prompt, *t] for t in chosen]))
        for text, mask in zip(chosen, masks, strict=True):
            np.testing.assert_array_equal(mask, fresh(PATTERN, text))


def test_a_broken_row_allows_nothing_and_stays_broken():
    ours = tracked("ab")
    ours.allowed(np.array([[4], [4]]))
    broken, good = ours.allowed(np.array([[4, 4], [4, 0]]))
    assert not broken.any() and good[1]
    broken, _ = ours.allowed(np.array([[4, 4, 1], [4, 0, 1]]))
    assert not broken.any()


def test_after_its_end_a_row_is_left_alone_whatever_pads_it():
    ours = tracked("a(b|bb)")
    ours.allowed(np.array([[4], [4]]))
    ours.allowed(np.array([[4, 2], [4, 0]]))
    ours.allowed(np.array([[4, 2, END], [4, 0, 1]]))
    for padding in ([0], [END], [4]):
        ended, open_ = ours.allowed(np.array([[4, 2, END, *padding], [4, 0, 1, 1]]))
        assert ended is None and set(np.flatnonzero(open_)) == {END}


def test_another_prompt_begins_anew():
    ours = tracked("ab")
    first = ours.allowed(np.array([[4, 4]]))[0]
    ours.allowed(np.array([[4, 4, 0]]))
    for prompt in ([[1, 1, 1]], [[4, 4, 0, 4, 4, 4]], [[4, 4]], [[3]], [[2, 2], [3, 3]]):
        for mask in ours.allowed(np.array(prompt)):
            np.testing.assert_array_equal(mask, first)


def test_the_budget_closes_the_text():
    assert set(np.flatnonzero(tracked("(ab)+").allowed(np.array([[4]]))[0])) == {0, 2}
    assert set(np.flatnonzero(tracked("(ab)+", max_new_tokens=1).allowed(np.array([[4]]))[0])) == {2}
    ours = tracked("(ab)+", max_new_tokens=3)
    ours.allowed(np.array([[4]]))
    ours.allowed(np.array([[4, 2]]))
    assert set(np.flatnonzero(ours.allowed(np.array([[4, 2, 2]]))[0])) == {2, END}  # one token is left


def test_what_cannot_go_on_is_an_error():
    class Stuck:
        vocab_size, accepting, finished = TOY.size, False, False

        def allowed(self, remaining=None):
            return np.zeros(1, np.uint32)

        def fork(self):
            return self

    with pytest.raises(ConstraintDeadEnd):
        TrackedConstraint(Stuck(), TOY).allowed(np.array([[4]]))


def test_wider_rows_and_narrower_ones():
    allowed = np.array([True, False, True])
    assert widened(allowed, 5).tolist() == [True, False, True, False, False]
    assert widened(allowed, 2).tolist() == [True, False]


# --- the same text as likely's own ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("processor") / "tiny.gguf", dtype="F32")


@pytest.fixture(scope="module")
def folder(gguf, tmp_path_factory):
    target = tmp_path_factory.mktemp("processor") / "hf"
    convert(gguf, target, to="safetensors", verify=False)
    return target


@pytest.fixture(scope="module")
def theirs(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(), tokenizer


@pytest.fixture(scope="module")
def ours(folder):
    with likely.load(str(folder), runtime="torch", dtype="float32") as lm:
        yield lm


def valid(kind: str, text: str) -> bool:
    if kind == "schema":
        import jsonschema

        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    pattern = {"regex": r"(cat|dog)s? [0-9]{2,3}", "choices": "yes|yes please|no", "grammar": r"(a*)-(b*)"}[kind]
    match = re.fullmatch(pattern, text)
    return bool(match) and (kind != "grammar" or len(match[1]) == len(match[2]))


def generated(theirs, kind, prompts=PROMPTS, **options):
    """Token ids of each row after the prompt, up to its end token, and the text."""
    model, tokenizer = theirs
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    processor = for_transformers(
        tokenizer, end_ids=model.generation_config.eos_token_id, max_new_tokens=TOKENS, **FORMS[kind]
    )
    rows = model.generate(
        **batch, max_new_tokens=TOKENS, logits_processor=[processor], pad_token_id=tokenizer.pad_token_id, **options
    )
    out = []
    ends = processor.tracked.vocabulary.end_ids
    for row in rows[:, batch["input_ids"].shape[1] :].tolist():
        at = next((i for i, t in enumerate(row) if t in ends), len(row))
        out.append((row[: at + 1], processor.tracked.vocabulary.text(row[:at]).decode()))
    return out


@pytest.mark.parametrize("kind", list(FORMS))
def test_greedy_in_transformers_is_greedy_here(theirs, ours, kind):
    mine = ours.generate(PROMPTS, temperature=0, max_tokens=TOKENS, **FORMS[kind])
    for expected, (ids, text) in zip(mine, generated(theirs, kind, do_sample=False), strict=True):
        assert ids == expected.token_ids and text == expected.text
        assert valid(kind, text)


@pytest.mark.parametrize("kind", list(FORMS))
def test_samples_and_beams_in_transformers_are_valid(theirs, kind):
    import torch

    torch.manual_seed(0)
    sampled = generated(theirs, kind, do_sample=True, num_return_sequences=3)
    beams = generated(theirs, kind, do_sample=False, num_beams=3, num_return_sequences=1)
    assert len(sampled) == 6 and len(beams) == 2
    for _, text in itertools.chain(sampled, beams):
        assert valid(kind, text)


@pytest.mark.parametrize("kind", list(FORMS))
def test_greedy_in_llama_cpp_python_is_greedy_here(gguf, kind):
    from llama_cpp import Llama, LogitsProcessorList

    llama = Llama(str(gguf), n_ctx=256, n_threads=1, verbose=False)
    processor = for_llama_cpp(llama, max_tokens=TOKENS, **FORMS[kind])
    with likely.load(str(gguf), runtime="llamacpp") as lm:
        for prompt in PROMPTS:
            expected = lm.generate(prompt, temperature=0, max_tokens=TOKENS, **FORMS[kind])
            found = llama.create_completion(
                prompt, max_tokens=TOKENS, temperature=0, logits_processor=LogitsProcessorList([processor])
            )
            assert processor.error is None
            assert found["choices"][0]["text"] == expected.text and valid(kind, expected.text)
            assert found["choices"][0]["finish_reason"] == "stop"
    llama.close()


def test_an_error_inside_llama_cpp_ends_the_text_and_is_kept(gguf):
    from llama_cpp import Llama, LogitsProcessorList

    llama = Llama(str(gguf), n_ctx=256, n_threads=1, verbose=False)
    processor = for_llama_cpp(llama, choices=["yes"])
    calls = []

    def dead(self, remaining=None):
        calls.append(1)
        return np.zeros((processor.tracked.vocabulary.size + 31) // 32, np.uint32)

    start = processor.tracked.start
    processor.tracked.start = type("Stuck", (), {"fork": lambda self: self, "allowed": dead, "finished": False})()
    found = llama.create_completion(
        "the", max_tokens=9, temperature=0, logits_processor=LogitsProcessorList([processor])
    )
    assert calls and found["choices"][0]["text"] == "" and isinstance(processor.error, ConstraintDeadEnd)
    processor.tracked.start = start
    llama.close()


def test_bad_forms_are_refused(theirs):
    _, tokenizer = theirs
    with pytest.raises(ValueError, match="exactly one of"):
        for_transformers(tokenizer)
    with pytest.raises(TypeError, match="patern"):
        for_transformers(tokenizer, regex="a", patern=1)
    other = Guide(TOY).constraint(make_form(regex="a"))
    with pytest.raises(ValueError, match="made for 6 tokens"):
        for_transformers(tokenizer, constraint=other)
    with pytest.raises(ValueError, match="drop regex"):
        for_transformers(tokenizer, constraint=other, regex="a")
