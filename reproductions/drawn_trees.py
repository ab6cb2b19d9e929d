"""What one call of the target yields with a drawn tree: expected, at places of given texts, and emitted by the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.decoding.accept import acceptance
from likely.decoding.drafting.protocol import Draft, DraftSource, DraftsTogether, SamplingContext, Verification
from likely.decoding.drafting.trees.shapes import DraftShape
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.sampling import Sampling, processed_logprobs
from likely.runtimes.protocol import Runtime, Want, Work

SPECTR = "SpecTr"
AT_ONCE = 40  # texts decoded together


@dataclass(frozen=True)
class Method:
    """A shape and the rule that verifies it."""

    name: str
    shape: DraftShape
    size: int

    @property
    def rule(self) -> Verification:
        return "spectr" if self.name == SPECTR else "rejection"


@dataclass(frozen=True)
class Sampled:
    """Whole texts through the loop: tokens and log p of each (P, T), kept drafts per round of each text."""

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    rounds: list[list[int]]

    def block_efficiency(self, limit: int) -> NDArray[np.float64]:
        """(P, 2) emitted tokens and calls of the rounds after the prefill that began before `limit` tokens."""
        counted = [counted_rounds(rounds, limit) for rounds in self.rounds]
        return np.array([(sum(c) + len(c), len(c)) for c in counted], float)


def sample(
    target: Runtime,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    *,
    temperature: float,
    method: Method | None = None,
    source: DraftSource | None = None,
    seed: int = 17,
) -> Sampled:
    """A continuation of every prompt by the loop; method None: plain decoding."""
    done: list[Finished] = []
    for first in range(0, len(prompts), AT_ONCE):
        loop = Loop(target, token_bytes=lambda token: b"", end_ids=frozenset(), step_tokens=1 << 20)
        ids = []
        for i, prompt in enumerate(prompts[first : first + AT_ONCE]):
            request = Request(
                tuple(prompt), Sampling(temperature=temperature, seed=seed), max_tokens=tokens, processed=True,
                first_sample=first + i, drafter=source, draft_budget=method.size if method else 0,
                verification=method.rule if method else "keyed",
            )  # fmt: skip
            ids.append(loop.add(request))
        finished = {}
        while not loop.idle:
            for event in loop.step():
                if event.error:
                    raise event.error
                if event.finish:
                    finished[event.request] = event.finish
        done += [finished[i] for i in ids]
    return Sampled(np.array([f.tokens for f in done]), np.array([f.processed for f in done]), [f.rounds for f in done])


def counted_rounds(rounds: Sequence[int], limit: int) -> list[int]:
    """Kept drafts of the rounds after the prefill that began before `limit` tokens were there."""
    found, there = [], 1
    for kept in rounds[1:]:
        if there < limit:
            found.append(kept)
        there += kept + 1
    return found


def emitted_per_call(
    target: Runtime,
    texts: Sequence[Sequence[int]],
    places: Sequence[int],
    method: Method,
    source: DraftSource,
    *,
    temperature: float,
) -> NDArray[np.float64]:
    """(texts, places) expected tokens of one call whose newest token is the one before the place.

    Given the tree, the probability of each decision of the rule is known; only the drawing of the tree is random.
    """
    sampling = Sampling(temperature=temperature, seed=29)
    out = np.zeros((len(texts), len(places)))
    for i, text in enumerate(texts):
        kept = target.open()
        target.forward([Work(kept, np.array(text[: max(places) - 1]), want=Want.NONE)])
        drafters = [source.begin(text[:place], SamplingContext(sampling, i, method.rule)) for place in places]
        if isinstance(source, DraftsTogether):
            drafts = source.propose_many(drafters, [method.size] * len(places))
        else:
            drafts = [drafter.propose(method.size) for drafter in drafters]
        work = []
        for place, draft in zip(places, drafts, strict=True):
            nodes = np.concatenate([[text[place - 1]], draft.tokens])
            parents = np.concatenate([[-1], draft.parents + 1])
            work.append(Work(target.fork(kept, place - 1), nodes, parents, want=Want.ALL))
        for j, (output, draft) in enumerate(zip(target.forward(work), drafts, strict=True)):
            assert output.logits is not None
            laws = [np.exp(processed_logprobs(row, sampling).astype(np.float64)) for row in output.logits]
            out[i, j] = expected_tokens(draft, laws, method.rule)
        for sequence in (kept, *(item.sequence for item in work)):
            target.close(sequence)
        for drafter in drafters:
            drafter.end()
    return out


def expected_tokens(draft: Draft, laws: Sequence[NDArray[np.float64]], rule: Verification) -> float:
    """1 + Σ over nodes of the probability that the walk comes there.

    laws  p after the root, then after each node
    """
    reached = np.zeros(len(draft) + 1)
    reached[0] = 1.0
    for node in range(-1, len(draft)):
        if drawn := draft.draws.get(node):
            q = np.exp(draft.log_q[node].astype(np.float64))
            candidates = [int(draft.tokens[child]) for child in drawn]
            chances = acceptance(laws[node + 1], q, candidates, distribution=draft.distribution, rule=rule)
            np.add.at(reached, np.array(drawn) + 1, reached[node + 1] * chances)
    return float(reached.sum())


def deviation(found: Sampled, plain: Sampled) -> float:
    """Mean log p per token less that of plain sampling, in standard errors (texts are the units)."""
    a, b = found.logprobs.mean(1), plain.logprobs.mean(1)
    return float((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))


def rows_of(runtime: Runtime, tokens: Sequence[int]) -> NDArray[np.float32]:
    sequence = runtime.open()
    try:
        [output] = runtime.forward([Work(sequence, np.array(tokens), want=Want.ALL)])
    finally:
        runtime.close(sequence)
    assert output.logits is not None
    return output.logits


def softmax(rows: NDArray) -> NDArray[np.float64]:
    p = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)
