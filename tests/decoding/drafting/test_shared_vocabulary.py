"""Drafts from the tokens that two vocabularies share: a proper q of the target's tokens, exact under every rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from helpers_for_loops import run, toy_loop
from statistics_of_draws import chi_square_p

from likely.decoding.drafting.model.shared_vocabulary import SharedVocabulary, shared_ids, shared_vocabulary_model
from likely.decoding.drafting.protocol import DraftDistribution, SamplingContext
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import ModelError
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime

TARGET = PieceTokenizer([b"a", b"b", b"c", b"ab", b" d"], control=["<s>"], bos="<s>")
DRAFT = PieceTokenizer([b"c", b"x", b"b", b"a", b" ", b"d", b"bc"], control=["<bos>", "<end>"], bos="<bos>")
WARM = Sampling(temperature=0.9, top_p=0.95, seed=4)


def models(**limits):
    target = ToyRuntime.random(TARGET.vocab_size, seed=1, scale=1.0, context_length=64)
    draft = ToyRuntime.random(DRAFT.vocab_size, seed=2, scale=1.0, **{"context_length": 64, **limits})
    return target, draft


def test_shared_ids_are_equal_strings():
    ours, theirs = shared_ids(DRAFT, TARGET)
    assert theirs.tolist() == [0, 1, 2] and ours.tolist() == [3, 2, 0]


def test_of_two_ids_with_the_same_bytes_the_one_in_use_counts():
    twice = PieceTokenizer([b"a", b"b"])
    twice._pieces += [b"b"]
    twice.vocab_size = 3
    assert shared_ids(twice, TARGET)[0].tolist() == [0, 1]
    twice.encode = lambda text: [2]
    assert shared_ids(twice, TARGET)[0].tolist() == [0, 2]


def test_context_is_told_token_by_token():
    vocabulary = SharedVocabulary(DRAFT, TARGET, draft_size=9, target_size=6)
    told = {token: list(vocabulary.ids(token)) for token in range(6)}
    assert told == {0: [3], 1: [2], 2: [0], 3: [3, 2], 4: [4, 5], 5: [DRAFT.bos_id]}
    assert vocabulary.start([0]) == (DRAFT.bos_id,) and vocabulary.start([5, 0]) == ()
    assert len(vocabulary) == 3 and vocabulary.id(2) == 0


def test_half_characters_are_spelled_in_bytes():
    snow = "☃".encode()
    target = PieceTokenizer([snow[:2], snow[2:], b"a"])
    vocabulary = SharedVocabulary(PieceTokenizer([b"a", *(snow[i : i + 1] for i in range(3))]), target,
                                  draft_size=4, target_size=3)  # fmt: skip
    assert [list(vocabulary.ids(t)) for t in range(3)] == [[1, 2], [3], [0]]


def test_q_is_restricted_and_renormalised():
    _, draft = models()
    source = shared_vocabulary_model(draft, DRAFT, TARGET)
    made = source.begin([5, 0, 3], SamplingContext(Sampling(), verification="rejection")).propose(3)
    context = [DRAFT.bos_id, 3, 3, 2]
    assert made.distribution is DraftDistribution.IID
    for node in range(-1, 2):
        q = np.exp(made.log_q[node].astype(float))
        assert q.shape == (6,) and q.sum() == pytest.approx(1) and not q[3:].any()
        rest = np.exp(log_softmax(np.asarray(draft._logits_of(tuple(context)), np.float32))[[3, 2, 0]].astype(float))
        np.testing.assert_allclose(q[:3], rest / rest.sum(), rtol=1e-5)
        context.append([3, 2, 0][int(made.tokens[node + 1])])


def test_the_law_is_the_targets_also_where_nothing_can_be_drafted():
    target, draft = models()
    source, loop = shared_vocabulary_model(draft, DRAFT, TARGET), toy_loop(target)
    law = {}
    for a, p in enumerate(np.exp(log_softmax(np.asarray(target._logits_of((0,)), np.float32)).astype(float))):
        if a == 3:  # ends the text here
            law[(a,)] = p
            continue
        for b, r in enumerate(np.exp(log_softmax(np.asarray(target._logits_of((0, a)), np.float32)).astype(float))):
            law[(a, b)] = p * r
    texts = []
    for start in range(0, 2000, 50):
        requests = [
            Request((0,), Sampling(seed=s), max_tokens=2, drafter=source, draft_budget=2, verification="rejection")
            for s in range(start, start + 50)
        ]
        texts += [tuple(finished.tokens) for [finished] in run(loop, *requests)]
    assert chi_square_p(texts, law) > 1e-6
    wrong = dict(zip(law, [*list(law.values())[1:], next(iter(law.values()))], strict=True))
    assert chi_square_p(texts, wrong) < 1e-6


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), WARM])
def test_tokens_are_those_of_plain_decoding(sampling):
    target, draft = models()
    requests = [Request((5, 0, 4), sampling, max_tokens=16, draft_budget=5, samples=n) for n in (1, 3)]
    plain = run(toy_loop(target), *requests)
    source = shared_vocabulary_model(draft, DRAFT, TARGET)
    drafted = run(toy_loop(target), *(replace(r, drafter=source) for r in requests))
    assert [[f.tokens for f in g] for g in drafted] == [[f.tokens for f in g] for g in plain]
    assert sum(f.proposed for g in drafted for f in g) > 0 and not draft._open


def test_the_cache_follows_through_tokens_of_several_ids():
    _, draft = models()
    source = shared_vocabulary_model(draft, DRAFT, TARGET)
    drafter = source.begin([5, 3], SamplingContext())
    for emitted in ([4, 0], [3], [1, 3, 4]):
        found = drafter.propose(3).tokens.tolist()
        drafter.observe([*found[:2], *emitted])
    drafter.propose(3)
    drafter.rollback(2)
    text = drafter._tokens
    anew = source.begin(text, SamplingContext())
    assert drafter.propose(3).tokens.tolist() == anew.propose(3).tokens.tolist()
    assert drafter._sequence.held.tolist() == anew._sequence.held.tolist() == drafter._own


def test_vocabularies_without_a_common_token_are_refused():
    with pytest.raises(ModelError, match="share no token"):
        SharedVocabulary(PieceTokenizer([b"q"]), TARGET, draft_size=1, target_size=6)


def test_smollm2_and_gemma3_share_46018_strings_and_127_bytes(smollm2_path, gemma3_path):
    """The bytes are those that Gemma spells only as <0xNN>; as raw bytes they are SmolLM2's tokens, too."""
    pytest.importorskip("llama_cpp")
    from likely.formats.gguf import read_header
    from likely.runtimes.llamacpp.tokenizer import vocabulary_of
    from likely.tokenizers.gguf import BYTE

    with vocabulary_of(smollm2_path) as smollm2, vocabulary_of(gemma3_path) as gemma3:
        ours, theirs = shared_ids(gemma3, smollm2)
        assert [smollm2.token_bytes(t) for t in theirs.tolist()] == [gemma3.token_bytes(t) for t in ours.tolist()]
    assert len(ours) == len(set(ours.tolist())) == len(set(theirs.tolist()))
    is_byte = read_header(gemma3_path).metadata["tokenizer.ggml.token_type"].numpy()[ours] == BYTE
    assert (int((~is_byte).sum()), int(is_byte.sum())) == (46_018, 127)
