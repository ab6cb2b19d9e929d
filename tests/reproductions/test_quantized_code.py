"""The study of quantised code models on a tiny model: every cell once, checks as ratios of figures, resumed."""

from __future__ import annotations

import pytest
from scripts import script as load_script

from likely.audit.code.benchmarks import mbpp_problem
from likely.audit.code.likelihoods import CodeTask
from likely.audit.code.mutants import mutants, one_of_each_kind

pytest.importorskip("torch")
PROGRAMS = ("def f(a, b):\n    if a > b:\n        return a + 1\n    return b", "def f(x):\n    return x * 2")


@pytest.fixture(scope="module")
def script():
    return load_script("quantized_code")


@pytest.fixture(scope="module")
def tasks():
    records = [{"task_id": i, "text": "the cat", "code": code, "test_list": []} for i, code in enumerate(PROGRAMS)]
    return [CodeTask(mbpp_problem(r), tuple(one_of_each_kind(mutants(r["code"])))) for r in records]


@pytest.fixture(scope="module")
def run(script, tasks, tmp_path_factory):
    from tiny_gguf import write_tiny_llama

    from likely.compression.study.grid import CellFile, StudyModel

    folder = tmp_path_factory.mktemp("code")
    text = folder / "cats.txt"
    text.write_text("the cat sat on the mat and the other cats sat there too. " * 60)
    model = StudyModel.open(write_tiny_llama(folder / "tiny.gguf", tied=True))
    size = script.Size(
        (script.Part((*(f"gptq:w{b}g32" for b in (8, 4, 3, 2)), "additive:1x4"), ("random_tokens", str(text))),),
        4, 16, 2, 16, 2, 0,
    )  # fmt: skip
    patch = pytest.MonkeyPatch()
    patch.setattr(script, "GPTQ", {b: f"gptq:w{b}g32" for b in (8, 4, 3, 2)})
    patch.setattr(script, "ADDITIVE", "additive:1x4")
    patch.setattr(script, "GENERAL", "random_tokens")
    patch.setattr(script, "CODE", str(text))
    said: list[str] = []

    def go():
        with CellFile(folder / "cells.jsonl") as cells:
            return script.study(model, tasks, size, text="random_punctuation", cells=cells, said=said.append,
                                sizes={"fp16": 100, script.FOUR: 40}, solved={"original": (0, 4)})  # fmt: skip

    yield go(), go, said
    patch.undo()


def test_every_cell_is_measured_on_code_and_on_text(script, run):
    found = run[0]
    kl = {f.subject: f.value for f in found.figures if f.quantity == "KL on code"}
    assert len(kl) == 10 and min(kl.values()) >= 0
    assert kl["gptq:w2g32, random_tokens"] > 5 * kl["gptq:w8g32, random_tokens"]
    assert len([f for f in found.figures if f.quantity.startswith("McNemar")]) == 10
    assert {f.subject for f in found.figures if f.quantity == "size"} >= {"file: fp16", "packed: additive:1x4"}


def test_checks_are_ratios_of_the_figures(script, run):
    found = run[0]
    kl = {f.subject: f.value for f in found.figures if f.quantity == "KL on code"}
    values = {check.statement: check.value for check in found.checks}
    ratio = kl["gptq:w4g32, random_tokens"] / kl["gptq:w3g32, random_tokens"]
    assert values["random_tokens: KL on code at 4 bits over that at 3"] == pytest.approx(ratio)
    assert values["size: the file with 4 bits over that in fp16"] == 0.4 and len(found.checks) == 11


def test_a_second_run_measures_nothing(run):
    first, go, said = run
    before = len(said)
    again = go()
    assert len(said) == before == 20 and again.figures == first.figures
