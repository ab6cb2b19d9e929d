"""The study of pruning on a tiny model: what it measures, and that a method that is worse is seen."""

from __future__ import annotations

import math

import pytest
from byte_tokenizer import PieceTokenizer
from scripts import script as load_script
from tiny_torch import tiny_module
from window_sets import random_windows

from likely.compression.pruning.nirvana import deal
from likely.evidence import Source, read_result, write_result

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def script():
    return load_script("nirvana")


@pytest.fixture(scope="module")
def found(script):
    calibration, first, second, holdout = deal(random_windows(16), 4)
    texts = script.Texts(calibration, [first, second], holdout, calibration, {"random": random_windows(3, seed=1)})
    return script.study(
        tiny_module("llama"), PieceTokenizer([bytes([b]) for b in range(64)]), texts,
        script.Size((0.3,), (0.3,), 2, (1.0, math.inf), 3, 1e-2), sources=[Source(name="tiny", sha256="0" * 64)],
        data=[], full=False, multiple_of=8, same_file=lambda: {"llama.cpp": 1e-7, "native": 0.5}, say=lambda line: None,
    )  # fmt: skip


def test_the_study_measures_every_method_at_every_sparsity(script, found):
    kl = {f.subject: f.value for f in found.figures if f.quantity.startswith("KL")}
    for name in (script.NIRVANA, script.TAYLOR, script.MAGNITUDE, script.RANDOM):
        assert kl[f"uniform, sparsity 0.3: {name}"] > 0 and kl[f"global, sparsity 0.3: {name}"] > 0
    assert found.mode == "quick" and len(found.headline) == 4 and len(found.secondary) == 7
    [ratio] = [c for c in found.checks if c.statement == "uniform, sparsity 0.3: KL of NIRVANA over that of magnitude"]
    subject = "uniform, sparsity 0.3: "
    assert ratio.value == pytest.approx(kl[subject + script.NIRVANA] / kl[subject + script.MAGNITUDE])


def test_a_file_that_says_something_else_is_seen(found):
    held = {check.statement: check.holds for check in found.checks}
    assert held["KL between torch and llama.cpp of the pruned file, fp32"]
    assert not held["KL between torch and native of the pruned file, fp32"]


def test_speed_takes_the_place_of_what_was_measured_before(script, found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "refuse_busy", lambda: None)
    figure = found.figures[0].model_copy(update={"subject": "speed: native, sparsity 0.2"})
    check = found.checks[0].model_copy(update={"statement": "speed: prefill"})
    monkeypatch.setattr(script, "speed", lambda *_: ([figure], [check]))
    write_result(found, tmp_path)
    options = script.argparse.Namespace(threads=1, rounds=1, out=tmp_path)
    for _ in range(2):
        script.add_speed(options)
    now = read_result(tmp_path / "nirvana.json")
    assert now.figures == [*found.figures, figure] and now.checks == [*found.checks, check]
    assert now.headline == found.headline and "added to" in capsys.readouterr().out


def test_calls_leave_the_text_as_it_was(script, monkeypatch):
    from likely.runtimes.torch.runtime import TorchRuntime

    monkeypatch.setattr(script, "CONTEXT", 16)
    runtime = TorchRuntime(tiny_module("llama"))
    calls = script.Calls(runtime)
    monkeypatch.setattr(calls, "_tokens", lambda n: script.np.arange(n) % 64)
    for call in (calls.prefill, calls.decode, calls.decode):
        call()
    assert calls._text.length == 16
