"""The study of calibration sets on a tiny model: the injection is exact, effects and checks are those of its cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

from likely.evidence import Source

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script():
    return load_script("outliers_and_calibration")


@pytest.fixture(scope="module")
def model(script, tmp_path_factory):
    opened = script.StudyModel.open(write_tiny_llama(tmp_path_factory.mktemp("study") / "tiny.gguf", dim=64, ffn=128))
    opened.name = script.ORIGINAL
    return opened


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, line in (
        ("cats", "the cat sat on the mat and the other cats sat there too. "),
        ("code", "x = [i * i]\n"),
    ):
        (folder / f"{name}.txt").write_text("".join(f"{i} {line}" for i in range(60)))
    return (str(folder / "cats.txt"), str(folder / "code.txt"), "random_punctuation")


@pytest.fixture(scope="module")
def made(script, model, texts):
    cells, said = script.CellFile(), []
    methods = ("rtn:w3g64", script.GPTQ, script.STATIC, script.SMOOTH)
    size = dataclasses.replace(
        script.SMOKE, methods={script.ORIGINAL: methods, script.INJECTED: methods[2:]}, draws=2, calibrations=texts,
        windows=2, length=32, judged=(2, 32), looked=(2, 32),
    )  # fmt: skip

    def run():
        return script.study(
            model, size, others={}, cells=cells, sources=[Source(name="tiny", sha256="0" * 64)], data=[], full=False,
            say=said.append,
        )  # fmt: skip

    return run(), run, said, cells


def test_every_cell_is_measured_and_none_twice(script, made, texts):
    found, run, said, cells = made
    kls = {f.subject: f for f in found.figures if f.quantity == "KL, wikitext2:test"}
    assert len(kls) == 1 + 3 * 3 + 2 * 3 and all(f.value > 0 for f in kls.values())
    assert kls[f"{script.ORIGINAL}, rtn:w3g64"].n == 1 and kls[f"{script.ORIGINAL}, {script.GPTQ} on {texts[0]}"].n == 2
    measured = len(cells.known)
    assert measured == len([line for line in said if "/" in line and "kl" in line])
    again = run()
    assert again.figures == found.figures and len(cells.known) == measured


def test_the_injection_moves_no_logit_and_makes_outliers(script, made, model):
    found = made[0]
    [moved] = [c for c in found.checks if c.statement.startswith("injection")]
    assert moved.holds
    kurtosis = {f.subject: f.value for f in found.figures if f.quantity == "kurtosis"}
    for kind in ("attention", "mlp"):
        plain, grown = (kurtosis[f"{n}, inputs of {kind}, wikitext2:valid"] for n in (script.ORIGINAL, script.INJECTED))
        assert grown > plain + 5
    injected = f"{script.INJECTED}, inputs of down, wikitext2:valid"
    assert kurtosis[injected] == pytest.approx(
        kurtosis[f"{script.ORIGINAL}, inputs of down, wikitext2:valid"], rel=1e-3
    )


def test_checks_are_ratios_of_the_figures(script, made, texts):
    found = made[0]
    kl = {f.subject: f.value for f in found.figures if f.quantity == "KL, wikitext2:test"}
    values = {check.statement: check.value for check in found.checks}

    def mean(model, method):
        return np.mean([kl[f"{model}, {method} on {text}"] for text in texts])

    expected = mean(script.INJECTED, script.SMOOTH) / mean(script.INJECTED, script.STATIC)
    assert values[f"injected: KL of {script.SMOOTH} over that of {script.STATIC}"] == pytest.approx(expected)
    sensitivity = {f.subject: f.value for f in found.figures if f.quantity == "sensitivity"}
    pair = [sensitivity[f"{n}, {script.STATIC}, wikitext2:test"] for n in (script.ORIGINAL, script.INJECTED)]
    statement = f"{script.STATIC}: sensitivity of the original over that of the injected model"
    assert values[statement] == pytest.approx(pair[0] / pair[1])
    assert found.ours.count("judged on wikitext2:test") == 2 and len(found.checks) == 11
