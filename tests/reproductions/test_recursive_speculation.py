"""The study on tiny tables: what it expects and counts, and that it would notice another law."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script

from likely.decoding.drafting.model.drafter import DraftModel
from likely.decoding.drafting.protocol import Draft, DraftDistribution
from likely.decoding.sampling import Sampling
from likely.runtimes.toy import ToyRuntime


@pytest.fixture(scope="module")
def study():
    return script("recursive_speculation")


def runtimes() -> tuple[ToyRuntime, ToyRuntime]:
    """A target, and a draft that is the target with other logits mixed in; both know only the last token."""
    p, other = np.random.default_rng(1).normal(size=(2, 6, 6)) * 2
    limits = {"vocab_size": 6, "context_length": 128, "tokens_held": 60_000}
    target = ToyRuntime(lambda prefix: p[prefix[-1]].astype(np.float32), **limits)
    draft = ToyRuntime(lambda prefix: (0.6 * p + 0.6 * other)[prefix[-1]].astype(np.float32), **limits)
    return target, draft


def prompts_of(n: int, length: int = 32) -> list[list[int]]:
    return np.random.default_rng(2).integers(0, 6, (n, length)).tolist()


def test_the_study_runs_and_keeps_the_law(study):
    target, draft = runtimes()
    plan = study.Plan(6, 30, (2,), (6,))
    pair = study.Pair("toy", target, lambda shape, name: DraftModel(draft, shape=shape, name=name))
    conditions = [study.Condition("T=1", prompts_of(6), Sampling())]
    found = study.study(pair, conditions, plan, report=lambda line: None)
    checks = found.checks()
    assert checks[-1].holds and "RSD ahead" in found.ours()
    subjects = {figure.subject for figure in found.figures}
    assert subjects == {
        "toy, T=1, " + s for s in ("through the loop, length 4", "draft length 2", "6 drafted per call")
    }
    by_method = {f.quantity: f.value for f in found.figures if f.subject == "toy, T=1, draft length 2"}
    assert all(1 < by_method[m] <= 3 for m in (*study.BASELINES, *study.OURS))
    assert by_method[study.RSD_C] > by_method[study.CHAIN]
    assert all(f.low <= f.value <= f.high for f in found.figures)


def test_expected_tokens_of_a_chain_and_of_a_node_drawn_twice(study):
    from drawn_trees import expected_tokens

    q = {-1: np.log(np.array([0.2, 0.2, 0.6])), 0: np.log(np.array([0.5, 0.25, 0.25]))}
    laws = [np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.5, 0.25]), np.array([1.0, 0, 0])]
    chain = Draft(np.array([2, 0]), np.array([-1, 0]), DraftDistribution.IID, q, {-1: (0,), 0: (1,)})
    assert expected_tokens(chain, laws, "rejection") == pytest.approx(1 + 1 / 3 + 1 / 3 * 1 / 2)
    twice = Draft(np.array([0]), np.array([-1]), DraftDistribution.IID, {-1: q[-1]}, {-1: (0, 0)})
    assert expected_tokens(twice, laws[:2], "rejection") == pytest.approx(2)
    assert expected_tokens(Draft.chain([]), laws[:1], "rejection") == 1


@pytest.mark.parametrize("index", range(5))
def test_the_loop_emits_what_is_expected(study, index):
    """On a Markov chain tokens per call follow from the expectation at each last token and where rounds begin."""
    from drawn_trees import emitted_per_call, read_texts, sample

    target, draft = runtimes()
    method = study.of_length(2)[index]
    source = DraftModel(draft, shape=method.shape, name=method.name)
    ran = sample(target, prompts_of(40, 2), 60, sampling=Sampling(seed=17), method=method, source=source)
    begins, kept = [], []
    for tokens, rounds in zip(ran.tokens, ran.rounds, strict=True):
        at = 1
        for accepted in rounds[1:]:
            if at + method.size + 1 < 60:
                begins.append(tokens[at - 1])
                kept.append(accepted + 1)
            at += accepted + 1
    texts = [[t] * 60 for t in range(6)]
    expected = np.array(
        emitted_per_call(
            target, read_texts(target, texts), texts, [range(2, 60)] * 6, [method], source, sampling=Sampling(seed=29)
        )
    )
    by_token = expected.mean(axis=(1, 2))[begins]
    difference = np.array(kept) - by_token
    assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(len(kept)) + 4 * expected.std() / np.sqrt(58)


def test_rounds_are_counted_after_the_prefill_and_up_to_the_limit(study):
    from drawn_trees import counted_rounds

    assert counted_rounds([0, 2, 0, 3, 1], 5) == [2, 0]  # they began with 1, 4, 5 and 9 tokens there
    assert counted_rounds([0], 5) == []


def test_sizes_are_within_the_budget(study):
    for budget in study.FULL.budgets:
        for method in study.of_budget(budget):
            shape = method.shape
            if isinstance(shape, study.ConstantBranching):
                size = int(np.cumprod(shape.branching).sum())
            elif isinstance(shape, study.Chain):
                size = shape.length
            else:
                size = shape.depth * getattr(shape, "width", getattr(shape, "paths", 0))
            assert size <= budget == method.size


def test_another_law_is_noticed(study):
    """A sampler of sharper text has a mean log p many standard errors away."""
    target, _ = runtimes()
    prompts = prompts_of(30, 2)
    plain, again, sharp = (
        study.sample(target, prompts, 30, sampling=Sampling(temperature=t, seed=seed))
        for t, seed in ((1.0, 1), (1.0, 2), (0.5, 1))
    )
    assert abs(study.deviation(again, plain)) < 5 < abs(study.deviation(sharp, plain))
