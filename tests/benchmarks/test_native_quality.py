"""The quality benchmark's quantities against numbers worked out by hand, and a run of it on a tiny model."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError

FOLDER = Path(__file__).parents[2] / "benchmarks"
HALF = np.log([[0.5, 0.25, 0.25]])
LEANS = np.log([[0.25, 0.5, 0.25]])


@pytest.fixture(scope="module")
def quality():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("native_quality")
    finally:
        sys.path.remove(str(FOLDER))


def test_quantities_by_hand(quality):
    logits = np.array([[0.0, math.log(2), 0.0], [1000.0, 1000.0, 1000.0]], np.float32)
    assert np.exp(quality.log_softmax(logits)) == pytest.approx(np.array([[0.25, 0.5, 0.25], [1 / 3] * 3]))
    found = quality.compare(HALF, LEANS, np.array([1]))
    assert found.divergence == pytest.approx([0.25 * math.log(2)])  # 0.5 ln 2 − 0.25 ln 2
    assert found.flipped.tolist() == [True]
    assert (found.theirs[0], found.ours[0]) == pytest.approx((math.log(0.25), math.log(0.5)))
    same = quality.compare(HALF, HALF, np.array([0]))
    assert same.divergence.tolist() == [0] and same.flipped.tolist() == [False]


def test_a_summary_by_hand(quality):
    """Two windows, of one position and of two: every position counts once."""
    one = quality.compare(HALF, LEANS, np.array([1]))
    two = quality.compare(np.repeat(HALF, 2, axis=0), np.repeat(HALF, 2, axis=0), np.array([0, 1]))
    found = quality.summary([one, two])
    assert found["positions"] == 3 and found["kl_nats"] == pytest.approx(0.25 * math.log(2) / 3)
    assert found["flips_percent"] == pytest.approx(100 / 3)
    assert found["perplexity_reference"] == pytest.approx((4 * 2 * 4) ** (1 / 3))
    assert found["perplexity"] == pytest.approx((2 * 2 * 4) ** (1 / 3))
    assert found["log_perplexity_ratio"] == pytest.approx(math.log(found["perplexity"] / found["perplexity_reference"]))
    assert found["largest_difference_nats"] == pytest.approx(math.log(2))
    assert found["kl_nats_low"] == 0 and found["kl_nats_high"] == pytest.approx(0.25 * math.log(2))


def test_what_cannot_be_compared(quality):
    with pytest.raises(ValueError, match="shape"):
        quality.compare(HALF, HALF[:, :2], np.array([0]))
    with pytest.raises(ValueError, match="not finite"):
        quality.compare(HALF, np.full((1, 3), np.nan), np.array([0]))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("quality") / "tiny.gguf", context=1024)


def test_windows_follow_each_other(quality, path):
    with likely.load(str(path), runtime="torch", threads=1) as lm:
        text = "the cat sat on the mat " * 20
        first, second = quality.windows_of(lm.tokenizer, text, 2, 16)
        front = len(quality.begin(lm.tokenizer, []))
        assert len(first) == len(second) == 17
        ids = lm.tokenizer.encode(text)
        assert [*first[front:], *second[front:]] == ids[: 2 * (17 - front)]
        with pytest.raises(ValueError, match="windows need"):
            quality.windows_of(lm.tokenizer, "the cat", 2, 16)


def test_pieces_change_nothing(quality, path):
    """A model against itself: no divergence, whatever the pieces; its perplexity is that of score."""
    with likely.load(str(path), runtime="torch", threads=1) as lm:
        [tokens] = quality.windows_of(lm.tokenizer, "the cat sat on the mat " * 5, 1, 20)
        whole, cut = (quality.run_window(lm.runtime, {"x": lm.runtime}, tokens, piece)["x"] for piece in (20, 3))
        assert len(whole.ours) == len(cut.ours) == 20
        assert whole.divergence == pytest.approx(0, abs=1e-6) and cut.divergence == pytest.approx(0, abs=1e-6)
        assert cut.ours == pytest.approx(whole.ours, abs=1e-5) and not cut.flipped.any()


@pytest.fixture
def small_run(quality, path, monkeypatch, tmp_path):
    """Runs main on the tiny file under a model's name; the native runtime can run once it is `ready`."""
    ready: list[bool] = []
    load = likely.load

    def tiny(name, *, runtime, **options):
        if runtime == "native" and not ready:
            raise CapabilityError("no compiler")
        return (
            load(str(path), runtime="torch", threads=1)
            if runtime == "native"
            else load(str(path), runtime=runtime, **options)
        )

    monkeypatch.setattr(quality.likely, "load", tiny)
    monkeypatch.setattr(quality.protocol, "RESULTS", tmp_path)
    monkeypatch.setattr(quality, "POSITIONS", 16)
    monkeypatch.setattr(quality, "text_of", lambda name, file: "the cat sat on the mat " * 100)
    monkeypatch.setattr(
        quality, "CANDIDATES", {n: quality.CANDIDATES[n] for n in ("llamacpp-q8_0", "torch-bf16", "native-int8")}
    )
    monkeypatch.setitem(quality.CANDIDATES, "llamacpp-q8_0", lambda place: tiny(place.model, runtime="torch"))
    return ready, lambda *argv: quality.main([*argv, "--threads", "1"]), tmp_path / "native_quality.json"


def test_rows_are_added_to_a_results_file(small_run, capsys):
    ready, run, file = small_run
    run("--quick")
    assert not file.exists() and "smollm2, native-int8: not measured (no compiler)" in capsys.readouterr().out
    run()
    record = json.loads(file.read_text())
    assert set(record["models"]) == {"smollm2", "gemma3"} and record["windows"] == 6
    before = record["models"]["smollm2"]["rows"]
    assert list(before) == ["llamacpp-q8_0", "torch-bf16"] and record["models"]["smollm2"]["demands"] == []
    assert before["torch-bf16"]["wikitext2"]["positions"] == 6 * 16
    assert 0 < before["torch-bf16"]["humaneval"]["kl_nats"] < 0.1
    ready.append(True)
    run("--only", "native-int8", "--model", "smollm2")
    record = json.loads(file.read_text())
    after = record["models"]["smollm2"]
    assert {name: after["rows"][name] for name in before} == before and "native-int8" in after["rows"]
    assert len(after["demands"]) == 4 and "Q8_0" in after["demands"][0]["demand"]
    assert "native-int8" not in record["models"]["gemma3"]["rows"]
    with pytest.raises(SystemExit, match="cannot stand beside"):
        run("--only", "native-int8", "--full")


def test_rows_of_other_weights_go(quality):
    row = {"wikitext2": {}, "humaneval": {}}
    earlier = {"models": {"smollm2": {"sha256": "a", "rows": {"llamacpp-q8_0": row}}, "gemma3": {"rows": {}}}}
    record = {"models": {"smollm2": {"sha256": "b", "rows": {"torch-bf16": row}}}}
    found = quality.merged(earlier, record)["models"]
    assert list(found["smollm2"]["rows"]) == ["torch-bf16"] and "gemma3" in found
    record["models"]["smollm2"]["sha256"] = "a"
    assert list(quality.merged(earlier, record)["models"]["smollm2"]["rows"]) == ["llamacpp-q8_0", "torch-bf16"]
