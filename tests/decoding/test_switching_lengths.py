"""Whatever a draft's length follows, load or history, the text is the target's: greedy to the token, sampled in law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers_for_loops import run, toy_loop
from statistics_of_draws import chi_square_p
from table_drafts import TableDrafter, TableDrafts, table_runtime
from tiny_gguf import write_tiny_llama

import likely
from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.lookup import PromptLookup
from likely.decoding.drafting.protocol import NO_DRAFT
from likely.decoding.drafting.trees.shapes import Chain
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.step_cost import StepCost

V, START, TOKENS = 6, 0, 3
RNG = np.random.default_rng(4)
P, Q = (RNG.dirichlet(np.full(V, 0.7), V) for _ in range(2))
LAW = {
    xs: float(np.prod([P[a, b] for a, b in itertools.pairwise((START, *xs))]))
    for xs in itertools.product(range(V), repeat=TOKENS)
}
FALSE_ALARM = 1e-6


class Switching(TableDrafts):
    """Drafts chains of another length at every step, by what was emitted before."""

    def begin(self, prompt, context):
        return SwitchingDrafter(self, list(prompt), context)

    def length(self, tokens):
        return (0, 3, 1, 2)[(7 * sum(tokens) + 3 * len(tokens)) % 4]


class SwitchingDrafter(TableDrafter):
    def propose(self, budget):
        k = min(self.source.length(self.tokens), budget)
        return super().propose(k) if k else NO_DRAFT

    def fork(self, context):
        return SwitchingDrafter(self.source, self.tokens.copy(), context)


class CutsWhatItDoubts(TableDrafts):
    """Cuts a draft in front of a token whose own q is low: the length depends on the sampled value."""

    def begin(self, prompt, context):
        return CuttingDrafter(self, list(prompt), context)


class CuttingDrafter(TableDrafter):
    def propose(self, budget):
        draft, last = super().propose(budget), self.tokens[-1]
        for depth, token in enumerate(draft.tokens.tolist()):
            if self.source.q[last, token] < 0.35:
                return draft.cut(depth) if depth else NO_DRAFT
            last = token
        return draft

    def fork(self, context):
        return CuttingDrafter(self.source, self.tokens.copy(), context)


def p_value(found):
    """The smaller of two: of the first two tokens, of whole strings."""
    first = {}
    for xs, chance in LAW.items():
        first[xs[:2]] = first.get(xs[:2], 0.0) + chance
    return min(chi_square_p([xs[:2] for xs in found], first), chi_square_p(found, LAW))


def draws(source, verification, n=768):
    """n sampled strings; (strings, drafted tokens kept)"""
    runtime = table_runtime(P, length=99, end=1, tokens_held=40_000, sequences=4096)
    done = []
    for first in range(0, n, 256):
        loop = Loop(runtime, token_bytes=lambda token: b"", end_ids=frozenset())
        request = Request(
            (START,), Sampling(seed=5), max_tokens=TOKENS + 1, samples=256, first_sample=first, drafter=source,
            draft_budget=4, verification=verification,
        )  # fmt: skip
        done += run(loop, request)[0]
    return [tuple(f.tokens[:TOKENS]) for f in done], sum(f.accepted for f in done)


@pytest.mark.parametrize("verification", ["rejection", pytest.param("keyed", marks=pytest.mark.slow)])
def test_lengths_that_switch_at_every_step_keep_the_law(verification):
    found, kept = draws(Switching(Q, Chain(4)), verification)
    assert p_value(found) > FALSE_ALARM / 2 and kept > 150


def test_a_length_that_looks_at_the_sampled_token_is_seen():
    found, _ = draws(CutsWhatItDoubts(Q, Chain(4)), "rejection", 1280)
    assert p_value(found) < FALSE_ALARM / 2


class Restless(Controller):
    """Other lengths at every step, without a reason."""

    def __init__(self):
        super().__init__(step=StepCost(0, 1e-3, 0, 1e-2))
        self.rng = np.random.default_rng(0)

    def verify(self, candidates, call):
        return [int(self.rng.integers(0, min(len(c.draft), c.limit) + 1)) for c in candidates], 0.0

    def draft(self, source, limits, call, runs=None):
        return [int(self.rng.integers(0, min(limit, 5) + 1)) for limit in limits], 0.0


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=3)], ids=["greedy", "keyed"])
@pytest.mark.parametrize("budget", ["auto", "off", 1, 4])
def test_the_tokens_are_those_of_plain_decoding(sampling, budget):
    requests = [Request((1, 2, i), sampling, max_tokens=30) for i in range(4)]
    plain = [one.tokens for [one] in run(toy_loop(), *requests)]
    table = np.full((6, 6), 1 / 6)
    for source in (PromptLookup(), TableDrafts(table, Chain(5))):
        drafted = [Request(r.prompt, sampling, max_tokens=30, drafter=source, draft_budget=budget) for r in requests]
        for controller in (Restless(), Controller(step=StepCost(0, 1e-5, 0, 1e-2))):
            found = run(toy_loop(controller=controller), *drafted)
            assert [one.tokens for [one] in found] == plain
            assert budget != "off" or not sum(one.proposed for [one] in found)


def test_the_native_runtime_gives_the_same_tokens_with_any_length(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf")
    with likely.load(str(path), runtime="native", dtype="float32", threads=1) as lm:
        options = {"temperature": 0.0, "max_tokens": 24}
        prompts = ["the cat sat on the mat the cat sat", "on the mat and on the mat and"]
        plain = [text.token_ids for text in lm.generate(prompts, drafter="none", **options)]
        for budget in ("auto", "off", 1, 5):
            found = lm.generate(prompts, drafter="lookup", draft_budget=budget, **options)
            assert [text.token_ids for text in found] == plain
        lm.drafters.budget = "off"  # of a server: binding for all
        found = lm.generate(prompts, drafter="lookup", draft_budget=5, **options)
        assert [text.token_ids for text in found] == plain and not any(text.proposed for text in found)
        lm.drafters.budget = 5
        assert any(text.proposed for text in lm.generate(prompts, drafter="lookup", **options))
