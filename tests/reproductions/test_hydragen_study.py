"""The study of shared prefixes on tiny models: what it compares and counts, and that timing goes on when cut off."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_gemma3, write_tiny_llama

import likely
from likely.bench import Timing
from likely.evidence import Source, read_result, write_result
from likely.runtimes.slots import sharing

pytest.importorskip("torch")
PROBLEMS = [{"question": f"what is {i}?", "answer": f"{i} it is"} for i in range(20)]


@pytest.fixture(scope="module")
def script():
    return load_script("hydragen")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hydragen")
    wide = write_tiny_gemma3(folder / "gemma.gguf", sliding_window=100)
    return write_tiny_llama(folder / "llama.gguf"), wide


@pytest.fixture(scope="module")
def found(script, models, tmp_path_factory):
    size = script.Size(2, 2, 3, 6, 6, (13,), (64, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "RUN_COST", 0)
        patch.setattr(sharing, "SHARING_COST", 0)
        patch.setattr(sharing, "LEAST_TOKENS", 8)
        with likely.load(models[0], runtime="torch", threads=1, context=4096) as lm:
            return script.study(
                lm, lambda: likely.load(models[1], runtime="torch", threads=1, context=2048), PROBLEMS, size,
                script.Cells(tmp_path_factory.mktemp("cells") / "cells.jsonl", {}, say=lambda line: None), suffix=4,
                models=[Source(name="tiny", sha256="0" * 64)], data=[], full=False,
            )  # fmt: skip


def test_tokens_are_the_same_and_reads_fall(found):
    assert all(check.holds for check in found.headline if check.statement.startswith("exact")), found.checks
    assert sum(check.statement.startswith("exact") for check in found.checks) == 8
    reads = {f.quantity.split(", ")[1]: f.value for f in found.figures if f.subject == "B=13, prefix 100"}
    assert reads["not shared"] / reads["shared"] == pytest.approx(13 * 105 / (100 + 13 * 5))
    assert "speed was not measured" in found.ours and found.verdict == "partly reproduced"


def test_other_numbers_would_be_seen(script, models, monkeypatch):
    from likely.runtimes.torch import attention

    monkeypatch.setattr(sharing, "RUN_COST", 0)
    monkeypatch.setattr(sharing, "SHARING_COST", 0)
    monkeypatch.setattr(attention, "merge_attention", lambda outs, lses: (outs[0], lses[0]))  # prefixes are forgotten
    levels = [[np.arange(100)], [np.arange(70), np.arange(70, 140)]]
    with likely.load(models[0], runtime="torch", threads=1, context=4096) as lm:
        differ, tokens, worst, saved = script.compare_decoding(lm.runtime, levels, 3, 4)
        assert lm.runtime.free_tokens() == 4096
    assert differ > 0 and tokens == 24 and worst > script.LOGITS and saved > 0


def test_speed_is_added_to_the_result_and_goes_on_where_it_stopped(
    script, found, models, tmp_path, monkeypatch, capsys
):
    import shared_steps

    measured = []

    def some(**seconds):
        return {name.replace("_", " "): Timing(name, [value, value]) for name, value in seconds.items()}

    def of_steps(ways, b, prefixes, rounds):
        measured.append(b)
        if len(measured) == 2:
            raise KeyboardInterrupt
        slow = {"shared": 5e-5, "not shared": 1e-2, "as it is": 1e-3}
        return {f"prefix {p:,}, {way}": Timing(way, [1 + p * slow[way]] * 2) for p in prefixes for way in ways}

    def of_tree(*_):
        held = {f"{name}, tokens held": Timing(name, [n]) for name, n in (("tree", 10), ("prefixes only", 30))}
        return some(tree=1.0, prefixes_only=2.0, not_shared=4.0) | held

    monkeypatch.setattr(shared_steps, "micro", lambda b, p, rounds: some(shared=1.0, SDPA=8.0))
    monkeypatch.setattr(shared_steps, "steps", of_steps)
    monkeypatch.setattr(shared_steps, "tree_steps", of_tree)
    monkeypatch.setattr(shared_steps, "apart_from", lambda lm, threads: None)
    load = likely.load
    monkeypatch.setattr(likely, "load", lambda name, runtime, **_: load(models[0], runtime="torch", threads=1))
    write_result(found, tmp_path)
    options = argparse.Namespace(
        out=tmp_path, kept=tmp_path / "cells.jsonl", rounds=2, threads=1, speed=True, even_if_busy=True
    )
    with pytest.raises(KeyboardInterrupt):
        script.measure(options)
    kept = len(options.kept.read_text().splitlines())
    assert kept == 20 and read_result(tmp_path / "hydragen.json") == found  # 19 of one layer, the first batch
    for _ in range(2):
        assert script.measure(options) is None
    now = read_result(tmp_path / "hydragen.json")
    assert measured[:4] == [16, 32, 32, 16] and not options.kept.exists()
    timed = [check for check in now.checks if "speed" in check.statement]
    assert len(timed) == 5 and all(check.holds for check in timed)
    assert [check for check in now.checks if "speed" not in check.statement] == found.checks[:-1]
    assert "is 3" in now.ours and "not measured" not in now.ours


def test_real_steps_are_timed(models):
    import shared_steps

    with likely.load(models[0], runtime="torch", threads=1, context=4096) as lm:
        found = shared_steps.steps(shared_steps.ways_of(lm), 3, (64, 80), 1, suffix=2)
        assert lm.runtime.free_tokens() == 4096
        assert set(shared_steps.ways_of(lm, lm.runtime)) == {"shared", "not shared"}
        assert set(found) == {f"prefix {p}, {way}" for p in (64, 80) for way in ("shared", "not shared")}
        times = shared_steps.tree_steps(lm.runtime, (2, 2, 3), (20, 10, 2), 1)
    held = {name.removesuffix(", tokens held"): times.pop(name).seconds[0] for name in list(times) if "held" in name}
    assert set(times) == {"tree", "prefixes only", "not shared"}
    assert held == {"tree": 1 + 2 * 20 + 4 * 10 + 12 * 2, "prefixes only": 1 + 2 * 20 + 12 * 12}
    assert set(shared_steps.micro(2, 40, 1)) == {"shared", "SDPA"}
