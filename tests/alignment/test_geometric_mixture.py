"""Mixture decoding: its two ends, its law, and the same tokens as without a cache, in every combination."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers_for_loops import RandomTrees, run, toy_loop
from statistics_of_draws import chi_square_p

from likely.alignment.online.mixture import GeometricMixture
from likely.decoding.constraint import mask_of
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError, ConstraintError, ModelError
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import CharTokenizer, ToyRuntime

V = 6
PROMPTS = ((1, 2), (4,), (2, 5, 1))
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(seed=3),
    "truncated": Sampling(temperature=0.7, top_k=4, top_p=0.9, repetition_penalty=1.2, seed=5),
}


def runtimes(**limits):
    """(policy, reference)"""
    return tuple(ToyRuntime.random(V, seed=seed, order=3, context_length=64, **limits) for seed in (1, 2))


class WithoutCache:
    """The same mixture, slow and obvious: the reference reads the whole text for every row."""

    def __init__(self, reference, beta, text=()):
        self.reference, self.beta, self.text = reference, beta, list(text)

    def begin(self, runtime, prompt):
        return WithoutCache(self.reference, self.beta, prompt)

    def work(self, work):
        return []

    def read(self, outputs):
        return None

    def apply(self, path, logits):
        other = log_softmax(self.reference._logits_of((*self.text, *path)))
        mixed = (1 - self.beta) * log_softmax(logits) + self.beta * other
        return np.where(logits > -np.inf, mixed, -np.inf).astype(np.float32)

    def advance(self, tokens, accepted):
        self.text += tokens

    def fork(self):
        return WithoutCache(self.reference, self.beta, self.text)

    def drop(self):
        return None


@dataclass
class Alternating:
    """A constraint: token 0 at even places, anything but the end at odd ones."""

    taken: int = 0
    vocab_size = V
    accepting, finished, approximate = True, False, False

    def allowed(self, remaining=None):
        return mask_of([0] if self.taken % 2 == 0 else [0, 1, 2, 4, 5], V)

    def permits(self, token):
        return True

    def advance(self, token):
        self.taken += 1

    def rollback(self, n):
        self.taken -= n

    def fork(self):
        return Alternating(self.taken)

    def forced(self):
        return []

    def ready(self):
        return True


def tokens_of(policy, processor, *, prompts=PROMPTS, **changes):
    request = Request(prompts[0], max_tokens=12, **changes)
    requests = [replace(request, prompt=p, logits_processors=(processor,) if processor else ()) for p in prompts]
    return [[each.tokens for each in found] for found in run(toy_loop(policy), *requests)]


COMBINATIONS = {
    "samples": {"samples": 3},
    "drafts": {"drafter": RandomTrees(V), "draft_budget": 5},
    "drafted samples": {"samples": 3, "drafter": RandomTrees(V), "draft_budget": 5},
    "rejection": {"drafter": RandomTrees(V, shape="chain"), "draft_budget": 3},
    "minimum": {"min_tokens": 6},
}


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("changes", COMBINATIONS.values(), ids=COMBINATIONS)
def test_the_same_tokens_as_without_a_cache(sampling, changes):
    policy, reference = runtimes()
    for beta in (0.125, 0.6):
        fast = tokens_of(policy, GeometricMixture(reference, beta), sampling=sampling, **changes)
        slow = tokens_of(policy, WithoutCache(reference, beta), sampling=sampling, **changes)
        assert fast == slow and not policy._open and not reference._open


def test_constraints_hold_for_the_mixture():
    """Only token 0 may follow an even number of tokens: the mixture is taken over what is allowed."""
    policy, reference = runtimes()
    for changes in ({}, {"drafter": RandomTrees(V), "draft_budget": 4}, {"samples": 3}):
        given = {"sampling": SETTINGS["sampled"], "constraint": Alternating(), **changes}
        fast = tokens_of(policy, GeometricMixture(reference, 0.4), **given)
        assert fast == tokens_of(policy, WithoutCache(reference, 0.4), **given)
        assert all(set(text[::2]) == {0} for found in fast for text in found)


def test_beams_and_log_probabilities():
    policy, reference = runtimes()
    beams = {"sampling": SETTINGS["greedy"], "beams": 3, "samples": 2}
    fast = tokens_of(policy, GeometricMixture(reference, 0.4), **beams)
    assert fast == tokens_of(policy, WithoutCache(reference, 0.4), **beams) and not reference._open
    request = Request((1, 2), Sampling(seed=1), max_tokens=8, processed=True)
    [[found]] = run(toy_loop(policy), replace(request, logits_processors=(GeometricMixture(reference, 0.4),)))
    text = (1, 2)
    for token, logprob, processed in zip(found.tokens, found.logprobs, found.processed, strict=True):
        own, other = log_softmax(policy._logits_of(text)), log_softmax(reference._logits_of(text))
        assert logprob == pytest.approx(own[token], abs=1e-5)
        assert processed == pytest.approx(log_softmax(0.6 * own + 0.4 * other)[token], abs=1e-5)
        text = (*text, token)


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
def test_at_its_ends_it_is_the_policy_and_the_reference_token_for_token(sampling):
    policy, reference = runtimes()
    for changes in ({"samples": 3}, {"drafter": RandomTrees(V), "draft_budget": 4}):
        plain = tokens_of(policy, None, sampling=sampling, **changes)
        assert tokens_of(policy, GeometricMixture(reference, 0.0), sampling=sampling, **changes) == plain
        assert reference.calls == 0
        theirs = tokens_of(reference, None, sampling=sampling, **changes)
        assert plain != theirs
        fresh = ToyRuntime(reference._logits_of, vocab_size=V)
        assert tokens_of(policy, GeometricMixture(fresh, 1.0), sampling=sampling, **changes) == theirs
        reference.calls = 0


def test_law_of_whole_texts():
    """χ² of 1,500 texts against the product of normalised mixtures, which is not the mixture of texts."""
    policy, reference = (ToyRuntime.random(4, seed=s, scale=2.0) for s in (3, 4))
    mixed, whole = {}, {}
    for text in itertools.product(range(4), repeat=3):
        step, own, other = 0.0, 0.0, 0.0
        for i, token in enumerate(text):
            p, q = (log_softmax(r._logits_of((0, *text[:i]))) for r in (policy, reference))
            step += log_softmax(0.5 * p + 0.5 * q)[token]
            own, other = own + p[token], other + q[token]
            if token == 3:  # ends the text
                break
        else:
            i = 2
        mixed[text[: i + 1]], whole[text[: i + 1]] = float(np.exp(step)), float(np.exp((own + other) / 2))
    total = sum(whole.values())
    whole = {text: p / total for text, p in whole.items()}
    request = Request((0,), Sampling(seed=7), max_tokens=3, samples=1500)
    request = replace(request, logits_processors=(GeometricMixture(reference_of(reference), 0.5),))
    [found] = run(toy_loop(ToyRuntime(policy._logits_of, vocab_size=4, sequences=2000, tokens_held=20000)), request)
    drawn = [tuple(each.tokens) for each in found]
    assert chi_square_p(drawn, mixed) > 1e-6
    assert chi_square_p(drawn, whole) < 1e-6


def reference_of(runtime):
    return ToyRuntime(runtime._logits_of, vocab_size=runtime.vocab_size, sequences=2000, tokens_held=20000)


def test_one_call_of_each_model_per_step_and_prompts_are_read_once():
    policy, reference = runtimes()
    mixture = GeometricMixture(reference, 0.3)
    request = Request((1, 2), Sampling(seed=3), max_tokens=10, min_tokens=10, samples=4, logits_processors=(mixture,))
    other = replace(request, prompt=(2, 4, 1), samples=1)
    run(toy_loop(policy), request, other)
    assert mixture.reference.calls == reference.calls == policy.calls == 10
    assert reference.tokens_computed == policy.tokens_computed == (2 + 4 * 9) + (3 + 9)


def test_a_reference_without_trees_or_forks():
    policy, reference = runtimes()
    for changes in COMBINATIONS.values():
        wanted = tokens_of(policy, GeometricMixture(reference, 0.3), sampling=SETTINGS["sampled"], **changes)
        plain = ToyRuntime(reference._logits_of, vocab_size=V)
        plain.capabilities = replace(plain.capabilities, trees=False, fork=False)
        assert tokens_of(policy, GeometricMixture(plain, 0.3), sampling=SETTINGS["sampled"], **changes) == wanted
        assert not plain._open


@pytest.mark.parametrize("where", ["policy", "reference"])
@pytest.mark.parametrize("drafter", [None, RandomTrees(V)], ids=["plain", "drafts"])
def test_where_room_is_short_texts_take_turns_and_stay_the_same(where, drafter):
    policy, reference = runtimes()
    changes = {"sampling": SETTINGS["sampled"], "min_tokens": 12, "drafter": drafter, "draft_budget": 4}
    wanted = tokens_of(policy, GeometricMixture(reference, 0.3), samples=2, **changes)
    for held in (18, 24, 40):
        one = ToyRuntime(policy._logits_of, vocab_size=V, **({"tokens_held": held} if where == "policy" else {}))
        two = ToyRuntime(reference._logits_of, vocab_size=V, **({"tokens_held": held} if where == "reference" else {}))
        assert tokens_of(one, GeometricMixture(two, 0.3), samples=2, **changes) == wanted
        assert not one._open and not two._open


def test_transformers_models_each_with_its_cache():
    """Greedy text of two small Llamas equals the one of whole forwards."""
    torch = pytest.importorskip("torch")
    from tiny_torch import tiny_module

    from likely.runtimes.torch.runtime import TorchRuntime

    modules = [tiny_module("llama", seed=seed) for seed in (0, 1)]
    policy, reference = (TorchRuntime(m, tokens_held=512, sequences=8, tokens_per_call=64) for m in modules)
    request = Request(
        (1, 2, 4), SETTINGS["greedy"], max_tokens=16, logits_processors=(GeometricMixture(reference, 0.4),)
    )
    [[found]] = run(toy_loop(policy), request)
    text = [1, 2, 4]
    for token in found.tokens:
        with torch.no_grad():
            own, other = (torch.log_softmax(m(torch.tensor([text])).logits[0, -1], -1) for m in modules)
        mixed = 0.6 * own + 0.4 * other
        assert mixed[token] == mixed.max()
        text.append(token)
    policy.shutdown()
    reference.shutdown()


# --- what is refused ------------------------------------------------------------------------------------------------


class Loaded:
    def __init__(self, runtime, letters):
        self.runtime, self.tokenizer = runtime, CharTokenizer(letters)


def test_what_cannot_be_mixed_is_refused():
    policy, reference = runtimes()
    for beta in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="beta must lie in"):
            GeometricMixture(reference, beta)
    with pytest.raises(CapabilityError, match=r"must run on this machine.*got str"):
        GeometricMixture("http://localhost:8000", 0.5)
    with pytest.raises(ValueError, match="reference model has 7 tokens, this one 6"):
        tokens_of(policy, GeometricMixture(ToyRuntime.random(7, seed=1), 0.5))
    with pytest.raises(ModelError, match="reference model's context is 2"):
        tokens_of(policy, GeometricMixture(ToyRuntime.random(V, seed=1, context_length=2), 0.5), prompts=((1, 2, 4),))
    abcd, abdc = (Loaded(ToyRuntime.random(V, seed=1), letters) for letters in ("abcd", "abdc"))
    assert GeometricMixture.between(abcd, abcd, 0.5).beta == 0.5
    with pytest.raises(ValueError, match="'c' here and 'd' in the reference model"):
        GeometricMixture.between(abcd, abdc, 0.5)


def test_models_that_have_no_token_in_common():
    left, right = (np.where(np.arange(V) % 2 == odd, np.float32(0), np.float32(-np.inf)) for odd in (0, 1))
    policy, reference = (ToyRuntime(lambda prefix, row=row: row, vocab_size=V) for row in (left, right))
    with pytest.raises(ConstraintError, match="after 0 tokens no token is possible"):
        tokens_of(policy, GeometricMixture(reference, 0.5), prompts=((1,),))


def test_the_context_of_the_reference_ends_the_text():
    policy, _ = runtimes()
    short = ToyRuntime.random(V, seed=2, context_length=9)
    request = Request((1, 2), Sampling(seed=3), max_tokens=30, min_tokens=30)
    [[found]] = run(toy_loop(policy), replace(request, logits_processors=(GeometricMixture(short, 0.5),)))
    assert (found.reason, len(found.tokens)) == ("context", 7)
