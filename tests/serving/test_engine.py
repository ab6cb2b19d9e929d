"""The engine on a toy model: exact numbers, whatever else runs; room comes back; errors stay where they belong."""

from __future__ import annotations

import asyncio
import itertools
import threading

import numpy as np
import pytest
from helpers_for_serving import toy_model

from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import KvFull, ModelError
from likely.runtimes.toy import exact_logprob
from likely.scoring.likelihood import Item, score_items
from likely.serving.engine import AsyncEngine, EngineFailed, Overloaded


def using(model, question, **options):
    """Run `await question(engine)`; afterwards everything the runtime lent must be back."""

    async def run():
        engine = AsyncEngine(model, **options)
        try:
            return await question(engine)
        finally:
            engine.close()

    try:
        return asyncio.run(run())
    finally:
        assert model.runtime.free_tokens() == model.runtime.limits.tokens_held
        assert not model.runtime._open


async def whole(ticket):
    """Tokens, logprobs and ending of each sample, joined from the events."""
    samples = {}
    async for event in ticket:
        text, tokens, logprobs, reason = samples.get(event.sample, ("", (), (), None))
        reason = event.finish.reason if event.finish else None
        samples[event.sample] = (text + event.text, tokens + event.tokens, logprobs + event.logprobs, reason)
    return samples


def requests(model, count=24):
    rng = np.random.default_rng(0)
    return [
        Request(
            tuple(int(t) for t in rng.integers(0, 26, size=rng.integers(1, 12))),
            Sampling(temperature=(0.0, 1.0, 0.7)[i % 3], seed=i, top_p=(1.0, 0.8)[i % 2]),
            max_tokens=int(rng.integers(1, 20)),
            samples=1 + i % 3,
            top_logprobs=i % 3,
        )
        for i in range(count)
    ]


def test_each_of_many_requests_is_as_alone_and_scores_are_exact():
    model = toy_model(tokens_held=400)
    asked = requests(model)
    alone = [using(model, lambda e, r=r: whole(e.submit(r))) for r in asked]
    items = [Item((*r.prompt, 1, 2, 3), 1) for r in asked]

    async def question(engine):
        scoring = asyncio.create_task(engine.score(items, top=2))
        done = await asyncio.gather(*[whole(engine.submit(r)) for r in asked])
        return done, await scoring

    together, scores = using(model, question)
    assert together == alone
    for item, score in zip(items, scores, strict=True):
        exact = exact_logprob(model.runtime, item.tokens[1:], given=item.tokens[:1])
        assert sum(score.logprobs) == pytest.approx(exact, abs=1e-5)
        assert [len(row) for row in score.tops] == [2] * (len(item.tokens) - 1)


def test_scoring_and_decoding_take_turns():
    model = toy_model(sequences=6)
    kinds: list[str] = []
    gate = threading.Event()
    forward = model.runtime.forward

    def watched(work):
        gate.wait()
        kinds.append("score" if work[0].want.pairs is not None else "decode")
        return forward(work)

    model.runtime.forward = watched
    items = [Item((i % 26, i // 26, 3, 4), 1) for i in range(120)]

    async def question(engine):
        scoring = asyncio.create_task(engine.score(items))
        await asyncio.sleep(0)
        ticket = engine.submit(Request((1,), max_tokens=50, min_tokens=50))
        gate.set()
        await whole(ticket)
        return await scoring

    scores = using(model, question)
    first, last = kinds.index("decode"), len(kinds) - kinds[::-1].index("decode")
    shared = kinds[first:last]
    pairs = list(itertools.pairwise(shared))
    assert ("score", "score") not in pairs and shared.count("score") >= 10
    model.runtime.forward = forward
    assert scores == score_items(model.runtime, items)


def test_two_scoring_jobs_take_turns_and_short_ones_do_not_wait_for_long_ones():
    model = toy_model(sequences=6)
    long = [Item((i % 26, i // 26, 3, 4), 1) for i in range(200)]
    order: list[str] = []
    gate = threading.Event()
    forward = model.runtime.forward
    model.runtime.forward = lambda work: gate.wait() and forward(work)

    async def question(engine):
        async def one(name, items):
            await engine.score(items)
            order.append(name)

        task = asyncio.create_task(one("long", long))
        await asyncio.sleep(0)
        short = asyncio.create_task(one("short", [Item((1, 2), 1)]))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(short, task)

    using(model, question)
    assert order == ["short", "long"]


def test_a_scoring_job_gives_way_to_decoding_when_room_is_short():
    """60 tokens in all: a request that needs 48 of them runs beside a job that shares a prefix of 30."""
    model = toy_model(tokens_held=60, context_length=48, sequences=8)
    items = [Item((*range(26), 1, 2, 3, 4, i % 26, i // 26), 30) for i in range(60)]
    expected = score_items(model.runtime, items)
    long = Request((1, 2, 3), max_tokens=45, min_tokens=45)
    alone = using(model, lambda e: whole(e.submit(long)))

    async def question(engine):
        scoring = asyncio.create_task(engine.score(items))
        done = await asyncio.gather(*[whole(engine.submit(long)) for _ in range(3)])
        return done, await scoring

    done, scores = using(model, question)
    assert done == [alone] * 3 and alone[0][3] == "length"
    assert [s.logprobs for s in scores] == [s.logprobs for s in expected]


def test_cancel_ends_one_request_and_frees_its_room():
    model = toy_model()

    async def question(engine):
        endless = Request((1, 2), max_tokens=60, min_tokens=60)
        other = asyncio.create_task(whole(engine.submit(endless)))
        ticket = engine.submit(Request((3,), max_tokens=60, min_tokens=60, samples=3))
        await anext(ticket)
        ticket.cancel()
        reasons = [event.finish.reason async for event in ticket if event.finish]
        ticket.cancel()
        assert reasons == ["cancelled"] * 3
        assert (await other)[0][3] == "length"
        assert engine.waiting == 0

    using(model, question)


def test_a_cancelled_scoring_job_is_dropped():
    model = toy_model(sequences=4)
    gate, entered = threading.Event(), threading.Event()
    forward = model.runtime.forward

    def held(work):
        entered.set()
        gate.wait()
        return forward(work)

    model.runtime.forward = held

    async def question(engine):
        task = asyncio.create_task(engine.score([Item((i % 26, i // 26, 1), 1) for i in range(500)]))
        await asyncio.to_thread(entered.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await engine.score([Item((1, 2), 1)])
        assert engine.waiting == 0

    using(model, question)
    assert model.runtime.calls < 10


def test_a_refused_request_disturbs_nobody():
    model = toy_model(context_length=32)

    async def question(engine):
        good = asyncio.create_task(whole(engine.submit(Request((1,), max_tokens=20, min_tokens=20))))
        with pytest.raises(ValueError, match="outside"):
            engine.submit(Request((99,)))
        with pytest.raises(ValueError, match="vocabulary"):
            engine.submit(Request((1,), Sampling(logit_bias={4096: 1.0})))
        with pytest.raises(ModelError, match="40 tokens"):
            engine.submit(Request((1,) * 40))
        with pytest.raises(ModelError, match="40 tokens"):
            await engine.score([Item((1,) * 40, 1)])
        with pytest.raises(ValueError, match="start"):
            await engine.score([Item((1,), 0)])
        assert (await good)[0][3] == "length"

    using(model, question)


def test_what_can_never_fit_ends_with_its_error_and_leaves_no_trace():
    model = toy_model(tokens_held=20, context_length=64, sequences=4)

    async def question(engine):
        with pytest.raises(ModelError, match="the prompt has 30 tokens; this model's context is 20"):
            await whole(engine.submit(Request((1,) * 30, samples=4)))
        with pytest.raises(KvFull):
            await engine.score([Item((1,) * 40, 1)])
        assert engine.waiting == 0
        return await whole(engine.submit(Request((1, 2), max_tokens=3, min_tokens=3)))

    assert using(model, question)[0][3] == "length"


def test_a_broken_call_ends_what_ran_and_the_next_request_works():
    model = toy_model()
    forward, broken = model.runtime.forward, [True]

    def fails_once(work):
        if broken.pop():
            raise RuntimeError("out of order")
        broken.append(False)
        return forward(work)

    model.runtime.forward = fails_once

    async def question(engine):
        with pytest.raises(EngineFailed, match="out of order"):
            await whole(engine.submit(Request((1,), max_tokens=5)))
        broken.append(False)
        return await whole(engine.submit(Request((1,), max_tokens=5, min_tokens=5)))

    assert using(model, question)[0][3] == "length"


def test_whoever_waits_is_told_when_the_thread_breaks():
    async def run():
        model = toy_model()
        engine = AsyncEngine(model)

        def broken():
            raise OSError("no such room")

        model.runtime.free_tokens = broken
        for _ in range(2):  # the second may come before the thread has ended
            with pytest.raises(EngineFailed, match="no such room"):
                async with asyncio.timeout(60):
                    await whole(engine.submit(Request((1,), max_tokens=60)))
        engine.close()

    asyncio.run(run())


def test_the_queue_is_bounded_and_drains():
    model = toy_model()
    gate = threading.Event()
    forward = model.runtime.forward
    model.runtime.forward = lambda work: gate.wait() and forward(work)

    async def question(engine):
        tickets = [engine.submit(Request((1,), max_tokens=2)) for _ in range(2)]
        task = asyncio.create_task(engine.score([Item((1, 2), 1)]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 requests"):
            engine.submit(Request((1,)))
        with pytest.raises(Overloaded):
            await engine.score([Item((1, 2), 1)])
        gate.set()
        await asyncio.gather(task, *[whole(ticket) for ticket in tickets])
        await whole(engine.submit(Request((1,), max_tokens=2)))

    using(model, question, max_running=1, max_queue=2)


def test_close_ends_what_waits():
    model = toy_model()
    gate = threading.Event()
    forward = model.runtime.forward
    model.runtime.forward = lambda work: gate.wait() and forward(work)

    async def question(engine):
        ticket = engine.submit(Request((1,), max_tokens=60, min_tokens=60))
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        while not engine._closing:
            await asyncio.sleep(0)
        gate.set()
        await closing
        with pytest.raises(EngineFailed, match="closed"):
            await whole(ticket)
        with pytest.raises(EngineFailed, match="closed"):
            engine.submit(Request((1,)))

    using(model, question)


def test_a_listener_whose_event_loop_is_gone_does_not_hold_room():
    model = toy_model()

    async def leave(engine):
        engine.submit(Request((1,), max_tokens=60, min_tokens=60))

    engine_box = []

    async def start():
        engine_box.append(AsyncEngine(model))
        await leave(engine_box[0])

    asyncio.run(start())
    assert len(asyncio.run(whole_of(engine_box[0]))[0][1]) == 3
    engine_box[0].close()
    assert model.runtime.free_tokens() == model.runtime.limits.tokens_held


async def whole_of(engine):
    return await whole(engine.submit(Request((2,), max_tokens=3, min_tokens=3)))


def test_growing_texts_are_scored_on_what_is_cached():
    """Each text begins with the one before: computed once, the same numbers, and the room comes back."""
    model = toy_model()
    rng = np.random.default_rng(3)
    tokens = tuple(int(t) for t in rng.integers(0, 26, size=48))
    items = [Item(tokens[:n], n - 8) for n in (24, 32, 40, 48)]
    computed = []
    forward = model.runtime.forward
    model.runtime.forward = lambda work: computed.append(sum(len(w.tokens) for w in work)) or forward(work)

    async def question(engine):
        return [(await engine.score([item], reuse=True))[0].logprobs for item in items]

    found = using(model, question)
    assert computed == [23, 8, 8, 8]
    for item, logprobs in zip(items, found, strict=True):
        exact = exact_logprob(model.runtime, item.tokens[item.start :], given=item.tokens[: item.start])
        assert sum(logprobs) == pytest.approx(exact, abs=1e-4)
