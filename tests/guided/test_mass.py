"""log p = log q + Σ log m on every sample, and E_q[Π m] = p(L): masses are the model's own probability of the form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_vocabularies import of

from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.guided.settings import FormSettings
from likely.runtimes.toy import ToyRuntime, exact_logprob

VOCABULARY = of(b"a", b"b", b"c")  # a Markov model of three symbols, and an end token
END = 3
LENGTH = 6
FORMS = {
    "regex": {"regex": "a(b|ca)*c?"},
    "choices": {"choices": ["a", "ab", "abc", "cab", "ccc"]},
    "length": {"regex": "[abc]{2,4}"},
    "everything": {"regex": "[abc]*"},
}


def build(runtime):
    return Loop(runtime, token_bytes=lambda t: VOCABULARY.tokens[t], end_ids=VOCABULARY.end_ids)


def samples(runtime, constraint, n, **sampling):
    loop = build(runtime)
    request = Request(
        prompt=(0,),
        sampling=Sampling(seed=11, **sampling),
        max_tokens=LENGTH,
        samples=n,
        constraint=constraint,
        processed=True,
    )
    loop.add(request)
    out = []
    while not loop.idle:
        for event in loop.step():
            if event.error:
                raise event.error
            if event.finish:
                out.append(event.finish)
    return out


@pytest.fixture(params=["reference", "llguidance"])
def constraint_of(request):
    if request.param == "llguidance":
        pytest.importorskip("llguidance")
    guide = Guide(VOCABULARY)
    settings = FormSettings(backend=request.param, close_on_budget=False)
    return lambda form: guide.constraint(make_form(**form, settings=settings))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_identity_holds_on_every_sample(constraint_of, form):
    runtime = ToyRuntime.random(4, seed=5, order=1)
    constraint = constraint_of(form)
    for done in samples(runtime, constraint, 200):
        log_p = sum(done.logprobs)
        assert abs(log_p - exact_logprob(runtime, done.tokens, given=(0,))) < 1e-5
        assert abs(log_p - sum(done.processed) - sum(done.log_masses)) < 1e-5
        # q by hand: the model over the allowed tokens, renormalised
        state, log_q = constraint.fork(), 0.0
        for n, token in enumerate(done.tokens):
            row = np.asarray(runtime._logits_of((0, *done.tokens[:n])), np.float64)
            inside = [v for v in range(4) if state.permits(v)]
            log_q += row[token] - np.logaddexp.reduce(row[inside])
            state.advance(token)
        assert abs(log_q - sum(done.processed)) < 1e-5


def probability_of(runtime, constraint):
    """p(L): the sum over all token strings that end in the language, or are cut at LENGTH as a prefix of it."""
    total = 0.0
    for n in range(LENGTH + 1):
        for tokens in itertools.product(range(3), repeat=n):
            state = constraint.fork()
            for token in tokens:
                if not state.permits(token):
                    state = None
                    break
                state.advance(token)
            if state is None:
                continue
            if n == LENGTH:
                total += np.exp(exact_logprob(runtime, tokens, given=(0,)))
            elif state.permits(END):
                total += np.exp(exact_logprob(runtime, [*tokens, END], given=(0,)))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_mean_of_the_masses_is_the_probability_of_the_language(constraint_of, form):
    runtime = ToyRuntime.random(4, seed=8, order=1, sequences=4096, tokens_held=2**17)
    constraint = constraint_of(form)
    weights = np.exp([sum(done.log_masses) for done in samples(runtime, constraint, 3000)])
    expected = probability_of(runtime, constraint)
    error = weights.std(ddof=1) / np.sqrt(len(weights))
    assert abs(weights.mean() - expected) <= 3 * error + 1e-6, (weights.mean(), expected, error)
    if form is not FORMS["everything"]:
        assert expected < 0.97  # else the test would say nothing


def test_masses_are_those_of_the_model_and_not_of_a_tempered_law(constraint_of):
    runtime = ToyRuntime.random(4, seed=5, order=1)
    for temperature in (0.0, 0.5, 2.0):
        for done in samples(runtime, constraint_of(FORMS["regex"]), 1, temperature=temperature):
            for n, mass in enumerate(done.log_masses):
                row = np.asarray(runtime._logits_of((0, *done.tokens[:n])), np.float64)
                state = constraint_of(FORMS["regex"])
                for token in done.tokens[:n]:
                    state.advance(token)
                inside = [v for v in range(4) if state.permits(v)]
                assert abs(mass - np.logaddexp.reduce(row[inside]) + np.logaddexp.reduce(row)) < 1e-5
