"""The study of layer-parallel drafting on a tiny model: what it measures, and that what breaks it is seen."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import script as load_script
from tiny_torch import GROUPED, VOCAB, module_of, transformers

from likely.evidence import Source
from likely.runtimes.protocol import LayerPlan
from likely.runtimes.torch.runtime import TorchRuntime

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def script():
    return load_script("easyspec")


@pytest.fixture(scope="module")
def runtime():
    config = transformers.LlamaConfig(**{**GROUPED, "num_hidden_layers": 6})
    return TorchRuntime(module_of(config, std=0.1), tokens_held=2048, revision="tiny")


@pytest.fixture(scope="module")
def subject(script, runtime):
    rng = np.random.default_rng(0)
    size = script.Size(tokens=24, search=12, prompts=2, context=8, rounds=3, written=6)
    prompts = [rng.integers(0, VOCAB, 8 + 3 * script.K).tolist() for _ in range(2)]
    text, other = (rng.integers(0, VOCAB, n).tolist() for n in (24, 12))
    return script.Subject("tiny", runtime, text, other, prompts, size)


@pytest.fixture(scope="module")
def found(script, runtime, subject, tmp_path_factory):
    cells = tmp_path_factory.mktemp("cells") / "cells.jsonl"

    def study():
        return script.study(
            [subject], lambda: runtime, cells=script.Cells(cells),
            models=[Source(name="tiny", sha256="0" * 64)], data=[], full=False, threads=1, say=lambda line: None,
        )  # fmt: skip

    first, again = study(), study()  # the second time every cell is known
    assert len(cells.read_text().splitlines()) == 6
    assert (again.figures, again.checks, again.ours) == (first.figures, first.checks, first.ours)
    return again


def test_the_study_measures_every_part(script, found):
    values = {(f.subject, f.quantity): f.value for f in found.figures}
    for what in (script.ATTENTION, script.LAYERS_TOO):
        for regime in (script.NEVER, script.EACH_ROUND):
            assert 0 <= values[f"tiny, {what}, groups of 4, {regime}", script.SAME] <= 1
    assert values["tiny, whole model", "attentions in sequence"] == 6
    assert values["tiny, groups of 4, the paper's plan", "attentions in sequence"] == 3
    assert values["tiny, T = 0, whole model as the draft", "drafted tokens kept"] == 1
    [texts] = [check for check in found.checks if "differ from plain decoding" in check.statement]
    assert texts.value == 0 and texts.holds
    assert [c.statement.startswith("tiny") for c in found.checks] == [True] * 9
    assert len(found.headline) == 8 and len(found.secondary) == 1


def test_whole_layers_read_one_input(script, runtime):
    """Of a group of two: h + (layer_1(h) - h) + (layer_2(h) - h), and the module as it was afterwards."""
    import torch

    model, tokens = runtime.module.model, torch.arange(9)[None]
    seen = []
    hooks = [model.layers[n].register_forward_hook(lambda _m, given, out: seen.append(out)) for n in (1, 2)]
    with torch.no_grad():
        plain = model.layers[1].register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
        with script.whole_layers(runtime.module, LayerPlan(parallel=((1, 2),))):
            runtime.module(input_ids=tokens)
        for hook in (*hooks, plain):
            hook.remove()
        h, unchanged, merged = seen
        angles = model.rotary_emb(h, position_ids=torch.arange(9)[None])
        mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
        own = [model.layers[n](h, position_embeddings=angles, attention_mask=mask) for n in (1, 2)]
    torch.testing.assert_close(unchanged, h)
    torch.testing.assert_close(merged, h + (own[0] - h) + (own[1] - h), atol=1e-4, rtol=1e-4)
    assert not any("forward" in m.__dict__ for m in runtime.module.modules())


def test_a_text_that_changes_is_seen(script, subject, monkeypatch):
    """One that the drafter has moved by a token."""
    original, calls = script.run, []

    def shifted(loop, requests):
        for events in original(loop, requests):
            for event in events:
                if event.finish and requests[0].drafter is not None and not calls:
                    calls.append(1)
                    event.finish.tokens[-1] ^= 1
            yield events

    monkeypatch.setattr(script, "run", shifted)
    found = script.Found()
    script.texts(subject, found, LayerPlan(), lambda line: None)
    assert found.checks[-1].value == 1 and not found.checks[-1].holds
