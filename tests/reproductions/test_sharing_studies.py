"""The studies of FlexSP and LASP-2, small: what they measure and conclude, and that a wrong result is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import ROOT, script

from likely.evidence import Source

SOURCE = Source(name="none", sha256="0" * 64)
RUN = {"gradients": 1e-14, "loss": 0.0, "degrees": [[2, 1, 1]]}


@pytest.fixture
def flexsp(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "reproductions"))
    module = script("flexsp")  # by its own name: processes import it
    monkeypatch.setattr(module, "BATCH", 96)
    return module


@pytest.fixture
def lasp2(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "reproductions"))
    return script("lasp2")


def cells(module, folder):
    return module.Cells(folder / "cells.jsonl", {}, say=lambda line: None)


def long_tailed(seed, n):
    lengths = np.random.default_rng(seed).lognormal(6.5, 1.3, n).astype(int)
    return [*np.minimum(-(-lengths // 128) * 128, 30_000).tolist()[:-1], 90_112]


def test_flexsp_compares_the_same_batches_and_goes_on_where_it_was_stopped(flexsp, monkeypatch, tmp_path):
    monkeypatch.setattr(flexsp, "run_world", lambda *args: RUN)
    batches = {"gpt-7b": [long_tailed(seed, 96) for seed in range(2)]}
    kept = cells(flexsp, tmp_path)
    found = flexsp.study(batches, kept, full=False, data=[SOURCE])
    values = {figure.quantity: figure.value for figure in found.figures}
    assert values["all of 64, over planned"] > 1 and values["best size per batch, over planned"] > 1
    assert values["planned, over what no plan beats"] >= 1 and values["filling alone, over planned"] >= 1
    held = {check.statement: check.holds for check in found.checks}
    assert held["control: equal lengths, best size / planned"]
    assert all(held[s] for s in held if s.startswith("executed"))
    monkeypatch.setattr(flexsp, "batch_row", lambda *args: pytest.fail("measured again"))
    again = flexsp.study(batches, cells(flexsp, tmp_path), full=False, data=[SOURCE])
    assert again.figures == found.figures


def test_flexsp_does_not_reproduce_with_plans_that_are_no_better(flexsp):
    row = flexsp.batch_row(long_tailed(3, 96), "gpt-7b")
    checks, _ = flexsp.checks_of([row | {"planned": min(row["alike"].values()), "mixes": False}], RUN)
    held = {check.statement: check.holds for check in checks}
    assert not held["1.17 over (best size per batch / planned)"]
    assert not all(held.values()) and not next(v for s, v in held.items() if "no mix" in s)


def counted(lasp2, lengths):
    return {
        f"{way}, {size}, {length}": dict(
            zip(("received", "serial"), lasp2.SMALL.predicted(way, size, length), strict=True)
        )
        for way in lasp2.WAYS for size in lasp2.PROCESSES[1:] for length in lengths
    }  # fmt: skip


EXACT = {
    "layers": {"s4d, 4, zigzag, float64": 1e-14, "s4d, 4, zigzag, float32": 1e-6, "no exchange": 0.3},
    "model": 0.0,
}


def test_lasp2_holds_where_messages_are_as_predicted(lasp2):
    lengths = (512, 1024)
    checks, words = lasp2.checks_of(EXACT, counted(lasp2, lengths), lengths)
    assert all(check.holds for check in checks) and "2 messages in a row" in words
    figures = lasp2.figures_of(EXACT, counted(lasp2, lengths), lengths)
    assert len({(f.subject, f.quantity) for f in figures}) == len(figures)


def test_lasp2_notices_wrong_outputs_and_messages_that_grow(lasp2):
    lengths = (512, 1024)
    sent = counted(lasp2, lengths)
    sent["LASP-2, 4, 1024"]["received"] *= 2
    wrong = {"layers": EXACT["layers"] | {"s4d, 4, zigzag, float64": 1e-3, "no exchange": 1e-9}, "model": 0.0}
    checks, _ = lasp2.checks_of(wrong, sent, lengths)
    failed = [check.statement for check in checks if not check.holds]
    assert len(failed) == 4
    assert any("float64" in s for s in failed) and any("bytes at 1024" in s for s in failed)
    assert any("control" in s for s in failed) and any("the model's bytes" in s for s in failed)


@pytest.mark.slow
def test_both_run_their_processes(flexsp, lasp2, tmp_path):
    found = lasp2.study((256, 512), 37, cells(lasp2, tmp_path), full=False)
    assert {check.statement: check.value for check in found.checks if not check.holds} == {}
    run = flexsp.run_world(flexsp.PROCESSES, flexsp.executed, list(flexsp.LENGTHS))
    assert run["gradients"] < 1e-9 and run["loss"] < 1e-9
    assert len({size for sizes in run["degrees"] for size in sizes}) > 1
