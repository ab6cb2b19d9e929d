"""Drafts by way of the text: always exact, and the traps of encoding again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from helpers_for_loops import run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.decoding.drafting.model.cross_tokenizer import (
    CrossTokenizerModel,
    Translation,
    encode_exactly,
    whole_characters,
)
from likely.decoding.drafting.model.drafter import draft_model
from likely.decoding.drafting.protocol import SamplingContext
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.runtimes.protocol import Capabilities
from likely.runtimes.toy import ToyRuntime

WORDS = PieceTokenizer([b"a", b"b", b" ", b"ab", b" a", b"aab"], control=["<|im_end|>", "<end>"])
LETTERS = PieceTokenizer([b" ", b"b", b"a", b"ba"], control=["<bos>", "<end>"], bos="<bos>")
SNOW = "☃".encode()  # three bytes
BYTES = PieceTokenizer([b"x", SNOW[:1], SNOW[1:2], SNOW[2:], b"y"], control=["<end>"])
PAIRS = PieceTokenizer([b"y", SNOW[:2], SNOW[2:], b"x", SNOW[:1], SNOW[1:2]], control=["<end>"])


def says(tokenizer, text, **limits):
    """A model that writes `text` over and over: after any prefix, what follows its last occurrence's length."""
    ids = tokenizer.encode(text)

    def logits(prefix):
        row = np.zeros(tokenizer.vocab_size, np.float32)
        row[ids[len(prefix) % len(ids)]] = 9.0
        return row

    return ToyRuntime(logits, vocab_size=tokenizer.vocab_size, **{"context_length": 200, **limits})


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(temperature=1.3, top_p=0.95, seed=3)])
@pytest.mark.parametrize("tokenizers", [(WORDS, LETTERS), (LETTERS, WORDS), (BYTES, PAIRS), (PAIRS, BYTES)])
def test_tokens_are_those_of_plain_decoding(sampling, tokenizers):
    ours, theirs = tokenizers
    target = ToyRuntime.random(ours.vocab_size, seed=2, context_length=64)
    draft = ToyRuntime.random(theirs.vocab_size, seed=4, context_length=96)
    requests = [
        Request((0, 1, 2), sampling, max_tokens=16, draft_budget=6),
        Request((4, 2), sampling, max_tokens=12, samples=3, draft_budget=4),
    ]
    plain = run(toy_loop(target), *requests)
    source = draft_model(draft, theirs, ours, name="model:other")
    assert isinstance(source, CrossTokenizerModel)
    drafted = run(toy_loop(target), *(replace(r, drafter=source) for r in requests))
    assert [[f.tokens for f in g] for g in drafted] == [[f.tokens for f in g] for g in plain]
    assert ours in (BYTES, PAIRS) or sum(f.proposed for g in drafted for f in g) > 0  # random bytes are hardly text
    assert not draft._open and draft.free_tokens() == draft.limits.tokens_held


def test_a_draft_that_knows_the_text_is_kept():
    """The target writes "ab ab ab ..", the draft the same in letters: most of what is emitted was drafted."""
    target = says(WORDS, "aab ab")
    answer = run(toy_loop(target), Request((5,), Sampling(temperature=0.0), max_tokens=12))[0][0].tokens
    letters = LETTERS.encode(b"".join(map(WORDS.token_bytes, [5, *answer])).decode())

    def logits(prefix):
        row = np.zeros(LETTERS.vocab_size, np.float32)
        row[letters[min(len(prefix) - 1, len(letters) - 1)]] = 9.0
        return row

    draft = ToyRuntime(logits, vocab_size=LETTERS.vocab_size, context_length=200)
    source = CrossTokenizerModel(draft, LETTERS, WORDS, length=8)
    request = Request((5,), Sampling(temperature=0.0), max_tokens=12, drafter=source, draft_budget=8)
    [[finished]] = run(toy_loop(target), request)
    assert finished.tokens == answer and finished.accepted >= 6
    assert draft.tokens_computed <= 2 * len(letters)  # what was right stays in its cache


# --- traps ----------------------------------------------------------------------------------------------------------


def propose(context, draft_text, *, ours=WORDS, theirs=LETTERS, budget=9, length=9):
    """The draft for a context of target tokens when the other model writes `draft_text` and then ends."""
    ids, _ = Translation(ours, theirs).ids(context)
    written = theirs.encode(draft_text) if isinstance(draft_text, str) else draft_text

    def logits(prefix):
        row = np.zeros(theirs.vocab_size, np.float32)
        at = len(prefix) - len(ids)
        row[written[at] if at < len(written) else theirs.vocab_size - 1] = 9.0
        return row

    runtime = ToyRuntime(logits, vocab_size=theirs.vocab_size, context_length=200)
    source = CrossTokenizerModel(runtime, theirs, ours, length=length)
    return source.begin(context, SamplingContext()).propose(budget).tokens.tolist()


def test_what_was_written_becomes_target_tokens():
    assert propose([3, 4], "b aab") == [1, 4, 3]  # "ab a" + "b", " a", "ab"


def test_text_that_would_change_the_tail_is_encoded_alone():
    """ "a" + "b" would be encoded as "ab": the target holds "a" and can only emit "b"."""
    assert WORDS.encode("ab") == [3]
    assert propose([0], "b") == [1]


def test_the_budget_is_kept():
    assert propose([3], " b b b b", budget=3) == [2, 1, 2]
    assert propose([3], " b b b b", budget=0) == []


def test_a_character_cut_by_the_context_is_finished():
    """The target stands inside a snowman; the other model cannot see a part of one, and writes all of it."""
    snowman = [1, 2, 3]
    assert propose([0, 1], PAIRS.encode("☃x"), ours=BYTES, theirs=PAIRS) == [*snowman[1:], 0]
    assert propose([0, 1, 2], PAIRS.encode("☃"), ours=BYTES, theirs=PAIRS) == [3]
    assert propose([0, 1], PAIRS.encode("yy"), ours=BYTES, theirs=PAIRS) == []  # it writes something else


def test_a_character_cut_by_the_draft_is_dropped():
    assert propose([0], [3, 1], ours=BYTES, theirs=PAIRS) == [0]  # "x" and two bytes of a snowman
    assert propose([0], [1], ours=BYTES, theirs=PAIRS) == []


def test_the_draft_ends_at_a_control_token():
    assert propose([3], [1, LETTERS.eos_id, 1]) == [1]
    assert propose([3], [LETTERS.bos_id, 1]) == []


def test_length_counts_tokens_of_the_draft():
    assert propose([3], " b b b b", length=2) == [2, 1]


def test_control_tokens_in_the_context():
    chat = PieceTokenizer(
        [b"a", b"b", b"<", b">", b"|", b"_", *(bytes([c]) for c in b"imend")],
        control=["<s>", "<|im_end|>", "<end>"], bos="<s>",
    )  # fmt: skip
    named = PieceTokenizer([b"a", b"b", b"ab"], control=["<bos>", "<|im_end|>"], bos="<bos>")
    bos, end = chat.bos_id, chat.special_tokens["<|im_end|>"]
    to_named = Translation(chat, named)
    assert to_named.ids([bos, 0, 1, end, 0]) == ([named.bos_id, 2, named.special_tokens["<|im_end|>"], 0], b"")
    assert to_named.ids([0]) == ([named.bos_id, 0], b"")  # the model wants one, the text has none
    plain = PieceTokenizer([bytes([c]) for c in b"abimend<>|_"])
    ids, _ = Translation(chat, plain).ids([0, end, 1])
    assert b"".join(map(plain.token_bytes, ids)) == b"a<|im_end|>b"  # spelled out


def test_bytes_that_are_no_text_do_not_stop_it():
    lossy = PieceTokenizer([b"x", b"y", "\ufffd".encode()], control=["<end>"])
    assert Translation(BYTES, lossy).ids([0, 3, 0]) == ([0, 2, 0], b"")
    assert propose([0, 3, 0], [1], ours=BYTES, theirs=lossy) == [4]


def test_a_space_in_front_of_every_text_is_taken_away():
    spaced = PieceTokenizer([b"a", b"b", b" ", b" a"], adds_space=True)
    assert encode_exactly(spaced, b" ab") == [3, 1]
    assert encode_exactly(spaced, b"ab") is None  # it cannot write a word without one
    ids, _ = Translation(WORDS, spaced).ids([4, 1, 4])
    assert b"".join(map(spaced.token_bytes, ids)) == b" ab a"


def test_whole_characters():
    assert [whole_characters(SNOW[:n]) for n in range(4)] == [b"", b"", b"", SNOW]
    assert whole_characters(b"a\xffb" + SNOW[:2]) == b"a\xffb"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 7), st.integers(-4, -1)), max_size=40))
def test_a_translation_follows_the_text(steps):
    """Grown and shrunk piece by piece, it says the same text as one made at once, and ends in the same ids."""
    followed, tokens = Translation(WORDS, LETTERS), []
    for step in steps:
        if step < 0:
            del tokens[step:]
        else:
            tokens.append(step)
        ids, begun = followed.ids(tokens)
        anew, begun_anew = Translation(WORDS, LETTERS).ids(tokens)
        assert begun == begun_anew == b""
        assert b"".join(map(LETTERS.token_bytes, ids)) == b"".join(map(LETTERS.token_bytes, anew))


def test_long_texts_are_not_encoded_again_and_again():
    tokenizer = PieceTokenizer([b" ", b"b", b"a", b"ba"], control=["<bos>"], bos="<bos>")
    translation, tokens = Translation(WORDS, tokenizer), [0, 2, 1, 2] * 500
    translation.ids(tokens)
    before = tokenizer.encoded
    for token in (0, 2, 1, 2) * 5:
        tokens.append(token)
        translation.ids(tokens)
    assert tokenizer.encoded - before < 20 * 40


def test_rollback_and_fork_keep_the_guesses_right():
    draft = ToyRuntime.random(LETTERS.vocab_size, seed=4, context_length=200)
    source = CrossTokenizerModel(draft, LETTERS, WORDS)
    drafter = source.begin([0, 1, 4], SamplingContext())
    drafter.propose(5)
    drafter.observe([3, 2, 6, 0])
    drafter.rollback(3)
    twin = drafter.fork(SamplingContext())
    expected = source.begin([0, 1, 4, 3], SamplingContext()).propose(5).tokens.tolist()
    assert drafter.propose(5).tokens.tolist() == expected == twin.propose(5).tokens.tolist()
    with pytest.raises(ValueError, match="cannot forget 2"):
        drafter.rollback(2)
    for each in (drafter, twin):
        each.end()
        each.end()
    assert twin.propose(3).tokens.tolist() == []


def test_no_room_is_no_guess_and_no_error():
    target = ToyRuntime.random(WORDS.vocab_size, seed=2, context_length=64)
    requests = [Request((0, i), Sampling(seed=1), max_tokens=10, draft_budget=4) for i in range(3)]
    plain = run(toy_loop(target), *requests)
    for limits in ({"tokens_held": 14}, {"sequences": 1}, {"context_length": 8}):
        draft = ToyRuntime.random(LETTERS.vocab_size, seed=4, **limits)
        source = CrossTokenizerModel(draft, LETTERS, WORDS)
        found = run(toy_loop(target), *(replace(r, drafter=source) for r in requests))
        assert [g[0].tokens for g in found] == [g[0].tokens for g in plain]
        assert not draft._open and draft.free_tokens() == draft.limits.tokens_held


def test_wrong_settings_are_refused():
    draft = ToyRuntime.random(6, seed=4)
    with pytest.raises(ValueError, match="length must be >= 1"):
        CrossTokenizerModel(draft, LETTERS, WORDS, length=0)
    draft.capabilities = Capabilities()
    with pytest.raises(CapabilityError, match="llamacpp, torch, native"):
        CrossTokenizerModel(draft, LETTERS, WORDS)
    with pytest.raises(CapabilityError, match="known q"):
        source = CrossTokenizerModel(ToyRuntime.random(6, seed=4), LETTERS, WORDS)
        Request((1,), drafter=source, verification="rejection")
