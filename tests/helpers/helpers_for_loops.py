"""Run a loop to its end, and drafters that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from likely.decoding.drafting.protocol import FIXED_ONLY, NO_DRAFT, Draft
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.runtimes.toy import ToyRuntime

END = 3


def toy_loop(runtime=None, *, vocab=6, seed=1, **options) -> Loop:
    runtime = runtime or ToyRuntime.random(vocab, seed=seed, context_length=options.pop("context_length", 64))
    return Loop(runtime, token_bytes=lambda t: b"abc"[t : t + 1] if t < 3 else b"", end_ids=frozenset({END}), **options)


def run(loop: Loop, *requests: Request, steps: int = 10_000) -> list[list[Finished]]:
    """Finished samples of each request, in sample order; events are checked to join to the finished text."""
    ids = [loop.add(r) for r in requests]
    done: dict[int, dict[int, Finished]] = {i: {} for i in ids}
    text: dict[tuple[int, int], str] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    for _ in range(steps):
        if loop.idle:
            break
        for event in loop.step():
            if event.error:
                raise event.error
            key = (event.request, event.sample)
            text[key] = text.get(key, "") + event.text
            tokens.setdefault(key, []).extend(event.tokens)
            if event.finish:
                assert text[key] == event.finish.text and tokens[key] == event.finish.tokens
                done[event.request][event.sample] = event.finish
    assert loop.idle
    return [[samples[k] for k in sorted(samples)] for samples in done.values()]


class RandomTrees:
    """DraftSource: random trees, mostly wrong, of any shape."""

    name = "random trees"
    distributions, free = FIXED_ONLY, True

    def __init__(self, vocab: int, seed: int = 0, shape: str = "tree"):
        self.vocab, self.seed, self.shape = vocab, seed, shape

    def begin(self, prompt: Sequence[int], context):
        return _RandomDrafter(self.vocab, np.random.default_rng(self.seed), self.shape)


class _RandomDrafter:
    def __init__(self, vocab, rng, shape):
        self.vocab, self.rng, self.shape, self.seen = vocab, rng, shape, []

    def propose(self, budget: int) -> Draft:
        if self.shape == "chain":
            return Draft.chain(self.rng.integers(0, self.vocab, budget).tolist())
        n = int(self.rng.integers(0, budget + 1))
        tokens, parents = [], []
        for _ in range(n):
            parent, token = int(self.rng.integers(-1, len(tokens))), int(self.rng.integers(0, self.vocab))
            if (parent, token) not in set(zip(parents, tokens, strict=True)):
                tokens.append(token)
                parents.append(parent)
        return Draft(np.array(tokens, np.int64), np.array(parents, np.int64)) if tokens else NO_DRAFT

    def observe(self, tokens):
        self.seen += list(tokens)

    def rollback(self, n):
        del self.seen[len(self.seen) - n :]

    def fork(self, context):
        copy = _RandomDrafter(self.vocab, np.random.default_rng(7), self.shape)
        copy.seen = self.seen.copy()
        return copy

    def end(self):
        pass
