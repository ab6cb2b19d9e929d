"""The benchmark of attentions at the same time, on a tiny model: every way is timed, and the numbers are the same."""

from __future__ import annotations

import pytest
from scripts import script
from tiny_torch import GROUPED, module_of, transformers

from likely.runtimes.torch.runtime import TorchRuntime


def test_every_way_is_timed_and_gives_the_same_bits():
    benchmark = script("parallel_layers", folder="benchmarks")
    module = module_of(transformers.LlamaConfig(**{**GROUPED, "num_hidden_layers": 4}), std=0.1)
    found = benchmark.measure(
        lambda threads: TorchRuntime(module, tokens_held=64, revision="x", attention_threads=threads), rounds=2,
        context=16,
    )  # fmt: skip
    assert found["layers"] == 4 and set(found["median_ms"]) == set(benchmark.plans_of(4))
    assert found["same_bits"] == {"2": True, "4": True} and len(found["faster_than_1_thread"]) == 6
    whole = found["median_ms"]["whole model, 1 thread"]
    saved = found["attention_share"] * (1 - 2 / 4)  # two groups of two, or one of four in two turns
    assert found["predicted_by_critical_path"] == pytest.approx({"2": 1 / (1 - saved), "4": 1 / (1 - saved)})
    assert whole > 0
