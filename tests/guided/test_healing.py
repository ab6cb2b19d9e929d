from __future__ import annotations

import math

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from small_vocabularies import all_bytes, of

from likely.decoding.constraint import ConstraintViolation, members
from likely.errors import CapabilityError
from likely.guided.engines.reference import Reference
from likely.guided.token_healing import TokenHealing, heal
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import ToyRuntime, exact_logprob

VOCABULARY = of(b"a", b"b", b"c", b":", b"/", b"://", b"http", b"ab", b":/", b"bc/", b"h", b"t", b"p")
A, B, C, COLON, SLASH, SCHEME, HTTP, AB, COLONSLASH, BCS = range(10)


def slow_heal(vocabulary, ids, special):
    """As it is written: the largest j such that j = 0 or a longer token begins with the last j tokens' bytes."""
    best = 0
    for j in range(1, min(4, len(ids) - 1) + 1):
        last = ids[len(ids) - j :]
        if any(i in special or not vocabulary.tokens[i] for i in last):
            break
        rest = b"".join(vocabulary.tokens[i] for i in last)
        if any(t.startswith(rest) and len(t) > len(rest) for t in vocabulary.tokens):
            best = j
    return ids[: len(ids) - best], b"".join(vocabulary.tokens[i] for i in ids[len(ids) - best :])


def test_heal_follows_its_rule_on_random_prompts():
    rng = np.random.default_rng(0)
    taken = set()
    for vocabulary in (VOCABULARY, all_bytes()):
        texts = [i for i, t in enumerate(vocabulary.tokens) if t and all(c < 128 for c in t)]
        for _ in range(300):
            ids = rng.choice(texts, int(rng.integers(0, 7))).tolist()
            special = {int(rng.choice(texts))} if rng.random() < 0.3 else set()
            found = heal(vocabulary, ids, special)
            assert found == slow_heal(vocabulary, ids, special)
            taken.add(len(ids) - len(found[0]))
    assert {0, 1, 2} <= taken


@pytest.mark.parametrize(
    ("ids", "kept", "rest"),
    [
        ([HTTP, COLON], [HTTP], b":"),
        ([HTTP, COLON, SLASH], [HTTP], b":/"),  # two, though "/" alone begins nothing longer
        ([HTTP, SCHEME], [HTTP, SCHEME], b""),  # an unambiguous boundary
        ([COLON], [COLON], b""),  # never the first token
        ([], [], b""),
        ([HTTP, 13, COLON], [HTTP, 13], b":"),
        ([COLON, 13], [COLON, 13], b""),  # not past a token without text
    ],
)
def test_how_much_is_taken_back(ids, kept, rest):
    assert heal(VOCABULARY, ids) == (kept, rest)


def test_a_special_token_with_text_is_not_taken_back():
    assert heal(VOCABULARY, [HTTP, COLON], {COLON}) == ([HTTP, COLON], b"")


def texts(constraint):
    return {VOCABULARY.tokens[i] for i in members(constraint.allowed()).tolist()}


def test_first_steps_write_the_rest_and_may_write_more():
    constraint = TokenHealing(VOCABULARY, b":/")
    assert texts(constraint) == {b":", b":/", b"://"}
    assert not constraint.accepting
    with pytest.raises(ConstraintViolation):
        constraint.advance(A)
    longer = constraint.fork()
    longer.advance(SCHEME)
    assert longer.accepting and len(members(longer.allowed())) == VOCABULARY.size  # then anything, end tokens too
    constraint.advance(COLON)
    assert texts(constraint) == {b"/"}
    constraint.rollback(1)
    assert texts(constraint) == {b":", b":/", b"://"}


def test_what_is_too_much_begins_the_form():
    then = Reference(VOCABULARY).regex("c/?|//a")
    constraint = TokenHealing(VOCABULARY, b"b", then)
    assert texts(constraint) == {b"b", b"bc/"}
    constraint.advance(BCS)
    assert constraint.finished
    scheme = TokenHealing(VOCABULARY, b":", then.fork())
    assert texts(scheme) == {b":", b":/", b"://"}
    scheme.advance(COLONSLASH)
    assert texts(scheme) == {b"/"}


def test_forks_of_a_healed_text_do_not_share_their_form():
    constraint = TokenHealing(VOCABULARY, b"a", Reference(VOCABULARY).regex("bc|b/"))
    constraint.advance(A)
    fork = constraint.fork()
    constraint.advance(B)
    constraint.advance(C)
    fork.rollback(1)
    assert texts(fork) == {b"a", b"ab"}
    fork.advance(AB)
    assert texts(fork) == {b"c", b"/"}


# --- in a model -------------------------------------------------------------------------------------------------------

PIECES = [b"a", b"b", b"c", b"ab", b"bc", b"ca", b"abc"]


def toy_model(seed=3):
    tokenizer = PieceTokenizer(PIECES, control=("<bos>", "<end>"), bos="<bos>")
    runtime = ToyRuntime.random(9, seed=seed, order=3, context_length=64)
    return Model(runtime, tokenizer, ModelInfo(**_info()))


def _info():
    import dataclasses

    values = {}
    for f in dataclasses.fields(ModelInfo):
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            values[f.name] = {"str": "toy", "int": 0, "float": 0.0}.get(str(f.type))
    return values


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_and_numbers_begin_after_the_prompt(seed, temperature):
    lm = toy_model(seed)
    out = lm.generate("cba", heal=True, max_tokens=6, temperature=temperature, seed=seed)
    prompt, rest = heal(lm.guide.vocabulary, lm.encode_prompt("cba"))
    assert rest == b"a"
    # the whole path again, token by token from the table
    first = lm.tokenizer.token_bytes(out.token_ids[0]) if out.token_ids else b""
    overshoots = (rest + out.text.encode()).startswith(first) and first.startswith(rest) and len(first) > 1
    raw = np.asarray(lm.runtime._logits_of(tuple(prompt)), np.float64)
    consistent = [i for i, piece in enumerate(PIECES) if piece.startswith(rest)]
    log_mass = np.logaddexp.reduce(raw[consistent]) - np.logaddexp.reduce(raw)
    assert abs(out.healing_log_weight - log_mass) < 1e-5
    whole = [*prompt, *([] if overshoots else [0]), *out.token_ids]
    assert b"".join(map(lm.tokenizer.token_bytes, whole)) == b"cba" + out.text.encode()
    expected = exact_logprob(lm.runtime, whole[len(prompt) :], given=prompt)
    healed_apart = log_mass if overshoots else exact_logprob(lm.runtime, [0], given=prompt)
    assert abs(out.sequence_logprob - (expected - healed_apart)) < 1e-5
    assert out.log_weight is None and out.complete is None


def test_streaming_shows_the_same_text():
    lm = toy_model()
    out = lm.generate("cba", heal=True, max_tokens=8, seed=4)
    stream = lm.stream("cba", heal=True, max_tokens=8, seed=4)
    assert "".join(stream) == out.text == stream.result.text


def test_a_prompt_with_nothing_to_heal_is_continued_as_ever():
    lm = toy_model()
    for prompt in ("abc", "", "bcabc"):
        with_, without = (lm.generate(prompt, heal=h, max_tokens=8, seed=4) for h in (True, False))
        assert with_.token_ids == without.token_ids and with_.token_logprobs == without.token_logprobs
        assert with_.healing_log_weight == 0.0 and without.healing_log_weight is None


@pytest.mark.parametrize("drafter", [None, "lookup", "copy"])
@pytest.mark.parametrize("options", [{}, {"regex": "(bc|c)*a?"}, {"choices": ["b", "bca"]}], ids=str)
def test_healing_combines_with_forms_drafts_and_batches(drafter, options):
    pytest.importorskip("llguidance")
    lm = toy_model(5)
    prompts = ["cba", "ab", "abcab"]
    alone = [lm.generate(p, heal=True, max_tokens=7, seed=2, n=2, **options) for p in prompts]
    together = lm.generate(prompts, heal=True, max_tokens=7, seed=2, n=2, drafter=drafter, **options)
    for one, other in zip(alone, together, strict=True):
        assert [g.token_ids for g in one] == [g.token_ids for g in other]
        np.testing.assert_allclose([g.sequence_logprob for g in one], [g.sequence_logprob for g in other], atol=1e-6)
        for g in other:
            if options:
                assert g.complete and abs(g.sequence_logprob - g.guided_logprob - g.log_weight) < 1e-9
            assert len(g.token_ids) == len(g.token_logprobs) == len(g.tokens)


def test_closing_counts_the_tokens_of_the_prompts_end():
    pytest.importorskip("llguidance")
    lm = toy_model(5)
    for seed in range(20):
        out = lm.generate("cba", heal=True, regex="b(cab)*c|ccca", max_tokens=3, seed=seed)
        assert out.complete, out.text


def test_the_mean_over_first_tokens_is_the_probability_of_the_prompts_end():
    """E[Π m] over healing steps = p(rest | trimmed prompt), summed over all its spellings: by enumeration."""
    lm = toy_model(7)
    prompt, rest = lm.encode_prompt("a"), b"ab"

    def paths(rest, given):
        row = np.asarray(lm.runtime._logits_of(tuple(given)), np.float64)
        row -= np.logaddexp.reduce(row)
        allowed = [i for i, p in enumerate(PIECES) if p.startswith(rest) or rest.startswith(p)]
        mass = np.logaddexp.reduce(row[allowed])
        for i in allowed:
            if len(PIECES[i]) >= len(rest):
                yield row[i] - mass, row[i], mass
            else:
                for q, p, m in paths(rest[len(PIECES[i]) :], [*given, i]):
                    yield row[i] - mass + q, row[i] + p, mass + m

    found = list(paths(rest, prompt))
    mean = sum(math.exp(q + m) for q, _, m in found)
    probability = sum(math.exp(p) for _, p, _ in found)
    assert abs(mean - probability) < 1e-9 and probability < 0.9


@pytest.mark.parametrize("call", ["chat", "ask", "contrast", "smc"])
def test_where_healing_makes_no_sense_it_is_refused(call):
    lm = toy_model()
    with pytest.raises(CapabilityError, match="heal"):
        if call == "ask":
            lm.ask("ab", heal=True)
        elif call == "smc":
            lm.generate("ab", heal=True, regex="a*", sampler="smc")
        elif call == "contrast":
            from likely.guided.contrast import Contrast

            lm.generate("ab", heal=True, contrast=Contrast("a"))
        else:
            lm.request(lm.encode_prompt("ab"), {"heal": True})
