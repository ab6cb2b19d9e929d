"""A draft model beside a target: exact whatever it guesses, its cache moved along, nothing left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import END, run, toy_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from statistics_of_draws import chi_square_p

from likely.decoding.drafting.model.drafter import DraftModel, draft_model, first_difference
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, DraftsTogether, SamplingContext
from likely.decoding.drafting.trees.shapes import Chain
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, apply_penalties, processed_logprobs
from likely.errors import CapabilityError
from likely.runtimes.protocol import Capabilities
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import CharTokenizer, ToyRuntime

V = 6
ROOT = (np.empty(0, np.int64), np.empty(0, np.int64))
GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=1.2, top_p=0.9, seed=5)
PENALISED = Sampling(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4, seed=2)


def target(**limits):
    return ToyRuntime.random(V, seed=1, scale=1.5, **{"context_length": 64, **limits})


def related(seed=7, share=0.5, **limits):
    """A draft that agrees with the target to some degree: logits mixed with noise."""
    one, other = target(), ToyRuntime.random(V, seed=seed, scale=1.5)
    limits = {"context_length": 64, **limits}
    return ToyRuntime(lambda p: share * one._logits_of(p) + (1 - share) * other._logits_of(p), vocab_size=V, **limits)


class Wide:
    """A shape with branches: the w best tokens at each level's first node, to some depth."""

    distributions = frozenset({DraftDistribution.FIXED})

    def grow(self, draw, position, budget):
        tokens, parents, level = [], [], ROOT
        while len(tokens) + 2 <= budget and len(tokens) < 6:
            log_q = yield level
            at = len(tokens) - 2 if tokens else -1
            best = np.argsort(-log_q[0])[:2]
            level = (best, np.array([at, at]))
            tokens += best.tolist()
            parents += [at, at]
        yield level  # the last level is computed, too: a whole path can be kept
        return Draft(np.array(tokens, np.int64), np.array(parents, np.int64)) if tokens else NO_DRAFT


@pytest.mark.parametrize("sampling", [GREEDY, WARM, PENALISED])
@pytest.mark.parametrize("shape", [Chain(1), Chain(4), Wide()])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tokens_are_those_of_plain_decoding(sampling, shape, share):
    requests = [
        Request((2, 4), sampling, max_tokens=20, draft_budget=8),
        Request((5,), sampling, max_tokens=9, samples=3, draft_budget=3),
    ]
    plain = run(toy_loop(target()), *requests)
    draft = related(share=share)
    source = DraftModel(draft, shape=shape)
    drafted = run(toy_loop(target()), *(replace(r, drafter=source) for r in requests))
    assert [[f.tokens for f in group] for group in drafted] == [[f.tokens for f in group] for group in plain]
    assert sum(f.proposed for group in drafted for f in group) > 0
    assert not draft._open and draft.free_tokens() == draft.limits.tokens_held


@pytest.mark.parametrize("sampling", [GREEDY, WARM, PENALISED])
def test_a_perfect_draft_is_always_kept(sampling):
    """The draft is the target: with the target's own noise each round keeps all, and each token is computed once."""
    draft = related(share=1.0)
    sampling = replace(sampling, logit_bias={END: -50.0})
    request = Request((2, 4, 1), sampling, max_tokens=18, drafter=DraftModel(draft, shape=Chain(4)), draft_budget=4)
    [[finished]] = run(toy_loop(target()), request)
    assert finished.rounds == [0, 4, 4, 4, 1]  # the prompt's own row comes first; the last place is the target's
    fed = 3 + len(finished.tokens)
    assert draft.tokens_computed <= fed + 1  # no token twice; at the end at most one that max_tokens cuts off


def test_after_full_acceptance_the_last_guess_is_fed():
    """The draft never computed its own last token: the next call begins with it and the bonus."""
    draft = related(share=1.0)
    source = DraftModel(draft, shape=Chain(3))
    drafter = source.begin([1, 2], SamplingContext(GREEDY))
    tokens = drafter.propose(3).tokens.tolist()
    calls = draft.tokens_computed
    drafter.observe([*tokens, 4])
    drafter.propose(1)
    assert draft.tokens_computed - calls == 2
    assert drafter._sequence.held.tolist() == [1, 2, *tokens, 4]
    drafter.end()


def fresh(draft, tokens):
    return log_softmax(np.asarray(draft._logits_of(tuple(tokens)), np.float32))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_cache_follows_any_history(data):
    """Whatever is proposed, observed, forgotten and forked: the next guess is a new drafter's on the same text."""
    draft = related(share=0.4, context_length=200)
    source = DraftModel(draft, shape=data.draw(st.sampled_from([Chain(3), Wide()])))
    drafter, text = source.begin([1, 3], SamplingContext(GREEDY)), [1, 3]
    others = []
    for _ in range(data.draw(st.integers(1, 8))):
        verb = data.draw(st.sampled_from(["propose", "accept", "observe", "rollback", "fork"]))
        if verb == "propose":
            drafter.propose(data.draw(st.integers(0, 6)))
        elif verb == "accept":
            found = drafter.propose(6).tokens.tolist()[: data.draw(st.integers(0, 4))]
            drafter.observe([*found, 2])
            text += [*found, 2]
        elif verb == "observe":
            new = data.draw(st.lists(st.integers(0, V - 1), max_size=4))
            drafter.observe(new)
            text += new
        elif verb == "rollback":
            n = data.draw(st.integers(0, len(text) - 2))
            drafter.rollback(n)
            text = text[: len(text) - n]
        else:
            others.append(drafter)
            drafter = drafter.fork(SamplingContext(GREEDY))
    anew = source.begin(text, SamplingContext(GREEDY))
    found, expected = drafter.propose(6), anew.propose(6)
    assert found.tokens.tolist() == expected.tokens.tolist() and found.parents.tolist() == expected.parents.tolist()
    assert drafter._sequence is None or drafter._sequence.held.tolist() == text
    for each in (drafter, anew, *others):
        each.end()
        each.end()
    assert not draft._open


def test_drafters_advance_together_one_call_per_level():
    draft = related()
    source = DraftModel(draft, shape=Chain(4))
    assert isinstance(source, DraftsTogether)
    drafters = [source.begin([1, i], SamplingContext(GREEDY)) for i in range(3)]
    drafts = source.propose_many(drafters, [4, 2, 0])
    assert draft.calls == 4 and [len(d) for d in drafts] == [4, 2, 0]
    assert all(a.tokens.tolist() == source.begin([1, i], SamplingContext(GREEDY)).propose(b).tokens.tolist()
               for i, (a, b) in enumerate(zip(drafts, [4, 2, 0], strict=True)))  # fmt: skip


def test_samples_share_the_computed_prompt():
    draft = related()
    prompt = tuple(np.random.default_rng(0).integers(0, V, 30).tolist())
    request = Request(prompt, WARM, max_tokens=4, samples=5, drafter=DraftModel(draft), draft_budget=2)
    run(toy_loop(target(), step_tokens=64), request)
    assert draft.tokens_computed < 30 + 5 * 12


@pytest.mark.parametrize("rule", ["rejection", "spectr"])
def test_q_is_the_law_after_the_requests_settings(rule):
    draft = related()
    source = DraftModel(draft, shape=Chain(3))
    for sampling, own in ((WARM, None), (WARM, Sampling(temperature=0.5)), (PENALISED, None)):
        source = DraftModel(draft, shape=Chain(3), sampling=own)
        drafter = source.begin([1, 2, 2], SamplingContext(sampling, verification=rule))
        made = drafter.propose(3)
        assert made.distribution is DraftDistribution.IID and set(made.log_q) == {-1, 0, 1}
        made.check(budget=3, vocab_size=V, name="")
        path = []
        for node in (-1, 0, 1):
            used = own or sampling
            row = apply_penalties(draft._logits_of((1, 2, 2, *path)), used, [1, 2, 2], path)
            np.testing.assert_allclose(made.log_q[node], processed_logprobs(row, used), atol=1e-6)
            path.append(int(made.tokens[node + 1]))


@pytest.mark.slow
def test_the_distribution_of_sampled_text_is_the_targets_under_rejection():
    """Three emitted tokens, 3,000 texts, against the exact law; the law of the draft is noticed as another."""
    one, draft = target(), related(share=0.3)
    source, loop = DraftModel(draft, shape=Chain(2)), toy_loop(one)

    def distribution_of(runtime):
        law: dict[tuple[int, ...], float] = {}

        def extend(text, p):
            if len(text) == 3 or (text and text[-1] == END):
                law[text] = p
                return
            for token, q in enumerate(np.exp(fresh(runtime, (2, *text)).astype(float))):
                extend((*text, token), p * q)

        extend((), 1.0)
        return law

    texts = []
    for start in range(0, 3000, 50):
        requests = [
            Request((2,), Sampling(seed=s), max_tokens=3, drafter=source, draft_budget=2, verification="rejection")
            for s in range(start, start + 50)
        ]
        texts += [tuple(finished.tokens) for [finished] in run(loop, *requests)]
    assert chi_square_p(texts, distribution_of(one)) > 1e-6
    assert chi_square_p(texts, distribution_of(draft)) < 1e-6
    assert not draft._open


def test_no_room_is_no_guess_and_no_error():
    plain = run(toy_loop(target()), *(Request((1, i), WARM, max_tokens=12) for i in range(4)))
    for limits in ({"tokens_held": 12}, {"sequences": 2}, {"context_length": 6}, {"tokens_held": 2}):
        draft = related(**limits)
        source = DraftModel(draft, shape=Chain(4))
        requests = [Request((1, i), WARM, max_tokens=12, drafter=source, draft_budget=4) for i in range(4)]
        found = run(toy_loop(target()), *requests)
        assert [g[0].tokens for g in found] == [g[0].tokens for g in plain]
        assert not draft._open and draft.free_tokens() == draft.limits.tokens_held


def test_cancelled_and_failed_requests_leave_nothing_open():
    draft = related()
    loop = toy_loop(target())
    number = loop.add(
        Request((1, 2), WARM, max_tokens=40, min_tokens=40, samples=3, drafter=DraftModel(draft), draft_budget=3)
    )
    for _ in range(4):
        loop.step()
    assert draft._open
    loop.cancel(number)
    loop.step()
    assert not draft._open
    loop.add(Request((1, 2), WARM, max_tokens=40, min_tokens=40, drafter=DraftModel(draft), draft_budget=3))
    loop.step()
    loop.step()
    loop.close()
    assert not draft._open and draft.free_tokens() == draft.limits.tokens_held


def test_an_ended_drafter_opens_nothing_again():
    draft = related()
    drafter = DraftModel(draft).begin([1], SamplingContext())
    drafter.propose(2)
    drafter.end()
    assert len(drafter.propose(2)) == 0 and not draft._open


def test_a_hopeless_runtime_is_refused():
    draft = related()
    draft.capabilities = Capabilities(trees=False, truncate=True)
    with pytest.raises(CapabilityError, match="llamacpp, torch, native"):
        DraftModel(draft)


def test_rollback_beyond_the_prompt_is_refused():
    drafter = DraftModel(related()).begin([1, 2], SamplingContext())
    drafter.observe([3])
    with pytest.raises(ValueError, match="cannot forget 2"):
        drafter.rollback(2)


def test_rows_without_a_token_do_not_count():
    """A draft with more rows, or fewer, than the target drafts the target's ids only, from a proper law."""
    for size in (4, 9):
        draft = ToyRuntime.random(size, seed=3, context_length=64)
        tokenizer = CharTokenizer("abcd")
        source = draft_model(draft, tokenizer, tokenizer, vocab_size=V, name="draft")
        request = Request((1, 5), WARM, max_tokens=12, drafter=source, draft_budget=4, verification="rejection")
        run(toy_loop(target()), request)
        made = source.begin([1, 5, 2], SamplingContext(WARM, verification="rejection")).propose(4)
        for log_q in made.log_q.values():
            assert log_q.shape == (V,) and np.exp(log_q.astype(float)).sum() == pytest.approx(1)


# --- tokenizers ----------------------------------------------------------------------------------------------------


class Renamed(CharTokenizer):
    """The same tokens under another fingerprint, as two file formats of one tokenizer have."""

    def __init__(self, alphabet, **special):
        super().__init__(alphabet)
        self.fingerprint = f"other:{alphabet}"
        self.special_tokens = {**self.special_tokens, **special}


def test_tokenizers_are_compared_token_by_token():
    assert first_difference(Renamed("abcd"), CharTokenizer("abcd")) is None
    assert "id 2" in first_difference(Renamed("abxd"), CharTokenizer("abcd"))
    assert "id 3" in first_difference(Renamed("abc"), CharTokenizer("abcd"))
    assert "'<end>'" in first_difference(Renamed("abcd", **{"<end>": 1}), CharTokenizer("abcd"))


def test_the_first_difference_is_named():
    assert first_difference(Renamed("abxd"), CharTokenizer("abcd")).startswith("id 2 is b'x' in the draft's and b'c'")


def test_the_kind_of_drafter_follows_the_tokenizers():
    same = draft_model(related(), Renamed("abcd"), CharTokenizer("abcd"), name="model:x")
    assert isinstance(same, DraftModel) and same.name == "model:x" and not same.free
