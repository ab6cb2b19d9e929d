"""The planner's benchmark on a tiny model: the three ways agree, and one run computes the least."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely

SETTINGS = {"samples": 3, "max_tokens": 4, "stop": "\n", "seed": 0}


@pytest.fixture(scope="module")
def planner():
    return script("planner", folder="benchmarks")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("planner") / "tiny.gguf", context=1024)
    with likely.load(str(path), runtime="torch", threads=1) as model:
        yield model


@pytest.mark.filterwarnings("ignore:P.True")
def test_a_round_of_each_way(planner, lm):
    found = planner.measure(lm, ["the cat", "a dog sat", "my sun"], rounds=2, samples=3, max_tokens=4)
    assert found["questions"] == 2 and set(found["seconds"]) == set(planner.WAYS)
    assert all(len(seconds) == 2 for seconds in found["seconds"].values())
    assert found["values_within_0.01"] == 1 and found["values_agree"]
    assert found["target_of"].startswith("ratio_one_by_one") and "careful user" in planner.said(found)
    with pytest.raises(ValueError, match="1 questions for 2 rounds"):
        planner.measure(lm, ["x"], rounds=2, samples=3, max_tokens=4)


def test_a_fast_run_with_other_values_reaches_nothing(planner, monkeypatch):
    """Three ways that only wait: the target needs the speed and the values."""

    def way(seconds, value):
        def run(lm, prompts, settings):
            time.sleep(seconds)
            return {name: np.full(len(prompts), value) for name in planner.ESTIMATORS}

        return run

    monkeypatch.setattr(planner, "gather", lambda *args, **settings: None)
    ways = {"one run": way(0.001, 1.0), "one by one": way(0.05, 1.0), "by hand": way(0.05, 1.0)}
    monkeypatch.setattr(planner, "WAYS", ways)
    found = planner.measure(None, ["a", "b"], rounds=2, samples=1, max_tokens=1)
    assert found["reached"] and "reached" in planner.said(found) and "all values agree" in planner.said(found)
    ways["by hand"] = way(0.05, 1.5)
    found = planner.measure(None, ["a", "b"], rounds=2, samples=1, max_tokens=1)
    assert found["ratio_one_by_one"]["low"] >= planner.TARGET and not found["reached"]
    assert "differ by up to 0.5" in planner.said(found)


@pytest.mark.filterwarnings("ignore:P.True")
def test_one_run_computes_the_least(planner, lm, monkeypatch):
    tokens: dict[str, int] = {}
    forward = lm.runtime.forward
    for name, way in planner.WAYS.items():
        tokens[name] = 0

        def counted(work, name=name):
            tokens[name] += sum(len(item.tokens) for item in work)
            return forward(work)

        monkeypatch.setattr(lm.runtime, "forward", counted)
        values = way(lm, ["the cat", "the cat sat"], SETTINGS)
        assert set(values) == set(planner.ESTIMATORS) and all(np.isfinite(v).all() for v in values.values())
    assert tokens["one run"] < tokens["by hand"] < tokens["one by one"]


def test_its_questions(planner):
    prompts = planner.prompts_of(3)
    assert len(set(prompts)) == 3 and all("capital" in p and p.endswith("Answer:") for p in prompts)
