"""likely calibrate fit --method h, and what is measured with the calibrator that it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_h_is_fitted_to_logits_and_used(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("likely.calibration.h.train.PATIENCE", 10)  # short training
    rng = np.random.default_rng(0)
    logits = 4 * rng.standard_normal((200, 3))
    odds = np.exp(logits / 4)  # four times too sure
    labels = (rng.random((200, 1)) * odds.sum(axis=1, keepdims=True) > odds.cumsum(axis=1)).sum(axis=1)
    lines = [{"logits": z, "label": y} for z, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    file, target = tmp_path / "lines.jsonl", tmp_path / "cal.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli("calibrate", "fit", file, "--method", "h", "-o", target, "--json")
    assert done.json["method"] == "h" and done.json["after"]["ece"] < done.json["before"]["ece"]
    assert json.loads(target.read_text())["recalibrator"]["learned"]["map_classes_"] == 3
    before = cli("calibrate", "eval", file, "--json").json
    after = cli("calibrate", "eval", file, "--calibrator", target, "--json").json
    assert after["ece"] < before["ece"] / 2 and after["nll"] < before["nll"]
    assert after["accuracy"] == before["accuracy"]
