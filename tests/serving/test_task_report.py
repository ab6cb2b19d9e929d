"""Costs per success, rates with their intervals, and energy, by hand."""

from __future__ import annotations

import json
import math

import pytest

from likely.serving.tools.report import EnergyMeter, Prices, TaskRecord, cost_per_success, task_report


def test_cost_per_success_by_hand():
    assert cost_per_success([1, 2, 3], [False, True, False]) == 6
    assert cost_per_success([1, 2], [False, False]) == math.inf
    with pytest.raises(ValueError, match="2 costs for 1"):
        cost_per_success([1, 2], [True])


def test_a_report_counts_what_it_says():
    records = [
        TaskRecord(True, cost=1, seconds=1, calls_made=2, calls_executed=2, selected=True, joules=2.0),
        TaskRecord(False, 2, 2, valid_first=False, calls_made=2, calls_executed=1, selected=True, repairs=1),
        TaskRecord(False, cost=3, seconds=3, valid_first=False, valid=False, selected=False, repairs=2, fell_back=True),
        TaskRecord(True, cost=0, seconds=9, structured=False),
    ]  # fmt: skip
    found = task_report(records)
    values = {name: found[name]["value"] for name in (
        "success", "valid_first", "valid", "executable_calls", "tool_selection", "arguments", "repairs_per_task",
        "fallback", "cost_per_success",
    )}  # fmt: skip
    assert values == pytest.approx({
        "success": 0.5, "valid_first": 1 / 3, "valid": 2 / 3, "executable_calls": 0.75, "tool_selection": 2 / 3,
        "arguments": 0.5, "repairs_per_task": 0.75, "fallback": 0.25, "cost_per_success": 3.0,
    })  # fmt: skip
    assert found["latency_s"]["p50"] == 2.5 and found["energy_j"]["value"] == 2.0 and found["energy_j"]["estimate"]
    for name in values:
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    json.dumps(task_report(records[1:3]), allow_nan=False)  # no success: no infinite number in JSON
    with pytest.raises(ValueError, match="at least one"):
        task_report([])


def test_prices():
    assert Prices(0.5, 2, 3, 10).cost(prompt_tokens=4, tokens=1, seconds=2) == 2 + 2 + 6 + 10
    with pytest.raises(ValueError, match="token must be"):
        Prices(token=-1)


def test_energy_is_read_from_the_counters_or_estimated(tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("10000000\n")
    (zone / "energy_uj").write_text("9000000\n")
    with EnergyMeter(root=tmp_path) as meter:
        (zone / "energy_uj").write_text("2000000\n")  # the counter began anew
    assert (meter.source, meter.joules) == ("rapl", pytest.approx(3.0))
    with EnergyMeter(root=tmp_path / "none", watts=2.0) as meter:
        sum(range(10000))
    assert meter.source == "estimate" and 0 < meter.joules < 100
    with pytest.raises(ValueError, match="watts"):
        EnergyMeter(watts=0)
