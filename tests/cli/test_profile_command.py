"""likely profile: terms from a log of timed calls, the schedule for vLLM, and a measurement that later runs find."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest

from likely.bench.profile import profile_model
from likely.runtimes.cost_curve import CostCurve
from likely.runtimes.step_cost import StepCost
from likely.runtimes.toy import ToyRuntime

TRUE = StepCost(3.5e-7, 9e-5, 2e-5, 1.05e-2)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "steps.jsonl"
    rows = [
        {"sequences": b, "tokens": b * n, "context": b * c, "seconds": float(TRUE.seconds(b, b * n, b * c))}
        for b, n, c in itertools.product((1, 4, 32), (1, 4), (100, 1000))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_terms_are_fitted_to_a_log_and_kept_in_a_file(cli, log, tmp_path):
    out = tmp_path / "cost.json"
    found = cli("profile", "--timings", str(log), "-o", str(out), "--json")
    assert found.code == 0 and json.loads(found.out)["token_s"] == pytest.approx(TRUE.token_s, rel=1e-3)
    assert StepCost.load(out).constant_s == pytest.approx(TRUE.constant_s, rel=1e-3)
    assert "per token computed" in cli("profile", "--cost", str(out)).out
    again = cli("profile", "--timings", str(log), "-o", str(out))
    assert again.code == 2 and "exists" in again.err


def test_the_schedule_has_the_form_of_vllm(cli, log):
    found = cli(
        "profile", "--timings", str(log), "--for", "vllm", "--acceptance", "0.75", "--k-max", "4", "--batch-max", "512"
    )
    rows = json.loads(found.out)
    assert rows[0][0] == 1 and rows[-1][1] == 512 and rows[0][2] > rows[-1][2] >= 0
    assert all(one[1] + 1 == two[0] for one, two in itertools.pairwise(rows))


def test_what_is_wrong_is_said_in_one_line(cli, log, tmp_path):
    assert '"vllm", got' in cli("profile", "--timings", str(log), "--for", "sglang").err
    assert "one of both" in cli("profile", "--timings", str(log), "--cost", str(log)).err
    assert "no file of step costs" in cli("profile", "--cost", str(log)).err
    few = tmp_path / "few.jsonl"
    few.write_text('{"sequences": 1, "tokens": 1, "context": 9, "seconds": 0.1}\n{"sequences": 1, "tokens": "x"}\n')
    assert "few.jsonl:2: expected numbers" in cli("profile", "--timings", str(few)).err
    few.write_text(few.read_text().splitlines()[0] + "\n")
    assert "tell 1 of the 4 terms" in cli("profile", "--timings", str(few)).err


def test_a_measurement_is_stored_for_later_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    runtime = ToyRuntime.random(30, seed=0, context_length=256, tokens_held=8192)
    lm = SimpleNamespace(runtime=runtime, info=SimpleNamespace(runtime="toy", dtype="table", sha256="abc"))
    found = profile_model(lm, threads=3, quick=True)
    assert CostCurve.load(runtime.revision) == found and found.step_cost.measured_on["threads"] == "3"
    assert runtime.free_tokens() == 8192
