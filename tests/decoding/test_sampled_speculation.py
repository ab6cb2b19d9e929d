"""The whole loop with trees drawn from a far-off q: sampled sequences keep the target's law, and wrong code is seen.

Target and draft are tables over 4 tokens.  The first token is certain, so that all four that follow come out of drafts.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers_for_loops import run
from statistics_of_draws import chi_square_p
from table_drafts import TableDrafter, TableDrafts, table_runtime

from likely.decoding import accept, sequence_state
from likely.decoding.drafting.protocol import Draft, DraftDistribution
from likely.decoding.drafting.trees.shapes import Chain, ConstantBranching, IidPaths, StochasticBeam
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling

START = END = 4  # its own token: followed by 0, and certain after four more
P = np.array([
    [0.50, 0.30, 0.15, 0.05, 0], [0.10, 0.60, 0.20, 0.10, 0], [0.30, 0.10, 0.20, 0.40, 0], [0.25, 0.25, 0.00, 0.50, 0],
    [1, 0, 0, 0, 0],
])  # fmt: skip
Q = np.array([
    [0.10, 0.15, 0.25, 0.50, 0], [0.60, 0.10, 0.20, 0.10, 0], [0.05, 0.55, 0.30, 0.10, 0], [0.20, 0.10, 0.60, 0.10, 0],
    [1, 0, 0, 0, 0],
])  # fmt: skip
TOKENS = 4
LAW = {
    xs: float(np.prod([P[a, b] for a, b in itertools.pairwise((0, *xs))]))
    for xs in itertools.product(range(4), repeat=TOKENS)
}
FALSE_ALARM = 1e-6 / 3
RULES = {
    "chain": (Chain(4), "rejection"),
    "RSD-C (2,2)": (ConstantBranching((2, 2)), "rejection"),
    "RSD-C (3,1,1)": (ConstantBranching((3, 1, 1)), "rejection"),
    "RSD-S W=2": (StochasticBeam(2, 3), "rejection"),
    "RSD-S W=3": (StochasticBeam(3, 3), "rejection"),
    "SpecInfer K=2": (ConstantBranching((2, 2), independent=True), "rejection"),
    "SpecInfer K=3": (ConstantBranching((3, 1), independent=True), "rejection"),
    "SpecTr K=2": (IidPaths(2, 3), "spectr"),
    "SpecTr K=3": (IidPaths(3, 3), "spectr"),
}


def sequences(
    source, verification: str, n: int, *, budget: int = 12, leaves: int = 4096, **sampling
) -> tuple[list, float]:
    """(n sampled strings of four tokens, emitted tokens per call of the target)"""
    runtime = table_runtime(P, end=END, length=2 + TOKENS, sequences=leaves, tokens_held=40_000)
    loop = Loop(runtime, token_bytes=lambda token: b"", end_ids=frozenset({END}))
    request = Request(
        (START,), Sampling(seed=11, **sampling), max_tokens=16, samples=min(n, 256), drafter=source,
        draft_budget=budget, verification=verification,
    )  # fmt: skip
    done = []
    for first in range(0, n, 256):
        done += run(loop, replace(request, first_sample=first))[0]
    return [tuple(f.tokens[1:5]) for f in done], sum(len(f.tokens) for f in done) / sum(f.target_calls for f in done)


def p_value(draws: list) -> float:
    """The smallest of three: of whole strings, of the first two tokens, of the first."""
    values = []
    for length in (1, 2, TOKENS):
        law: dict = {}
        for xs, chance in LAW.items():
            law[xs[:length]] = law.get(xs[:length], 0.0) + chance
        values.append(chi_square_p([d[:length] for d in draws], law))
    return min(values)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", RULES)
def test_sampled_sequences_have_the_distribution_of_the_target(name):
    shape, verification = RULES[name]
    draws, per_call = sequences(TableDrafts(Q, shape), verification, 1536)
    assert p_value(draws) > FALSE_ALARM
    assert per_call > 1.2  # drafts were kept, so the rule was at work


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [StochasticBeam(3, 3), ConstantBranching((2, 2)), ConstantBranching((2, 1), independent=True)], ids=str
)
def test_keyed_sequences_are_those_of_plain_sampling(shape):
    plain, one = sequences(None, "keyed", 512)
    draws, per_call = sequences(TableDrafts(Q, shape), "keyed", 512)
    assert draws == plain and one == 1 and per_call > 1.1


def test_plain_and_keyed_sequences_have_the_distribution_of_the_target():
    assert p_value(sequences(None, "keyed", 1536)[0]) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RSD-C (3,1,1)", "RSD-S W=3", "SpecInfer K=3", "SpecTr K=3"])
def test_a_budget_below_the_shape_keeps_the_law(name):
    shape, verification = RULES[name]
    assert p_value(sequences(TableDrafts(Q, shape), verification, 1024, budget=4)[0]) > FALSE_ALARM


def test_where_draft_and_target_agree_every_path_is_kept_to_its_end():
    for name in ("chain", "RSD-C (2,2)", "RSD-S W=3", "SpecInfer K=2", "SpecTr K=2"):
        shape, verification = RULES[name]
        loop = Loop(table_runtime(P), token_bytes=lambda token: b"", end_ids=frozenset())
        request = Request(
            (START,), max_tokens=30, drafter=TableDrafts(P, shape), draft_budget=12, verification=verification
        )
        [[done]] = run(loop, request)
        depth = {"chain": 4, "RSD-C (2,2)": 2, "SpecInfer K=2": 2}.get(name, 3)
        assert all(kept == depth for kept in done.rounds[1:3])


def test_greedy_text_is_that_of_plain_decoding_under_every_rule():
    for shape, verification in RULES.values():
        plain, _ = sequences(None, "keyed", 1, temperature=0)
        assert sequences(TableDrafts(Q, shape), verification, 1, temperature=0)[0] == plain


@pytest.mark.slow
def test_drafts_are_not_dropped_for_what_was_drawn():
    """Where leaves are short, room is set aside before drawing: to drop wide trees only would bias the text."""
    shape, verification = RULES["SpecInfer K=3"]
    assert p_value(sequences(TableDrafts(Q, shape), verification, 3072, leaves=300)[0]) > FALSE_ALARM


# --- code that is wrong must be seen ----------------------------------------------------------------------------------


class Altered(TableDrafts):
    """As TableDrafts, each draft changed by a function."""

    def __init__(self, q, shape, change):
        super().__init__(q, shape)
        self.change = change

    def begin(self, prompt, context):
        return _AlteredDrafter(self, list(prompt), context)


class _AlteredDrafter(TableDrafter):
    def propose(self, budget):
        draft = super().propose(budget)
        draft.check(budget=budget, vocab_size=5, name="right")
        altered = self.source.change(draft)
        object.__setattr__(altered, "check", lambda **_: None)
        return altered

    def fork(self, context):
        return _AlteredDrafter(self.source, self.tokens.copy(), context)


def by_probability(draft: Draft) -> Draft:
    def order(node, children):
        return tuple(sorted(children, key=lambda c: -draft.log_q[node][draft.tokens[c]]))

    return replace(draft, draws={node: order(node, children) for node, children in draft.draws.items()})


def as_independent(draft: Draft) -> Draft:
    return replace(draft, distribution=DraftDistribution.IID)


def merged(draft: Draft) -> Draft:
    return replace(draft, draws={node: tuple(dict.fromkeys(children)) for node, children in draft.draws.items()})


def another_q(draft: Draft) -> Draft:
    with np.errstate(divide="ignore", invalid="ignore"):
        sharper = {n: (2 * q - np.log(np.exp(2 * q).sum())).astype(np.float32) for n, q in draft.log_q.items()}
    return replace(draft, log_q=sharper)


def unlikely_dropped(draft: Draft) -> Draft:
    """Drawn children of small probability are not offered."""
    draws = {
        node: tuple(c for c in children if draft.log_q[node][draft.tokens[c]] > np.log(0.2))
        for node, children in draft.draws.items()
    }
    return replace(draft, draws={node: children for node, children in draws.items() if children})


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, shape",
    [
        (by_probability, ConstantBranching((2, 2))),
        (by_probability, StochasticBeam(3, 3)),
        (as_independent, ConstantBranching((3, 1, 1))),
        (as_independent, StochasticBeam(3, 3)),
        (merged, ConstantBranching((4, 1), independent=True)),
        (another_q, Chain(3)),
        (unlikely_dropped, ConstantBranching((3, 1), independent=True)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_wrong_drafts_are_seen(change, shape):
    assert p_value(sequences(Altered(Q, shape, change), "rejection", 1536)[0]) < FALSE_ALARM


def swap_p_and_q(p, q, candidates, uniform, *, replaced):
    return accept.recursive_rejection(q, p, candidates, uniform, replaced=replaced)


def no_residual(p, q, candidates, uniform, *, replaced):
    return accept.recursive_rejection(p, q, candidates, uniform, replaced=replaced)[0], p


RIGHT = accept.recursive_rejection


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [swap_p_and_q, no_residual], ids=lambda f: f.__name__)
def test_wrong_rules_are_seen(wrong, monkeypatch):
    def patched(p, q, candidates, uniform, *, replaced):
        monkeypatch.setattr(accept, "recursive_rejection", RIGHT)
        try:
            return wrong(p, q, candidates, uniform, replaced=replaced)
        finally:
            monkeypatch.setattr(accept, "recursive_rejection", patched)

    monkeypatch.setattr(accept, "recursive_rejection", patched)
    assert (
        p_value(sequences(TableDrafts(Q, ConstantBranching((2, 1), independent=True)), "rejection", 1024)[0])
        < FALSE_ALARM
    )


@pytest.mark.slow
def test_an_off_by_one_row_is_seen(monkeypatch):
    def shifted(draft, distribution_at, uniform, **settings):
        return accept.sampled_walk(
            draft, lambda node, path: distribution_at(max(node - 1, -1), path), uniform, **settings
        )

    monkeypatch.setattr(sequence_state, "sampled_walk", shifted)
    assert p_value(sequences(TableDrafts(Q, StochasticBeam(3, 3)), "rejection", 1536)[0]) < FALSE_ALARM


@pytest.mark.slow
def test_a_dropped_bonus_is_seen(monkeypatch):
    """After a fully kept path the last kept token is emitted twice, instead of one from the target's law."""

    def walk(draft, distribution_at, uniform, **settings):
        accepted, tokens = accept.sampled_walk(draft, distribution_at, uniform, **settings)
        if accepted and accepted[-1] not in draft.draws:
            tokens[-1] = tokens[-2]
        return accepted, tokens

    monkeypatch.setattr(sequence_state, "sampled_walk", walk)
    assert p_value(sequences(TableDrafts(Q, Chain(2)), "rejection", 1536)[0]) < FALSE_ALARM


def test_acceptance_with_the_noise_of_the_draft_is_seen(monkeypatch):
    """Rule R needs uniforms that are independent of the draws."""
    right = sequence_state.generator
    monkeypatch.setattr(sequence_state, "generator", lambda *key: right(*key[:3], "draft"))
    assert p_value(sequences(TableDrafts(Q, Chain(2)), "rejection", 1024)[0]) < FALSE_ALARM
