"""A form held under any drafter, runtime, way of choosing and number of requests: the text of plain guided decoding."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES
from guided_product import END, FORMS, Unforced, constraints, vocabulary
from pairwise import pairwise
from speculation_product import CHOICES, RUNTIMES, cases, requests
from statistics_of_draws import chi_square_p

from likely.decoding.constraint import unpack
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime


@pytest.fixture(scope="module", params=list(RUNTIMES))
def target(request):
    build, tolerance = FACTORIES[RUNTIMES[request.param]]
    runtime = build()
    yield request.param, runtime, max(tolerance, 1e-6), constraints(runtime.vocab_size)
    runtime.shutdown()


def run(runtime, wanted: list[Request]):
    words = vocabulary(runtime.vocab_size)
    loop = Loop(runtime, token_bytes=lambda t: words.tokens[t], end_ids=words.end_ids)
    free = runtime.free_tokens()
    ids = [loop.add(r) for r in wanted]
    done = {}
    while not loop.idle:
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[event.request, event.sample] = event.finish
    assert runtime.free_tokens() == free
    return [done[key] for key in sorted(done, key=lambda k: (ids.index(k[0]), k[1]))]


def guided(runtime, made, kinds, choice, batch, **more):
    kinds = cycle(kinds)
    return [replace(r, constraint=made[next(kinds)](), **more) for r in requests(choice, batch, runtime.vocab_size)]


def plainly(wanted):
    return [replace(r, drafter=None, verification="keyed", constraint=Unforced(r.constraint)) for r in wanted]


UNDRAFTED = [(kind, "no drafter", choice) for kind in RUNTIMES for choice in CHOICES]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("target", "name", "choice"), pairwise([*UNDRAFTED, *cases()]), indirect=["target"])
def test_guided_text_is_that_of_plain_guided_decoding(target, name, choice):
    _, runtime, tolerance, made = target
    keyed = CHOICES[choice].get("verification", "keyed") == "keyed"
    source = MADE[name].build(runtime) if name in MADE else None
    for batch in (1, 3, 8):
        wanted = guided(runtime, made, FORMS, choice, batch, drafter=source)
        found = run(runtime, wanted)
        for request, finish in zip(wanted, found, strict=True):
            check_identity(runtime, request, finish, tolerance)
        if not keyed and source is not None:
            continue  # the law is tested below
        for expected, finish in zip(run(runtime, plainly(wanted)), found, strict=True):
            assert (finish.tokens, finish.text, finish.reason) == (expected.tokens, expected.text, expected.reason)
            assert finish.complete == expected.complete
            np.testing.assert_allclose(finish.logprobs, expected.logprobs, rtol=0, atol=tolerance)
            np.testing.assert_allclose(finish.log_masses, expected.log_masses, rtol=0, atol=10 * tolerance)
            np.testing.assert_allclose(finish.processed, expected.processed, rtol=0, atol=10 * tolerance)


def check_identity(runtime, request, finish, tolerance):
    """log p and log m of every token, from rows computed anew and a constraint that starts anew."""
    tokens = [*request.prompt, *finish.tokens]
    sequence = runtime.open()
    rows = runtime.forward([Work(sequence, np.array(tokens[:-1]), want=Want.ALL)])[0].logits
    runtime.close(sequence)
    state = request.constraint.fork()
    for i, token in enumerate(finish.tokens):
        p = log_softmax(rows[len(request.prompt) - 1 + i]).astype(np.float64)
        allowed = unpack(state.allowed(request.max_tokens - i), runtime.vocab_size)
        assert allowed[token]
        assert abs(finish.logprobs[i] - p[token]) < 10 * tolerance
        assert abs(finish.log_masses[i] - np.log(np.exp(p[allowed]).sum())) < 10 * tolerance + 1e-5
        state.advance(token)
    assert finish.complete == state.accepting
    if finish.reason == "stop":
        assert finish.complete and finish.tokens[-1] == END


def test_samples_of_one_prompt_are_those_of_single_requests(target):
    _, runtime, tolerance, made = target
    for kind in FORMS:
        base = replace(guided(runtime, made, [kind], "sampled, keyed", 1)[0], samples=4)
        together = run(runtime, [base])
        alone = [run(runtime, [replace(base, samples=1, first_sample=i)])[0] for i in range(4)]
        assert [f.tokens for f in together] == [f.tokens for f in alone]
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one.log_masses, other.log_masses, rtol=0, atol=10 * tolerance)


def test_beams_hold_the_form_and_find_the_best_of_all(target):
    """With room for every beam the search is exhaustive: the texts of the choices, most likely under q first."""
    _, runtime, tolerance, made = target
    request = Request(
        (1, 2, 1), Sampling(temperature=0.0), max_tokens=12, beams=64, samples=3, length_penalty=0.0,
        constraint=made["choices"](),
    )  # fmt: skip
    found = run(runtime, [request])
    scores = []
    for finish in found:
        check_identity(runtime, request, finish, tolerance)
        assert finish.complete
        scores.append(sum(finish.logprobs) - sum(finish.log_masses))
    assert scores == sorted(scores, reverse=True)
    every = all_texts(runtime, request)
    np.testing.assert_allclose(scores, sorted(every.values(), reverse=True)[:3], atol=100 * tolerance)


def all_texts(runtime, request) -> dict[tuple[int, ...], float]:
    """Every whole token string of the constraint -> log q, by enumeration."""
    out: dict[tuple[int, ...], float] = {}
    stack = [((), request.constraint.fork(), 0.0)]
    while stack:
        path, state, total = stack.pop()
        sequence = runtime.open()
        row = runtime.forward([Work(sequence, np.array([*request.prompt, *path]), want=Want.LAST)])[0].logits[-1]
        runtime.close(sequence)
        allowed = unpack(state.allowed(request.max_tokens - len(path)), runtime.vocab_size)
        q = log_softmax(np.where(allowed, row, -np.inf))
        for token in np.flatnonzero(allowed).tolist():
            if token == END:
                out[(*path, token)] = total + float(q[token])
                continue
            after = state.fork()
            after.advance(token)
            stack.append(((*path, token), after, total + float(q[token])))
    return out


LAWS = {"sampled, rejection": "rejection", "sampled, SpecTr": "spectr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verification"),
    [("no drafter", "keyed"), *((n, LAWS[choice]) for kind, n, choice in cases() if kind == "toy" and choice in LAWS)],
)
def test_sampled_guided_text_has_the_law_q(name, verification):
    """All texts of the choices with all their tokenisations, by enumeration. Keyed texts are those of no drafter."""
    runtime = ToyRuntime.random(14, seed=2, order=2, scale=1.0, context_length=64)
    source = MADE[name].build(runtime) if name in MADE else None
    request = Request(
        (1, 2, 1), Sampling(temperature=1.0, seed=0), max_tokens=12, drafter=source, draft_budget=6,
        verification=verification, constraint=constraints(14)["choices"](),
    )  # fmt: skip
    law = {path: float(np.exp(lp)) for path, lp in all_texts(runtime, request).items()}
    assert abs(sum(law.values()) - 1) < 1e-5 and len(law) == 8
    texts = [
        tuple(f.tokens)
        for block in range(3)
        for f in run(runtime, [replace(request, samples=400, first_sample=400 * block)])
    ]
    assert chi_square_p(texts, law) > 1e-6


@pytest.mark.slow
def test_a_dropped_mask_would_be_seen():
    """The enumeration above must be able to fail: the model's own law is another one."""
    runtime = ToyRuntime.random(14, seed=2, order=2, scale=1.0, context_length=64)
    request = Request((1, 2, 1), Sampling(temperature=1.0), max_tokens=12, constraint=constraints(14)["choices"]())
    law = {path: float(np.exp(lp)) for path, lp in all_texts(runtime, request).items()}
    biased = replace(request, sampling=Sampling(temperature=1.0, logit_bias={2: 0.7}))
    texts = [tuple(f.tokens) for f in run(runtime, [replace(biased, samples=2400)])]
    assert chi_square_p(texts, law) < 1e-6


def test_one_dead_end_leaves_the_others_alone(target):
    _, runtime, _, made = target
    wanted = guided(runtime, made, FORMS, "greedy", 4)
    alone = run(runtime, wanted)
    dead = replace(wanted[0], constraint=made["choices"](), min_tokens=10)  # every choice is shorter than that
    words = vocabulary(runtime.vocab_size)
    loop = Loop(runtime, token_bytes=lambda t: words.tokens[t], end_ids=words.end_ids)
    free = runtime.free_tokens()
    ids = [loop.add(r) for r in [*wanted[:2], dead, *wanted[2:]]]
    done, errors = {}, {}
    while not loop.idle:
        for event in loop.step():
            if event.error:
                errors[event.request] = event.error
            if event.finish:
                done[event.request] = event.finish
    assert runtime.free_tokens() == free
    assert list(errors) == [ids[2]] and "no token can follow" in str(errors[ids[2]])
    assert [done[i].tokens for i in (*ids[:2], *ids[3:])] == [f.tokens for f in alone]
