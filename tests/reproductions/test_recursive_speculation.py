"""The study on tiny tables: what it counts, that it compares alike, and that it would notice another law."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from likely.models.toy import ToyRuntime

pytest.importorskip("torch")
FOLDER = Path(__file__).parents[2] / "reproductions"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("recursive_speculation", FOLDER / "recursive_speculation.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["recursive_speculation"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


def runtimes() -> tuple[ToyRuntime, ToyRuntime]:
    """A target, and a draft that is the target with other logits mixed in."""
    target = ToyRuntime.random(6, seed=1, context_length=128, tokens_held=60_000)
    other = ToyRuntime.random(6, seed=2)
    draft = ToyRuntime(
        lambda prefix: (0.6 * target._logits_of(prefix) + 0.6 * other._logits_of(prefix)).astype(np.float32),
        vocab_size=6, context_length=128, tokens_held=60_000,
    )  # fmt: skip
    return target, draft


def test_the_study_runs_and_keeps_the_law(study):
    target, draft = runtimes()
    plan = study.Plan(10, 34, (2,), (6,), (1.0,))
    prompts = [[i % 6, (i * i) % 6] for i in range(10)]
    figures, checks, ours = study.study(target, draft, prompts, plan, held_out=prompts, report=lambda line: None)
    assert checks[-1].holds and "RSD" in ours
    cells = {figure.subject for figure in figures}
    assert cells == {"T=1", "T=1, draft length 2", "T=1, 6 drafted per call"}
    by_method = {f.quantity: f.value for f in figures if f.subject == "T=1, draft length 2"}
    assert all(1 < by_method[m] <= 3 for m in (*study.BASELINES, *study.OURS))
    assert by_method[study.RSD_C] > by_method[study.CHAIN]
    assert all(f.low <= f.value <= f.high for f in figures)


def test_rounds_are_counted_after_the_prefill_and_up_to_the_limit(study):
    assert study.counted_rounds([0, 2, 0, 3, 1], 5) == [2, 0]  # they began with 1, 4, 5 and 9 tokens there
    assert study.counted_rounds([0], 5) == []


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
    plan = study.Plan(30, 34, (2,), (6,))
    prompts = [[i % 6] for i in range(30)]
    plain = study.measure(target, prompts, plan, temperature=1.0)
    again = study.measure(target, prompts[::-1], plan, temperature=1.0)
    sharp = study.measure(target, prompts, plan, temperature=0.5)
    assert abs(study.deviation(again, plain)) < 4 < abs(study.deviation(sharp, plain))
