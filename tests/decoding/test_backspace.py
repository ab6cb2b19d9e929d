"""Texts that delete tokens: the exact law, a slow loop without a cache, every drafter, every runtime, little room."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, product

import numpy as np
import pytest
from drafter_factories import MADE
from factories import FACTORIES, runtime_cases
from helpers_for_loops import END, RandomTrees, run, toy_loop
from helpers_for_serving import toy_model
from statistics_of_draws import chi_square_p

from likely.decoding.constraint import mask_of
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling, apply_penalties, pick
from likely.errors import CapabilityError
from likely.runtimes.rows import log_softmax
from likely.runtimes.toy import ToyRuntime
from likely.scoring.likelihood import Item, score_items

BACK = 4
BASE = Request((0, 1), Sampling(seed=3), max_tokens=12, backspace_id=BACK)
SETTINGS = {
    "sampled": Sampling(seed=4),
    "hot": Sampling(temperature=1.5, top_p=0.9, seed=9),
    "penalised": Sampling(temperature=0.7, repetition_penalty=1.4, frequency_penalty=0.3, seed=2),
    "biased": Sampling(logit_bias={BACK: 2.0}, seed=6),
}


def by_hand(logits_of, request, end, sample=0):
    """(actions, text, logprobs): every row from the whole stack, nothing kept."""
    stack, logprobs, actions = [], [], []
    while len(stack) < request.max_tokens and len(actions) < 2 * request.max_tokens:
        row = logits_of((*request.prompt, *stack))
        seen = apply_penalties(row, request.sampling, request.prompt, stack).copy()
        if len(stack) < request.min_tokens:
            seen[end] = -np.inf
        if not stack:
            seen[BACK] = -np.inf
        at = len(request.prompt) + len(actions)
        token = pick(seen, request.sampling, noise=request.noise, sample=sample, position=at)
        actions.append(token)
        if token == BACK:
            stack.pop(), logprobs.pop()
            continue
        stack.append(token)
        logprobs.append(float(log_softmax(row[None])[0, token]))
        if token == end:
            break
    return actions, stack, logprobs


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_text_that_deletes_equals_the_loop_without_a_cache(settings):
    deleted = 0
    for seed, sample in product(range(4), range(3)):
        loop = toy_loop(seed=seed)
        request = replace(BASE, sampling=settings, samples=3, min_tokens=2)
        done = run(loop, request)[0][sample]
        actions, stack, logprobs = by_hand(loop.runtime._logits_of, request, END, sample)
        assert (done.actions, done.tokens) == (actions, stack)
        np.testing.assert_allclose(done.logprobs, logprobs, atol=1e-6)
        assert done.text == "".join("abc"[t] for t in stack if t < 3) and BACK not in done.tokens
        assert len(done.action_logprobs) == len(actions)
        deleted += actions.count(BACK)
    assert deleted > 3


def closed_form(logits_of, prompt, depth, temperature=1.0):
    """{final text: probability} of texts of at most `depth` tokens, deletions unbounded.

    pop(s) = π(back|s) / (1 − Σ_a π(a|s) pop(sa)): the chance that s is deleted.  A text is reached through its
    beginnings, each of which is left for good with weight 1 / (1 − Σ_a π(a|s) pop(sa)).
    """
    law = {}

    def visit(stack, reached):
        """The chance that `stack` is deleted; fills `law` below it, `reached` the weight of standing here first."""
        row = np.asarray(logits_of((*prompt, *stack)), np.float64) / temperature
        if not stack:
            row[BACK] = -np.inf
        p = np.exp(row - row.max())
        p /= p.sum()
        ends = [(a, len(stack) + 1 == depth or a == END) for a in range(len(p)) if a != BACK]
        returns = sum(p[a] * pop((*stack, a)) for a, over in ends if not over)
        here = reached / (1 - returns)
        for a, over in ends:
            if over:
                law[(*stack, a)] = here * p[a]
            else:
                visit((*stack, a), here * p[a])
        return here * p[BACK] / reached

    def pop(stack):
        row = np.asarray(logits_of((*prompt, *stack)), np.float64) / temperature
        p = np.exp(row - row.max())
        p /= p.sum()
        over = [a for a in range(len(p)) if a != BACK and not (len(stack) + 1 == depth or a == END)]
        return p[BACK] / (1 - sum(p[a] * pop((*stack, a)) for a in over))

    visit((), 1.0)
    return law


def by_linear_system(logits_of, prompt, depth):
    """The same from the whole chain of stacks: absorption probabilities (I − Q)⁻¹ R."""
    states, at = [()], {(): 0}
    for stack in states:
        for a in range(BACK):
            if a != END and len(stack) + 1 < depth:
                at[(*stack, a)] = len(states)
                states.append((*stack, a))
    law, Q, out = {}, np.zeros((len(states), len(states))), []
    for i, stack in enumerate(states):
        row = np.asarray(logits_of((*prompt, *stack)), np.float64)
        if not stack:
            row[BACK] = -np.inf
        p = np.exp(row - row.max())
        p /= p.sum()
        for a in range(len(p)):
            if a == BACK and stack:
                Q[i, at[stack[:-1]]] += p[a]
            elif (*stack, a) in at:
                Q[i, at[(*stack, a)]] += p[a]
            elif a != BACK:
                out.append((i, (*stack, a), p[a]))
    visits = np.linalg.inv(np.eye(len(states)) - Q)[0]
    for i, text, p in out:
        law[text] = visits[i] * p
    return law


def test_the_law_of_final_texts_is_its_closed_form():
    runtime = ToyRuntime.random(5, seed=5, order=2, scale=1.0, context_length=256, tokens_held=1 << 16, sequences=512)
    exact = closed_form(runtime._logits_of, (0, 1), 3)
    solved = by_linear_system(runtime._logits_of, (0, 1), 3)
    assert exact.keys() == solved.keys() and abs(sum(exact.values()) - 1) < 1e-12
    assert max(abs(exact[text] - solved[text]) for text in exact) < 1e-12
    bounded = bounded_law(runtime._logits_of, (0, 1), 3, 6)  # a request of 3 tokens takes 6 actions at most
    assert max(abs(bounded.get(text, 0) - p) for text, p in exact.items()) < 0.05
    request = replace(BASE, max_tokens=3, samples=400)
    groups = [run(toy_loop(runtime), replace(request, sampling=Sampling(seed=s)))[0] for s in range(2)]
    assert chi_square_p([tuple(done.tokens) for group in groups for done in group], bounded) > 1e-6
    [without] = run(toy_loop(runtime), replace(request, backspace_id=None))
    assert chi_square_p([tuple(done.tokens) for done in without], bounded) < 1e-6


def bounded_law(logits_of, prompt, depth, most):
    """The law with at most `most` actions, by following every one of them."""
    law, going = {}, {(): 1.0}
    for _ in range(most):
        after = {}
        for stack, weight in going.items():
            row = np.asarray(logits_of((*prompt, *stack)), np.float64)
            if not stack:
                row[BACK] = -np.inf
            p = np.exp(row - row.max())
            p /= p.sum()
            for a in range(len(p)):
                text = stack[:-1] if a == BACK else (*stack, a)
                over = a != BACK and (a == END or len(text) == depth)
                into = law if over else after
                if p[a] > 0:
                    into[text] = into.get(text, 0.0) + weight * p[a]
        going = after
    for text, weight in going.items():
        law[text] = law.get(text, 0.0) + weight
    return law


@pytest.mark.parametrize("name", [name for name, made in MADE.items() if "toy" in made.runtimes])
def test_no_drafter_changes_a_text_that_deletes(name):
    runtime = ToyRuntime.random(8, seed=2, order=3, context_length=128, tokens_held=1 << 14, sequences=128)
    source = MADE[name].build(runtime)
    often = Sampling(seed=3, logit_bias={BACK: 2.0, END: -3.0})
    wanted = [replace(BASE, prompt=p, max_tokens=20, samples=2, sampling=often) for p in ((0, 1, 2, 0, 1), (1, 2))]
    plain = run(toy_loop(runtime), *wanted)
    drafted = run(toy_loop(runtime), *(replace(r, drafter=source, draft_budget=4) for r in wanted))
    for one, other in zip(chain(*plain), chain(*drafted), strict=True):
        assert (other.actions, other.tokens, other.text) == (one.actions, one.tokens, one.text)
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-5)
        assert len(other.drafted) == len(other.tokens)
    assert sum(BACK in done.actions for group in plain for done in group) >= 2


def test_wrong_drafts_that_hold_the_backspace_change_nothing():
    for seed in range(6):
        loop = toy_loop(seed=seed)
        request = replace(BASE, max_tokens=20, sampling=Sampling(seed=seed, logit_bias={BACK: 1.0}))
        [[plain]] = run(loop, request)
        [[drafted]] = run(loop, replace(request, drafter=RandomTrees(6, seed), draft_budget=12))
        assert (drafted.actions, drafted.logprobs) == (plain.actions, pytest.approx(plain.logprobs, abs=1e-6))
        assert drafted.accepted > 0 or not drafted.proposed or seed


@pytest.mark.parametrize("name", runtime_cases(["toy", "torch", "llamacpp-f32", "native"]))
def test_every_runtime_gives_the_log_probabilities_of_what_is_left(name):
    build, tolerance = FACTORIES[name]
    runtime = build()
    try:
        free = runtime.free_tokens()
        wanted = [
            Request((1, 2, 5)[: 1 + i], Sampling(seed=i, logit_bias={BACK: 6.0}), max_tokens=9, backspace_id=BACK,
                    samples=1 + i % 2)
            for i in range(3)
        ]  # fmt: skip
        end = runtime.vocab_size - 1

        def loop():
            return Loop(runtime, token_bytes=lambda t: bytes([97 + t % 26]), end_ids=frozenset({end}))

        together = run(loop(), *wanted)
        assert runtime.free_tokens() == free
        assert sum(done.actions.count(BACK) for group in together for done in group) >= 3
        for request, group in zip(wanted, together, strict=True):
            [alone] = run(loop(), request)
            for done, own in zip(group, alone, strict=True):
                assert done.actions == own.actions
                text = (*request.prompt, *done.tokens)
                [scored] = score_items(runtime, [Item(text, len(request.prompt))])
                np.testing.assert_allclose(done.logprobs, scored.logprobs, atol=max(tolerance, 1e-5))
    finally:
        runtime.shutdown()


def test_little_room_changes_no_text_and_its_end_is_said():
    requests = [replace(BASE, prompt=(0, 1, i % 3), sampling=Sampling(seed=i), max_tokens=30) for i in range(4)]
    wide = run(toy_loop(), *requests)
    tight = ToyRuntime.random(6, seed=1, context_length=64, tokens_held=50)
    assert [[d.actions for d in g] for g in run(toy_loop(tight), *requests)] == [[d.actions for d in g] for g in wide]
    short = ToyRuntime.random(6, seed=1, context_length=9)
    [[done]] = run(toy_loop(short), replace(BASE, max_tokens=60, sampling=Sampling(seed=2, logit_bias={END: -9.0})))
    assert done.reason == "context" and len(done.tokens) == 7


def test_stop_strings_see_only_what_is_left():
    seen = 0
    for seed in range(30):
        loop = toy_loop(seed=1)
        [[free]] = run(loop, replace(BASE, sampling=Sampling(seed=seed)))
        [[done]] = run(loop, replace(BASE, sampling=Sampling(seed=seed), stop=("bb",)))
        stack, stopped = [], False
        for action in free.actions:
            if action == BACK:
                stack.pop()
            else:
                stack.append(action)
            if stopped := "bb" in "".join("abc"[t] for t in stack if t < 3):
                break
        assert (done.reason == "stop" and done.tokens == stack) if stopped else done.tokens == free.tokens
        seen += stopped
    assert seen


def test_the_public_verb_and_a_cancelled_text():
    lm = toy_model()
    made = lm.generate("ab", n=4, max_tokens=12, backspace_id=2, seed=5, logit_bias={2: 3.0})
    assert any(2 in g.actions for g in made) and all(2 not in g.token_ids for g in made)
    assert all(g.actions is None for g in lm.generate("ab", n=2, max_tokens=3, seed=1))
    [one] = [g for g in made if g.sample == 0]
    pieces = list(lm.stream("ab", max_tokens=12, backspace_id=2, seed=5, logit_bias={2: 3.0}))
    assert "".join(getattr(p, "text", p) for p in pieces) == one.text
    loop = toy_loop()
    number = loop.add(replace(BASE, max_tokens=40, sampling=Sampling(logit_bias={END: -9.0})))
    for _ in range(6):
        assert loop.step() == []
    loop.cancel(number)
    [event] = loop.step()
    assert event.finish.reason == "cancelled" and event.text == event.finish.text and event.tokens


class _Anything:
    vocab_size, accepting, finished, approximate = 6, True, False, False

    def allowed(self, remaining=None):
        return mask_of(range(6), 6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sampling": Sampling(temperature=0)}, CapabilityError, "for ever: set temperature > 0"),
        ({"verification": "rejection"}, CapabilityError, "takes no verification"),
        ({"constraint": _Anything()}, CapabilityError, "takes no constraint"),
        ({"backspace_id": -1}, ValueError, "must be a token id"),
        ({"stop_tokens": frozenset({BACK})}, ValueError, "one of the stop_tokens"),
    ],
)
def test_what_cannot_be_is_refused_and_says_what_can(change, error, message):
    with pytest.raises(error, match=message):
        replace(BASE, **change)


def test_a_runtime_that_cannot_is_refused():
    loop = toy_loop()
    with pytest.raises(ValueError, match="outside 0"):
        loop.add(replace(BASE, backspace_id=6))
    with pytest.raises(ValueError, match="ends a text"):
        loop.add(replace(BASE, backspace_id=END))
    loop.runtime.capabilities = replace(loop.runtime.capabilities, truncate=False)
    with pytest.raises(CapabilityError, match="native"):
        loop.add(BASE)
