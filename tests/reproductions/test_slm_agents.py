"""The study of small agents on a tiny model and on made-up answers whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.audit.function_calling import FunctionCase
from likely.serving.tools.evaluation import CaseResult
from likely.serving.tools.report import TaskRecord


@pytest.fixture(scope="module")
def study():
    return script("slm_agents")


def case(name):
    function = {
        "name": "f.g",
        "parameters": {"type": "dict", "properties": {"n": {"type": "boolean"}}, "required": ["n"]},
    }
    return FunctionCase(
        name, "simple_python", [{"role": "user", "content": "the cat"}], [function], [{"f.g": {"n": [True]}}]
    )


def test_cells_are_measured_once_and_resumed(study, tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", seed=3, context=1024)
    loaded = []

    def load(name):
        loaded.append(name)
        return likely.load(str(path), threads=1)

    cases = {name: [case(f"{name}_{i}") for i in range(2)] for name in study.CATEGORIES}
    rows = tmp_path / "rows.jsonl"
    found = study.measure_all(rows, study.Plan(2, 1, 1), load, cases)
    assert len(found) == 3 * (2 + 2) + 9 and loaded == ["smollm2", "gemma3"]
    held = [a for a in found if a.mode == "constrained"]
    assert all(a.result.record.valid and 0 < len(a.free) < len(a.all_tokens) for a in held)
    assert not any(a.free for a in found if a.mode != "constrained")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-50])  # cut by a kill
    again = study.measure_all(rows, study.Plan(2, 1, 1), load, cases)
    assert rows.read_bytes() == whole and again == found and loaded[2:] == ["gemma3"]


def made_up(study, n=120):
    """Answers whose free tokens tell how likely they are right; forced tokens blur that."""
    rng = np.random.default_rng(0)
    answers = []
    for model, count in ((study.SMOLLM2, n), (study.GEMMA, 9)):
        for i in range(count):
            p = rng.uniform(0.02, 0.98)
            right = bool(rng.random() < p)
            free = [float(np.log(p))] * 3
            for mode, valid in (("unconstrained", i % 5 == 0), ("constrained", True), ("repaired", True)):
                record = TaskRecord(right and valid, 1.0, valid=valid, calls_made=int(valid), calls_executed=int(valid),
                                    selected=valid, repairs=int(mode == "repaired"))  # fmt: skip
                result = CaseResult(f"c{i}", "multiple", "", [], None, "", record)
                answers.append(study.Answered(model, mode, result, free, free + [0.0] * int(rng.integers(0, 30))))
    return answers


def test_the_figures_of_known_answers(study, monkeypatch):
    monkeypatch.setattr(study, "SPLITS", 4)
    found = study.study(made_up(study), full=False, seconds=1.0, models=[], data=[])
    checks = {check.statement.split(":")[1].strip().split(" ")[0]: check for check in found.checks}
    assert len(found.checks) == 15 and checks["AUROC"].holds
    figures = {(f.subject, f.quantity): f for f in found.figures}
    assert figures["smollm2, unconstrained", "valid"].value == pytest.approx(0.2)
    assert figures["smollm2, constrained", "valid"].value == 1 and figures["confidence", "AUROC"].value > 0.7
    # a small model that is right every second time costs least per success, whatever a router does
    assert figures["always small", "cost per success"].value < figures["auto, cost-optimal", "cost per success"].value
    assert (
        figures["auto, cost-optimal", "net value per task"].value > figures["always small", "net value per task"].value
    )


def test_routed_by_hand(study):
    given, right, large = np.array([True, True, False]), np.array([True, False, False]), np.array([True, True, True])
    cps, net, success = study.routed(given, right, large)
    assert cps == pytest.approx((1 + 1 + 21) / 2) and success == pytest.approx(2 / 3)
    assert net == pytest.approx((study.VALUE * 2 - 23) / 3)
    share = np.mean([study.large_is_right(f"case {i}") for i in range(2000)])
    assert share == pytest.approx(study.LARGE_ACCURACY, abs=0.03)
