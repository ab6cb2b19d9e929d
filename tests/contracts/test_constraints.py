"""What every constraint promises, checked on every constraint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from constraint_factories import FACTORIES
from small_vocabularies import all_bytes

from likely.decoding.constraint import ConstraintViolation, contains, members, unpack
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.toy import ToyRuntime

VOCABULARY = all_bytes()
TEXT_IDS = frozenset(i for i, text in enumerate(VOCABULARY.tokens) if text)
SEEDS = range(6)


@pytest.fixture(scope="module", params=list(FACTORIES))
def make(request):
    first = FACTORIES[request.param](VOCABULARY)
    return first.fork


def ids_of(constraint) -> set[int]:
    return set(members(constraint.allowed()).tolist())


def look(constraint):
    """All that can be seen of a state."""
    return ids_of(constraint), constraint.accepting, constraint.finished


def wander(constraint, rng, steps=12, end=0.2):
    """Random allowed tokens, an end token now and then; yields before each and at the end."""
    for _ in range(steps):
        yield None
        ids = sorted(ids_of(constraint))
        if not ids:
            return
        ends = [i for i in ids if i in VOCABULARY.end_ids]
        go_on = [i for i in ids if i not in VOCABULARY.end_ids]
        token = int(rng.choice(ends if ends and (not go_on or rng.random() < end) else go_on))
        constraint.advance(token)
        yield token


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_says_what_permits_says_for_every_token(make, seed):
    constraint = make()
    for token in wander(constraint, np.random.default_rng(seed)):
        if token is None:
            asked = constraint.fork()
            one_by_one = [asked.permits(i) for i in range(VOCABULARY.size)]  # before the mask is known
            np.testing.assert_array_equal(unpack(constraint.allowed(), VOCABULARY.size), one_by_one)
            assert [constraint.permits(i) for i in range(VOCABULARY.size)] == one_by_one
            assert len(constraint.allowed()) == (VOCABULARY.size + 31) // 32
            assert not (members(constraint.allowed()) >= VOCABULARY.size).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_end_tokens_are_allowed_together_and_exactly_where_the_text_is_whole(make, seed):
    constraint, ended = make(), False
    for token in wander(constraint, np.random.default_rng(seed)):
        ended = ended or token in VOCABULARY.end_ids
        ids = ids_of(constraint)
        assert (ids & VOCABULARY.end_ids) == (VOCABULARY.end_ids if constraint.accepting and not ended else set())
        if constraint.finished:
            assert constraint.accepting and not ids & TEXT_IDS
        if ended:
            assert constraint.finished and not ids


@pytest.mark.parametrize("seed", SEEDS)
def test_only_tokens_with_text_are_allowed_and_duplicates_together(make, seed):
    constraint = make()
    for _ in wander(constraint, np.random.default_rng(seed)):
        ids = ids_of(constraint)
        assert ids <= TEXT_IDS | VOCABULARY.end_ids
        for same in VOCABULARY.ids_of.values():
            assert len({i in ids for i in same}) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_forbidden_token_is_refused_and_changes_nothing(make, seed):
    rng = np.random.default_rng(seed)
    constraint = make()
    for token in wander(constraint, rng):
        if token is not None:
            continue
        before = look(constraint)
        forbidden = sorted(set(range(VOCABULARY.size)) - before[0])
        for bad in (forbidden[0], forbidden[-1], int(rng.choice(forbidden))):
            for state in (constraint, constraint.fork()):
                with pytest.raises(ConstraintViolation):
                    state.advance(bad)
                assert look(state) == before


@pytest.mark.parametrize("seed", SEEDS)
def test_forks_are_independent(make, seed):
    rng = np.random.default_rng(seed)
    constraint = make()
    for token in wander(constraint, rng, steps=6):
        if token is not None:
            continue
        before, fork = look(constraint), constraint.fork()
        assert look(fork) == before
        taken = sum(t is not None for t in wander(fork, rng, steps=3))
        assert look(constraint) == before
        fork.rollback(taken)
        assert look(fork) == before == look(constraint)


@pytest.mark.parametrize("seed", SEEDS)
def test_rolling_back_gives_the_earlier_states_also_over_an_end_token(make, seed):
    rng = np.random.default_rng(seed)
    constraint, states, tokens = make(), [], []
    for token in wander(constraint, rng, end=0.1):
        if token is None:
            states.append(look(constraint))
        else:
            tokens.append(token)
    if len(states) == len(tokens):
        states.append(look(constraint))
    for n in range(len(tokens) + 1):
        undone = constraint.fork()
        undone.rollback(n)
        assert look(undone) == states[len(tokens) - n]
        for token in tokens[len(tokens) - n :]:
            undone.advance(token)
        assert look(undone) == states[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_forced_token_is_permitted(make, seed):
    constraint = make()
    for _ in wander(constraint, np.random.default_rng(seed)):
        forced = constraint.forced()
        if forced:
            assert contains(constraint.allowed(), forced[0]), VOCABULARY.text(forced)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_spellings_of_one_text_lead_to_the_same_state(make, seed):
    """A token of several bytes is allowed where its bytes are, one after the other, and leads to the same set."""
    constraint = make()
    for token in wander(constraint, np.random.default_rng(seed), steps=5):
        if token is not None:
            continue
        for text, ids in VOCABULARY.ids_of.items():
            if len(text) > 1:
                state = constraint.fork()
                for byte in text:
                    if not state.permits(byte):
                        state = None
                        break
                    state.advance(byte)
                assert constraint.permits(ids[0]) == (state is not None), text
                if state is not None:
                    whole = constraint.fork()
                    whole.advance(ids[0])
                    assert look(whole) == look(state)


# --- in the loop ------------------------------------------------------------------------------------------------------


def loop(**options) -> Loop:
    runtime = ToyRuntime.random(VOCABULARY.size, seed=2, context_length=64)
    return Loop(runtime, token_bytes=lambda t: VOCABULARY.tokens[t], end_ids=VOCABULARY.end_ids, **options)


def run(requests, **options):
    machine = loop(**options)
    ids = [machine.add(r) for r in requests]
    done = {}
    while not machine.idle:
        for event in machine.step():
            if event.error:
                raise event.error
            if event.finish:
                done.setdefault(event.request, {})[event.sample] = event.finish
    return [[done[i][k] for k in sorted(done[i])] for i in ids]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=5)], ids=["greedy", "sampled"])
def test_texts_of_a_batch_with_other_constraints_are_those_of_each_alone(sampling):
    base = Request(prompt=(1, 2), sampling=sampling, max_tokens=14)
    wanted = [replace(base, constraint=build(VOCABULARY)) for build in FACTORIES.values()]
    wanted += [replace(base, constraint=FACTORIES["reference choices"](VOCABULARY), max_tokens=5, samples=3), base]
    together = run(wanted)
    for request, found in zip(wanted, together, strict=True):
        [alone] = run([request])
        assert [f.tokens for f in alone] == [f.tokens for f in found]
        assert [f.log_masses for f in alone] == [f.log_masses for f in found]
    assert len({len(f[0].tokens) for f in together}) > 2  # some ended early


@pytest.mark.parametrize("name", list(FACTORIES))
def test_every_token_of_a_text_was_allowed_and_masses_add_up(name):
    constraint = FACTORIES[name](VOCABULARY)
    for seed in range(3):
        request = Request(
            prompt=(1,), sampling=Sampling(seed=seed), max_tokens=14, constraint=constraint, processed=True
        )
        [[done]] = run([request])
        state = constraint.fork()
        for token, logprob, mass, guided in zip(
            done.tokens, done.logprobs, done.log_masses, done.processed, strict=True
        ):
            assert state.permits(token)
            assert abs(logprob - guided - mass) < 1e-5
            state.advance(token)
        assert done.complete == state.accepting


@pytest.mark.parametrize(
    "name", ["reference regex", "closing regex", "closing schema", "sequence", "healing, then closing"]
)
def test_beams_stay_inside_the_language(name):
    constraint = FACTORIES[name](VOCABULARY)
    request = Request(
        prompt=(1,), sampling=Sampling(temperature=0), max_tokens=14, beams=3, samples=3, constraint=constraint
    )
    for done in run([request])[0]:
        state = constraint.fork()
        for token in done.tokens:
            state.advance(token)
        assert not name.startswith("closing") or done.complete
