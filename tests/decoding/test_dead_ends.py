"""A contradiction that one text meets ends that text: other beams, particles and requests go on."""

from __future__ import annotations

import numpy as np
import pytest
from guided_product import END, vocabulary

from likely.decoding.constraint import ConstraintDeadEnd
from likely.decoding.drafting.protocol import Draft
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import ConstraintError
from likely.guided.combinators import AllOf
from likely.guided.form import make_form
from likely.guided.guide import Guide
from likely.runtimes.toy import ToyRuntime

WORDS = vocabulary(14)
GUIDE = Guide(WORDS)


def held(regex: str):
    return GUIDE.constraint(make_form(regex=regex))


def contradiction():
    """Begins with a or 1; after a nothing may follow, and neither part can know."""
    return AllOf(held(r"a\[|1\]"), held(r"a\{|1\]"))


def run(request: Request):
    runtime = ToyRuntime.random(14, seed=2, order=2, context_length=64)
    loop = Loop(runtime, token_bytes=lambda t: WORDS.tokens[t], end_ids=WORDS.end_ids)
    free = runtime.free_tokens()
    loop.add(request)
    done = []
    while not loop.idle:
        for event in loop.step():
            if event.error:
                raise event.error
            done += [event.finish] if event.finish else []
    assert runtime.free_tokens() == free
    return done


def test_a_dead_beam_is_dropped():
    request = Request((1, 2), Sampling(temperature=0), beams=3, samples=1, max_tokens=5, constraint=contradiction())
    assert [f.text for f in run(request)] == ["1]"]


def test_a_dead_particle_has_no_weight():
    found = run(Request((1, 2), Sampling(temperature=1.0), particles=16, max_tokens=5, constraint=contradiction()))
    weights = {f.text: f.particle_log_weight for f in found}
    assert weights["1]"] > -np.inf and all(w == -np.inf for text, w in weights.items() if text != "1]")


def test_where_every_text_is_dead_it_is_an_error():
    dead = AllOf(held(r"a\["), held(r"a\{"))
    with pytest.raises(ConstraintDeadEnd):
        run(Request((1, 2), Sampling(temperature=0), beams=3, max_tokens=5, constraint=dead))
    with pytest.raises(ConstraintError):
        run(Request((1, 2), Sampling(temperature=1.0), particles=4, max_tokens=5, constraint=dead))


def test_a_text_cut_by_a_stop_token_is_not_complete():
    request = Request(
        (1, 2), Sampling(temperature=0), max_tokens=6, stop_tokens=frozenset({4}), constraint=held("a{2}1")
    )
    [finish] = run(request)
    assert finish.text == "aa" and finish.reason == "stop" and not finish.complete
    assert finish.tokens[-1] == 4 and END not in finish.tokens


class Chatter:
    """A drafter of fixed tokens."""

    name, free = "chatter", True

    def __init__(self):
        from likely.decoding.drafting.protocol import FIXED_ONLY

        self.distributions = FIXED_ONLY

    def begin(self, prompt, context):
        return self

    def propose(self, budget):
        return Draft.chain([2] * budget)

    def observe(self, tokens): ...
    def fork(self, context):
        return self

    def rollback(self, n): ...
    def end(self): ...


class Tiring:
    """A constraint whose engine gives up after some tokens, whoever asks."""

    def __init__(self, inner, left):
        self.inner, self.left = inner, left

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def fork(self):
        return Tiring(self.inner.fork(), self.left)

    def advance(self, token):
        if not self.left:
            raise ConstraintError("the grammar has become too complex")
        self.left -= 1
        self.inner.advance(token)

    def rollback(self, n):
        self.left += n
        self.inner.rollback(n)


def test_an_engine_that_gives_up_while_drafting_harms_its_own_request_only():
    runtime = ToyRuntime.random(14, seed=2, order=2, context_length=64)
    loop = Loop(runtime, token_bytes=lambda t: WORDS.tokens[t], end_ids=WORDS.end_ids)
    base = {"sampling": Sampling(temperature=0), "max_tokens": 12, "drafter": Chatter(), "draft_budget": 6}
    tired = loop.add(Request((1, 2), constraint=Tiring(held("a{20}"), 4), **base))
    well = loop.add(Request((1, 2), constraint=held("a{10}"), **base))
    errors, done = {}, {}
    while not loop.idle:
        for event in loop.step():
            if event.error:
                errors[event.request] = event.error
            if event.finish:
                done[event.request] = event.finish
    assert set(errors) == {tired} and "too complex" in str(errors[tired])
    assert set(done) == {well} and done[well].text == "a" * 10


class Never:
    """A transform that cannot follow any prompt."""

    def begin(self, runtime, prompt):
        raise ValueError("not this prompt")


def test_a_transform_that_cannot_begin_ends_its_request_alone():
    runtime = ToyRuntime.random(14, seed=2, order=2, context_length=64)
    loop = Loop(runtime, token_bytes=lambda t: WORDS.tokens[t], end_ids=WORDS.end_ids)
    free = runtime.free_tokens()
    held_sequence = runtime.open()
    broken = loop.add(Request((1, 2), Sampling(), max_tokens=4, logits_processors=(Never(),)), held=held_sequence)
    fine = loop.add(Request((1, 2), Sampling(), max_tokens=4))
    events = []
    while not loop.idle:
        events += loop.step()
    assert [str(e.error) for e in events if e.request == broken] == ["not this prompt"]
    assert any(e.finish for e in events if e.request == fine) and runtime.free_tokens() == free
