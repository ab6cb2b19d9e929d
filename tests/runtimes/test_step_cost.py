"""Step costs: planted terms are found, poor grids are refused, files of other machines are named."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from likely.decoding.drafting.budget import CallCosts
from likely.errors import DataError
from likely.runtimes.cost_curve import CallCost, CostCurve, measure
from likely.runtimes.step_cost import StepCost
from likely.runtimes.toy import ToyRuntime

TRUE = StepCost(3e-8, 2e-4, 5e-5, 7e-3)
GRID = np.array([(b, b * n, b * c) for b, n, c in itertools.product((1, 2, 8), (1, 3, 9), (64, 512, 2048))], float)


def fit(grid=GRID, cost=TRUE, **named):
    sequences, tokens, context = grid.T
    return StepCost.fit(sequences, tokens, context, cost.seconds(sequences, tokens, context), **named)


def test_planted_terms_are_found_and_none_is_negative():
    found = fit()
    for name in ("context_s", "token_s", "sequence_s", "constant_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.02)
    assert found.residual < 1e-6
    rng = np.random.default_rng(0)
    seconds = StepCost(0, 2e-4, 0, 7e-3).seconds(*GRID.T) * np.exp(0.05 * rng.standard_normal(len(GRID)))
    noisy = StepCost.fit(*GRID.T, seconds)
    assert noisy.context_s >= 0 and noisy.sequence_s >= 0 and 0.02 < noisy.residual < 0.08


@pytest.mark.parametrize("rows", [GRID[:, 0] == 1, GRID[:, 1] == GRID[:, 0], GRID[:, 2] == 64 * GRID[:, 0]])
def test_a_grid_that_cannot_tell_the_terms_apart_is_refused(rows):
    with pytest.raises(DataError, match="3 of the 4 terms"):
        fit(GRID[rows])


def test_impossible_times_are_refused():
    with pytest.raises(ValueError, match="token_s"):
        StepCost(0, -1, 0, 0)
    with pytest.raises(DataError, match="> 0"):
        StepCost.fit([1, 2], [1, 2], [1, 2], [1.0, 0.0])


def test_a_file_says_what_it_was_measured_on(tmp_path):
    path, here = tmp_path / "cost.json", {"cpu": "a", "threads": "2", "model": "m"}
    fit(measured_on=here).save(path)
    assert StepCost.load(path, measured_on=here) == StepCost.load(path) and StepCost.load(path).measured_on == here
    with pytest.raises(DataError, match="cpu 'a' instead of 'b', threads '2' instead of '4'"):
        StepCost.load(path, measured_on={"cpu": "b", "threads": "4", "model": "m"})
    data = json.loads(path.read_text())
    for broken in ({}, {"step_cost": data["step_cost"] | {"token_s": -1.0}}, {"step_cost": {"token_s": True}}, []):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match="no file of step costs"):
            StepCost.load(path)
    with pytest.raises(DataError, match="cannot read"):
        StepCost.load(tmp_path / "none.json")


def test_a_curve_carries_the_terms_and_costs_follow_batch_and_context(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    rows = [
        CallCost("toy", "toy", int(n), int(b), int(c / b), 1, "cpu", 1e3 * float(TRUE.seconds(b, n, c)), 1.0)
        for b, n, c in GRID
    ]
    curve = CostCurve("abc", rows, "source")
    curve = CostCurve("abc", rows, "source", curve.fitted())
    curve.save()
    assert CostCurve.load("abc") == curve and curve.step_cost.measured_on["model"] == "source"
    costs = CallCosts(curve)
    positions = np.array([4, 8, 40])
    np.testing.assert_allclose(
        costs.seconds(positions, sequences=4, context=4000), TRUE.seconds(4, positions, 4000), rtol=1e-3
    )
    for _ in range(5):  # this machine is twice as slow now
        costs.record(8, 2 * float(TRUE.seconds(2, 8, 100)), sequences=2, context=100)
    assert costs.seconds(positions, sequences=4, context=4000)[1] == pytest.approx(
        2 * TRUE.seconds(4, 8, 4000), rel=1e-3
    )


def test_batches_of_several_tokens_and_contexts_are_measured():
    runtime = ToyRuntime.random(30, seed=0, context_length=100, tokens_held=4096)
    curve = measure(
        runtime, name="toy", dtype="table", threads=1, cpu="cpu", contexts=(8, 32), positions=(1, 4),
        sequences=(1, 2), per_sequence=(1, 3), batch_contexts=(8, 32), prefill=16, rounds=1,
    )  # fmt: skip
    shapes = {(r.positions, r.sequences, r.context) for r in curve.rows if r.sequences > 1}
    assert shapes == {(2, 2, 8), (6, 2, 8), (2, 2, 32), (6, 2, 32)}
    assert curve.step_cost is not None and curve.step_cost.measured_on["runtime"] == "toy"
    assert runtime.free_tokens() == runtime.limits.tokens_held
