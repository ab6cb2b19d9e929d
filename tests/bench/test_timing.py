from __future__ import annotations

import numpy as np
import pytest

from likely.bench import timing as measure
from likely.metrics.bootstrap import median_interval
from likely.runtimes.cost_curve import CallCost, CostCurve
from likely.runtimes.cost_curve import measure as measure_cost
from likely.runtimes.machine import machine
from likely.runtimes.toy import ToyRuntime


def test_every_round_has_each_run_once_in_an_order_of_its_own():
    def measured():
        called = []
        runs = {name: lambda name=name: called.append(name) for name in "abc"}
        timings = measure.interleaved(runs, rounds=11, warmup=1)
        assert list(timings) == ["a", "b", "c"] and all(len(t.seconds) == 11 for t in timings.values())
        return ["".join(called[i : i + 3]) for i in range(0, len(called), 3)]

    rounds = measured()
    assert len(rounds) == 12 and {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len({r[0] for r in rounds}) == 3 and rounds == measured()


def test_a_settled_run_is_called_twice_and_timed_once():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "ab"}
    timings = measure.interleaved(runs, rounds=2, warmup=0, settled=True)
    assert called[0::2] == called[1::2] and len(called) == 8 and all(len(t.seconds) == 2 for t in timings.values())


def test_speedup_is_a_ratio_within_rounds():
    fast, slow = measure.Timing("f", [1.0, 2.0, 4.0]), measure.Timing("s", [2.0, 4.0, 8.0])
    ratio = measure.speedup(fast, slow)
    assert ratio.median == ratio.low == ratio.high == 2.0 and ratio.rounds == 3


def test_interval_holds_the_median_and_shrinks_with_more_rounds():
    rng = np.random.default_rng(1)
    few, many = rng.normal(10, 1, 6), rng.normal(10, 1, 200)
    low, high = median_interval(few)
    assert low <= np.median(few) <= high
    assert np.subtract(*median_interval(many)[::-1]) < high - low


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr(measure, "busy_share", lambda: 0.5)
    with pytest.raises(measure.BusyMachine, match="50%"):
        measure.refuse_busy()
    monkeypatch.setattr(measure, "busy_share", lambda: 0.01)
    measure.refuse_busy()


def test_machine_is_described():
    found = machine()
    assert found.cpu and found.cores >= 1 and str(found.cores) in found.line()


def test_cost_curve_round_trip_and_interpolation(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    rows = [CallCost("toy", "toy", n, 1, 16, 1, "cpu", 10.0 * n, 100.0) for n in (1, 2, 8)]
    curve = CostCurve("abc", rows)
    assert curve.seconds(1) == 0.01 and abs(curve.seconds(5) - 0.05) < 1e-9 and abs(curve.seconds(16) - 0.16) < 1e-9
    path = curve.save()
    assert CostCurve.load("abc") == curve and CostCurve.load("other") is None
    path.write_text("{broken")
    assert CostCurve.load("abc") is None
    with pytest.raises(ValueError, match="empty"):
        CostCurve("x").seconds(1)


def test_measuring_a_runtime_covers_every_shape_and_frees_it():
    runtime = ToyRuntime.random(30, seed=0, context_length=200, tokens_held=4096)
    curve = measure_cost(
        runtime, name="toy", dtype="table", threads=1, cpu="cpu", contexts=(16,), positions=(1, 4), sequences=(1, 2),
        prefill=32, rounds=2,
    )  # fmt: skip
    shapes = {(r.kind, r.positions, r.sequences) for r in curve.rows}
    assert shapes == {("decode", 1, 1), ("decode", 4, 1), ("decode", 2, 2), ("prefill", 32, 1)}
    assert all(r.milliseconds > 0 and r.tokens_per_s > 0 for r in curve.rows)
    assert runtime.free_tokens() == runtime.limits.tokens_held
