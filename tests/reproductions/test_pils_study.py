"""The PILS study on a tiny model: all its parts run, and its grammar gives different prompts, always the same ones."""

from __future__ import annotations

import pytest
from scripts import script

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pils():
    return script("pils")


def test_the_grammar_gives_different_prompts_and_longer_lists_begin_alike(pils):
    some, more = pils.instruction_prompts(50), pils.instruction_prompts(80)
    assert len(set(more)) == 80 and more[:50] == some
    assert all(prompt[0].isupper() and prompt.endswith(".") and "{" not in prompt for prompt in more)


def test_all_parts_run_on_a_tiny_model(pils, tmp_path):
    import torch
    from tiny_torch import tiny_module

    from likely.audit.inversion import InverterConfig
    from likely.runtimes.torch.runtime import TorchRuntime

    torch.set_num_threads(1)
    runtime = TorchRuntime(tiny_module("llama"), revision="tiny")
    config = InverterConfig(width=16, hidden=16, heads=2, encoder_layers=1, decoder_layers=1, epochs=1)
    sizes = pils.Sizes(40, 10, config, longer=True)

    def render(prompt):
        return [1 + b % 60 for b in prompt.encode()][:10]

    def run():
        return pils.study(runtime, render, 31, sizes, steps=(1, 10), kept=tmp_path, report=lambda line: None)

    found = run()
    assert found.mode == "quick" and len(found.checks) == 6 and len(list(tmp_path.iterdir())) == 1
    assert any(f.subject == "trained on T = 8, reads 16 less 8" for f in found.figures)
    assert next(f.value for f in found.figures if f.quantity == "rank") == 32  # what the model really has
    assert run().figures == found.figures
