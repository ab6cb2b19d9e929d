"""Any drafter, any runtime, any way of choosing, any number of requests, log-probabilities on: the target's text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES
from pairwise import pairwise
from speculation_product import BATCHES, CHOICES, RUNTIMES, cases, possible, requests
from statistics_of_draws import chi_square_p

from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.runtimes.toy import ToyRuntime

END = 7


@pytest.fixture(scope="module", params=list(RUNTIMES))
def target(request):
    build, tolerance = FACTORIES[RUNTIMES[request.param]]
    runtime = build()
    yield request.param, runtime, max(tolerance, 1e-6)
    runtime.shutdown()


def run(runtime, wanted: list[Request]):
    loop = Loop(runtime, token_bytes=lambda t: bytes([97 + t % 26]), end_ids=frozenset({END}))
    free = runtime.free_tokens()
    ids = [loop.add(r) for r in wanted]
    done = {}
    while not loop.idle:
        for event in loop.step():
            assert event.error is None, event.error
            if event.finish:
                done[event.request] = event.finish
    assert runtime.free_tokens() == free
    return [done[i] for i in ids]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("target", "name", "choice"), pairwise(cases()), indirect=["target"])
def test_text_and_logprobs_are_those_of_plain_decoding(target, name, choice):
    _, runtime, tolerance = target
    source = MADE[name].build(runtime)
    for batch in BATCHES:
        plain = requests(choice, batch, runtime.vocab_size)
        drafted = [replace(r, drafter=source) for r in plain]
        found = run(runtime, drafted)
        if CHOICES[choice].get("verification", "keyed") != "keyed":
            # the law is tested below; here: it ends, frees everything, and reports the target's own numbers
            for request, finish in zip(drafted, found, strict=True):
                check_reported(runtime, request, finish, tolerance)
            continue
        for expected, finish in zip(run(runtime, plain), found, strict=True):
            assert finish.tokens == expected.tokens and finish.text == expected.text
            assert finish.reason == expected.reason
            np.testing.assert_allclose(finish.logprobs, expected.logprobs, rtol=0, atol=tolerance)
            np.testing.assert_allclose(finish.processed, expected.processed, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("choice", ["sampled, rejection", "sampled, SpecTr"])
def test_a_verification_that_the_drafts_do_not_allow_is_refused(choice):
    runtime = FACTORIES["toy"][0]()
    [plain] = requests(choice, 1, runtime.vocab_size)
    sources = [made.build(runtime) for made in MADE.values() if "toy" in made.runtimes]
    refused = [source for source in sources if not possible(source, choice)]
    assert refused
    for source in refused:
        with pytest.raises(CapabilityError, match="keyed"):
            replace(plain, drafter=source)


def check_reported(runtime, request, finish, tolerance):
    from likely.runtimes.protocol import Want, Work
    from likely.runtimes.rows import log_softmax

    tokens = [*request.prompt, *finish.tokens]
    sequence = runtime.open()
    rows = runtime.forward([Work(sequence, np.array(tokens[:-1]), want=Want.ALL)])[0].logits
    runtime.close(sequence)
    at = np.arange(len(request.prompt) - 1, len(tokens) - 1)
    expected = log_softmax(rows[at])[np.arange(len(at)), finish.tokens]
    np.testing.assert_allclose(finish.logprobs, expected, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", list(MADE))
def test_cancelled_in_mid_flight_everything_is_freed(target, name):
    kind, runtime, _ = target
    if kind not in MADE[name].runtimes:
        pytest.skip("made for another runtime")
    source = MADE[name].build(runtime)
    free = runtime.free_tokens()
    loop = Loop(runtime, token_bytes=lambda t: b"a", end_ids=frozenset())
    ids = [loop.add(replace(r, drafter=source, max_tokens=40)) for r in requests("greedy", 3, runtime.vocab_size)]
    for _ in range(4):
        loop.step()
    for i in ids:
        loop.cancel(i)
    loop.step()
    assert loop.idle and runtime.free_tokens() == free
    drafts = getattr(source, "runtime", None)
    if isinstance(drafts, ToyRuntime):
        assert not drafts._open


LAW = Sampling(temperature=1.0, seed=0)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("verification", ["rejection", "spectr"])
@pytest.mark.parametrize("name", list(MADE))
def test_sampled_text_has_the_targets_law(name, verification):
    """All texts of three tokens over a vocabulary of eight, by enumeration. Keyed texts are those of plain decoding."""
    if "toy" not in MADE[name].runtimes:
        pytest.skip("made for another runtime")
    runtime = ToyRuntime.random(8, seed=2, order=2, scale=1.5, context_length=64)
    source = MADE[name].build(runtime)
    try:
        request = Request((1, 2, 1), LAW, max_tokens=3, drafter=source, draft_budget=6, verification=verification)
    except CapabilityError:
        pytest.skip("its drafts have no such law")
    texts = []
    loop = Loop(runtime, token_bytes=lambda t: b"a", end_ids=frozenset())
    for i in range(0, 3000, 50):
        loop.add(replace(request, samples=50, first_sample=i))
        while not loop.idle:
            texts += [tuple(e.finish.tokens) for e in loop.step() if e.finish]
    from likely.runtimes.rows import log_softmax

    law = {}
    for a in range(8):
        for b in range(8):
            for c in range(8):
                rows = [runtime._logits_of((1, 2, 1, *before)) for before in ((), (a,), (a, b))]
                law[(a, b, c)] = float(np.exp(sum(log_softmax(r)[t] for r, t in zip(rows, (a, b, c), strict=True))))
    assert chi_square_p(texts, law) > 1e-6
