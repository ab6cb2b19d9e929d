"""Every preset of Contrast on every runtime, beside drafters, samples, beams, constraints and batches.

The reference computes both contexts from nothing at every token, and takes the best score.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES
from helpers_for_loops import RandomTrees
from pairwise import pairwise
from statistics_of_draws import chi_square_p

from likely.decoding.constraint import mask_of
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.guided.contrast import CollisionGate, Contrast, root_collision
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime

END = 7
GREEDY = Sampling(temperature=0.0)
RUNTIMES = {
    "toy": "toy",
    "torch": "torch",
    "llamacpp": "llamacpp-f32",
    "native": "native",
    "recompute": "torch-recompute",
}
NEGATIVE = [3, 1, 5, 2]
# gates that open now and then on laws of random models, which are flatter or sharper than real ones
PRESETS = {
    "uscd": lambda: Contrast(NEGATIVE, "uscd", eta=0.5, gate=CollisionGate(0.5)),
    "uscd, eager": lambda: Contrast(NEGATIVE, "uscd", eta=0.5, gate=CollisionGate(0.5), eager=True),
    "cad": lambda: Contrast(NEGATIVE, "cad"),
    "cfg": lambda: Contrast(NEGATIVE, "cfg", weight=1.0),
    "cfg, lazy": lambda: Contrast(NEGATIVE, "cfg", weight=1.0, eager=False),
    "cd": None,  # needs a model: see `made`
}
LOOSE = 1e-3  # scores that differ by less may fall either way: engines agree to 1e-4, and weights add up


class Loaded:
    """A weaker model for "cd": made for the vocabulary of whom it meets."""

    tokenizer = None

    def __init__(self, vocab_size: int = 0):
        self.runtime = (
            ToyRuntime.random(vocab_size, seed=9, context_length=256, tokens_held=8192) if vocab_size else None
        )


def made(preset: str, runtime) -> Contrast:
    return Contrast(Loaded(runtime.vocab_size), "cd") if preset == "cd" else PRESETS[preset]()


@pytest.fixture(scope="module", params=list(RUNTIMES))
def target(request):
    runtime = FACTORIES[RUNTIMES[request.param]][0]()
    yield request.param, runtime
    runtime.shutdown()


def run(runtime, *wanted: Request):
    loop = Loop(runtime, token_bytes=lambda t: bytes([97 + t % 26]), end_ids=frozenset({END}))
    free = runtime.free_tokens()
    ids = [loop.add(r) for r in wanted]
    done = {i: {} for i in ids}
    while not loop.idle:
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[event.request][event.sample] = event.finish
    assert runtime.free_tokens() == free
    for request in wanted:
        for contrast in request.logits_processors:
            other = getattr(contrast.negative, "runtime", None)
            assert other is None or not other._open
    return [[group[k] for k in sorted(group)] for group in done.values()]


def row(runtime, tokens) -> np.ndarray:
    sequence = runtime.open()
    found = runtime.forward([Work(sequence, np.array(tokens), want=Want.LAST)])[0].logits[-1]
    runtime.close(sequence)
    return found


def scores_after(runtime, contrast: Contrast, prompt, text, allowed=None) -> np.ndarray:
    """s (V,), the slow and obvious way; allowed: bool (V,)."""
    logits = row(runtime, [*prompt, *text]).astype(np.float64)
    other_runtime = getattr(contrast.negative, "runtime", runtime)
    before = prompt if other_runtime is not runtime else contrast.negative
    other = row(other_runtime, [*before, *text]).astype(np.float64)
    if allowed is not None:
        logits, other = np.where(allowed, logits, -np.inf), np.where(allowed, other, -np.inf)
    logp, log_negative = log_softmax(logits).astype(np.float64), log_softmax(other).astype(np.float64)
    if not contrast.gate.opens(root_collision(np.exp(logp))):
        return logp
    if contrast.alpha is None:
        return np.array(
            [contrast.a * p - contrast.b * q if p > -np.inf else p for p, q in zip(logp, log_negative, strict=True)]
        )
    scores = contrast.a * logp - contrast.b * np.maximum(log_negative, -50)
    return np.where(logp < logp.max() + np.log(contrast.alpha), -np.inf, scores)


def check_greedy(runtime, contrast, prompt, tokens, allowed=None):
    for i, token in enumerate(tokens):
        scores = scores_after(runtime, contrast, prompt, tokens[:i], allowed)
        assert scores[token] >= scores.max() - LOOSE


def requests(contrast) -> list[Request]:
    prompts = [(1, 2, 3), (4, 1, 4, 1, 4, 1, 4), (2,)]
    return [
        Request(p, GREEDY, max_tokens=14 + i, logits_processors=(contrast,), draft_budget=6, top_logprobs=2)
        for i, p in enumerate(prompts)
    ]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_texts_are_those_of_the_reference(target, preset):
    _, runtime = target
    contrast = made(preset, runtime)
    opened = 0
    for request, (found,) in zip(requests(contrast), run(runtime, *requests(contrast)), strict=True):
        check_greedy(runtime, contrast, request.prompt, found.tokens)
        opened += sum(step.gated for step in found.steering)
        assert len(found.steering) == len(found.tokens)
        logp = [log_softmax(row(runtime, [*request.prompt, *found.tokens[:i]])) for i in range(len(found.tokens))]
        expected = [lp[t] for lp, t in zip(logp, found.tokens, strict=True)]
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-3)  # of the model itself, not of the contrast
    assert opened > 0


@pytest.mark.sampled(6)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_batch_is_each_alone(target, preset):
    _, runtime = target
    wanted = requests(made(preset, runtime))
    wanted[1] = replace(wanted[1], logits_processors=(Contrast([2, 2, 1], "cad"),))
    wanted.append(replace(wanted[2], logits_processors=()))
    assert [f[0].tokens for f in run(runtime, *wanted)] == [run(runtime, r)[0][0].tokens for r in wanted]


DRAFTERS = ("lookup", "suffix, trees", "model, chain", "random trees")
DRAFTED = pairwise(itertools.product(RUNTIMES, PRESETS, DRAFTERS))


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("target", "preset", "drafter"), DRAFTED, indirect=["target"])
def test_drafted_text_is_the_undrafted_one(target, preset, drafter):
    _, runtime = target
    source = RandomTrees(8) if drafter == "random trees" else MADE[drafter].build(runtime)
    for sampling in (GREEDY, Sampling(temperature=0.8, top_p=0.9, seed=5)):
        plain = [replace(r, sampling=sampling) for r in requests(made(preset, runtime))]
        drafted = [replace(r, drafter=source) for r in plain]
        for (expected,), (found,) in zip(run(runtime, *plain), run(runtime, *drafted), strict=True):
            assert found.tokens == expected.tokens and found.reason == expected.reason
            assert [s.gated for s in found.steering] == [s.gated for s in expected.steering]
            np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-3)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_constraint_at_once(target, preset):
    """p and p⁻ are compared over what is allowed; nothing else is ever emitted, however unlikely the allowed tokens."""
    _, runtime = target
    contrast = made(preset, runtime)
    allowed = np.zeros(runtime.vocab_size, bool)
    allowed[[0, 2, 5, 6]] = True
    for drafter in (None, RandomTrees(8)) if runtime.capabilities.trees else (None,):
        wanted = [
            replace(r, constraint=OneOf(np.flatnonzero(allowed), runtime.vocab_size), drafter=drafter)
            for r in requests(contrast)
        ]
        for request, (found,) in zip(wanted, run(runtime, *wanted), strict=True):
            assert set(found.tokens) <= {0, 2, 5, 6} and len(found.tokens) == request.max_tokens
            check_greedy(runtime, contrast, request.prompt, found.tokens, allowed)


class OneOf:
    """A Constraint: each token is one of these; the text never ends."""

    accepting, finished, approximate = True, False, False

    def __init__(self, ids, vocab_size):
        self.ids, self.vocab_size = ids, vocab_size

    def allowed(self, remaining=None):
        return mask_of(self.ids, self.vocab_size)

    def permits(self, token):
        return token in self.ids

    def advance(self, token):
        assert token in self.ids

    def forced(self):
        return []

    def fork(self):
        return self

    def rollback(self, n):
        pass

    def ready(self, wait=False):
        return True


@pytest.mark.sampled(6)
@pytest.mark.parametrize("preset", list(PRESETS))
def test_samples_together_are_samples_alone(target, preset):
    _, runtime = target
    contrast = made(preset, runtime)
    request = Request((1, 2, 3), Sampling(seed=2), max_tokens=8, samples=4, logits_processors=(contrast,))
    together = [f.tokens for f in run(runtime, request)[0]]
    alone = [run(runtime, replace(request, samples=1, first_sample=i))[0][0].tokens for i in range(4)]
    assert together == alone


@pytest.mark.parametrize("preset", list(PRESETS))
def test_wide_beams_find_the_best_text(preset):
    """Over all texts of three tokens: the largest sum of log-probabilities of the contrasted law."""
    runtime = ToyRuntime.random(5, seed=6, order=3, context_length=64, tokens_held=100_000, sequences=4096)
    contrast = made(preset, runtime) if preset == "cd" else replaced_negative(PRESETS[preset](), [3, 1, 2, 2])
    prompt = (1, 2)
    request = Request(prompt, GREEDY, max_tokens=3, beams=125, length_penalty=0.0, logits_processors=(contrast,))
    ((found, *_),) = run(runtime, request)
    best = max(itertools.product(range(5), repeat=3), key=lambda t: law_of_text(runtime, contrast, prompt, t))
    assert tuple(found.tokens) == best and len(found.steering) == 3


def replaced_negative(contrast: Contrast, negative) -> Contrast:
    contrast.negative = negative
    return contrast


def law_of_text(runtime, contrast, prompt, text) -> float:
    return sum(
        float(log_softmax(scores_after(runtime, contrast, prompt, text[:i]))[token]) for i, token in enumerate(text)
    )


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["keyed", "rejection", "spectr"])
@pytest.mark.parametrize("preset", ["uscd", "cfg", "cfg, lazy"])
def test_sampled_text_has_the_contrasted_law(preset, verification):
    """All texts of two tokens over a vocabulary of eight, by enumeration, with drafts from a model."""
    runtime = ToyRuntime.random(8, seed=2, order=2, scale=1.5, context_length=64)
    contrast = PRESETS[preset]()
    source = MADE["model, independent"].build(runtime)
    request = Request(
        (1, 2, 1), Sampling(seed=0), max_tokens=2, drafter=source, draft_budget=4, verification=verification,
        logits_processors=(contrast,),
    )  # fmt: skip
    loop = Loop(runtime, token_bytes=lambda t: b"a", end_ids=frozenset())
    texts: Counter = Counter()
    for i in range(0, 3000, 50):
        loop.add(replace(request, samples=50, first_sample=i))
        while not loop.idle:
            texts.update(tuple(e.finish.tokens) for e in loop.step() if e.finish)
    law = {
        text: float(np.exp(law_of_text(runtime, contrast, request.prompt, text)))
        for text in itertools.product(range(8), repeat=2)
    }
    law = {text: p for text, p in law.items() if p > 0}
    plain = {}
    for a, b in itertools.product(range(8), repeat=2):
        rows = [log_softmax(runtime._logits_of((1, 2, 1, *before))) for before in ((), (a,))]
        plain[a, b] = float(np.exp(rows[0][a] + rows[1][b]))
    assert chi_square_p(texts.elements(), law) > 1e-6
    assert chi_square_p(texts.elements(), plain) < 1e-6  # the test can tell the two laws apart


@pytest.mark.parametrize("preset", list(PRESETS))
def test_cancelled_in_mid_flight_everything_is_freed(target, preset):
    _, runtime = target
    free = runtime.free_tokens()
    loop = Loop(runtime, token_bytes=lambda t: b"a", end_ids=frozenset())
    contrast = made(preset, runtime)
    drafter = RandomTrees(8) if runtime.capabilities.trees else None
    ids = [loop.add(replace(r, max_tokens=40, drafter=drafter)) for r in requests(contrast)]
    for _ in range(4):
        loop.step()
    for i in ids:
        loop.cancel(i)
    loop.step()
    assert loop.idle and runtime.free_tokens() == free


@pytest.mark.parametrize("preset", ["uscd", "cfg"])
def test_particles_weigh_the_models_own_law_and_say_so(preset):
    with pytest.raises(CapabilityError, match="contrast"):
        Request((1,), particles=4, constraint=OneOf([1], 8), logits_processors=(PRESETS[preset](),))
