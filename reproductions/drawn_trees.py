"""What one call of the target yields with a drawn tree: expected, at places of given texts, and emitted by the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from likely.decoding.accept import acceptance
from likely.decoding.drafting.layers.drafter import SelfDrafter
from likely.decoding.drafting.protocol import Draft, DraftSource, DraftsTogether, SamplingContext, Verification
from likely.decoding.drafting.trees.shapes import DraftShape
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.sampling import Sampling, processed_logprobs
from likely.runtimes.protocol import Runtime, Want, Work
from likely.runtimes.protocol import Sequence as TextSequence

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
    """Whole texts through the loop: tokens and log p of each, kept drafts per round of each text."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    rounds: list[list[int]]

    def block_efficiency(self, size: int) -> NDArray[np.float64]:
        """(P, 2) emitted tokens and calls of the rounds after the prefill that began before the last `size` + 1 tokens:
        the end of the text cuts none of them."""
        counted = [counted_rounds(r, len(t) - size - 1) for r, t in zip(self.rounds, self.tokens, strict=True)]
        return np.array([(sum(c) + len(c), len(c)) for c in counted], float)


def sample(
    target: Runtime,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    *,
    sampling: Sampling,
    method: Method | None = None,
    source: DraftSource | None = None,
    end_ids: frozenset[int] = frozenset(),
) -> Sampled:
    """A continuation of every prompt by the loop; method None: plain decoding."""
    done: list[Finished] = []
    for first in range(0, len(prompts), AT_ONCE):
        loop = Loop(target, token_bytes=lambda token: b"", end_ids=end_ids, step_tokens=1 << 20)
        ids = []
        for i, prompt in enumerate(prompts[first : first + AT_ONCE]):
            request = Request(
                tuple(prompt), sampling, max_tokens=tokens, processed=True, first_sample=first + i,
                drafter=source, draft_budget=method.size if method else 0,
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
    return Sampled([f.tokens for f in done], [list(f.processed or ()) for f in done], [f.rounds for f in done])


def counted_rounds(rounds: Sequence[int], limit: int) -> list[int]:
    """Kept drafts of the rounds after the prefill that began before `limit` tokens were there."""
    found, there = [], 1
    for kept in rounds[1:]:
        if there < limit:
            found.append(kept)
        there += kept + 1
    return found


def read_texts(target: Runtime, texts: Sequence[Sequence[int]]) -> list[TextSequence]:
    """Each text in the target's cache, up to its last token but one."""
    kept = [target.open() for _ in texts]
    for sequence, text in zip(kept, texts, strict=True):
        target.forward([Work(sequence, np.array(text[:-1]), want=Want.NONE)])
    return kept


def emitted_per_call(
    target: Runtime,
    kept: Sequence[TextSequence],
    texts: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    methods: Sequence[Method],
    source: DraftSource,
    *,
    sampling: Sampling,
) -> list[NDArray[np.float64]]:
    """Expected tokens of one call whose newest token is the one before the place: per text, (methods, its places).

    kept  of `read_texts`;  methods  of one shape, which draw the same trees and differ in the rule

    Given the tree, the probability of each decision of the rule is known; only the drawing of the tree is random.
    """
    return [
        _of_text(target, whole, text, at, methods, source, sampling, i)
        for i, (whole, text, at) in enumerate(zip(kept, texts, places, strict=True))
    ]


def _of_text(
    target: Runtime, kept: TextSequence, text: Sequence[int], places: Sequence[int], methods: Sequence[Method],
    source: DraftSource, sampling: Sampling, sample: int,
) -> NDArray[np.float64]:  # fmt: skip
    method = methods[0]
    held = [target.fork(kept, place - 1) for place in places]
    drafters = [source.begin(text[:place], SamplingContext(sampling, sample, method.rule)) for place in places]
    for drafter, sequence, place in zip(drafters, held, places, strict=True):
        if isinstance(drafter, SelfDrafter):
            drafter.attach(target, sequence, text[place - 1])
    if isinstance(source, DraftsTogether):
        drafts = source.propose_many(drafters, [method.size] * len(places))
    else:
        drafts = [drafter.propose(method.size) for drafter in drafters]
    work = []
    for place, sequence, draft in zip(places, held, drafts, strict=True):
        nodes = np.concatenate([[text[place - 1]], draft.tokens])
        work.append(Work(sequence, nodes, np.concatenate([[-1], draft.parents + 1]), want=Want.ALL))
    found = []
    for output, draft in zip(target.forward(work), drafts, strict=True):
        assert output.logits is not None
        laws = [np.exp(processed_logprobs(row, sampling).astype(np.float64)) for row in output.logits]
        found.append([expected_tokens(draft, laws, each.rule) for each in methods])
    for sequence in held:
        target.close(sequence)
    for drafter in drafters:
        drafter.end()
    return np.array(found).T


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
    a, b = (np.array([np.mean(row) for row in one.logprobs]) for one in (found, plain))
    return float((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
