"""The recipe for a draft model on a tiny target: each step, the folder it writes, and what the folder is worth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import transformers
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.tokenizers.gguf import tokenizer_from_gguf

torch.set_num_threads(1)  # as in tiny_torch: a second thread only waits
TEXTS = ["the cat sat on the mat and the other cats sat there too. ", "this is the answer to the question, then "]


@pytest.fixture(scope="module")
def recipe_module():
    return script("distil_draft")


@pytest.fixture(scope="module")
def target():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        )  # fmt: skip
        module = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 40, (24, 16))


def small(module, **changes):
    return replace(module.Recipe(layers=2, fitted=24, columns=30, window=16, batch=4, steps=30, rate=5e-3), **changes)


def loss_of(module, target, draft, windows):
    with torch.no_grad():
        rows = [m(torch.from_numpy(windows)).logits.flatten(0, 1) for m in (target, draft)]
    return float(module.divergence(*rows))


def test_divergence_is_the_mean_kl(recipe_module):
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert float(recipe_module.divergence(p.log(), q.log())) == pytest.approx(expected, abs=1e-6)


def test_all_layers_are_the_target(recipe_module, target, windows):
    """With every layer kept the fitted map is the identity, and the draft is the target."""
    draft = recipe_module.first_layers(target, 4)
    assert loss_of(recipe_module, target, draft, windows) == pytest.approx(0, abs=1e-6)
    states = recipe_module.States(target, windows)
    mapping = recipe_module.fitted_map(draft, states, windows, small(recipe_module))
    np.testing.assert_allclose(mapping.numpy(), np.eye(32), atol=0.05)  # the target's states are kept in bf16


def test_fitting_and_training_bring_the_draft_nearer(recipe_module, target, windows):
    recipe = small(recipe_module)
    torch.manual_seed(0)
    draft, states = recipe_module.first_layers(target, 2), recipe_module.States(target, windows)
    bare = loss_of(recipe_module, target, draft, windows)
    mapping = recipe_module.fitted_map(draft, states, windows, recipe)
    fitted = loss_of(recipe_module, target, recipe_module.fold(draft, target, mapping), windows)
    mapping, steps = recipe_module.distil(target, draft, mapping, states, windows, recipe, lambda line: None)
    trained = loss_of(recipe_module, target, recipe_module.fold(draft, target, mapping), windows)
    assert steps == 30 and trained < fitted < bare
    torch.testing.assert_close(draft.get_input_embeddings().weight, target.get_input_embeddings().weight)


def test_the_target_is_left_as_it_was(recipe_module, target, windows):
    before = {name: value.clone() for name, value in target.state_dict().items()}
    recipe = small(recipe_module, steps=2)
    draft, states = recipe_module.first_layers(target, 1), recipe_module.States(target, windows)
    mapping, _ = recipe_module.distil(target, draft, torch.eye(32), states, windows, recipe, lambda line: None)
    recipe_module.fold(draft, target, mapping)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_steps_and_seed_give_the_same_draft(recipe_module, target, windows):
    made = []
    for _ in range(2):
        draft, states = recipe_module.first_layers(target, 2), recipe_module.States(target, windows)
        recipe = small(recipe_module, steps=5)
        made.append(recipe_module.distil(target, draft, torch.eye(32), states, windows, recipe, lambda line: None)[0])
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)


def test_the_folder_loads_and_drafts(recipe_module, tmp_path):
    """A tiny target as a GGUF file: the folder beside it is a model, and a drafter by name, with identical text."""
    source = write_tiny_llama(tmp_path / "tiny.gguf")
    with likely.load(str(source), runtime="torch", dtype="float32") as lm:
        module = lm.runtime.module
        draft = recipe_module.first_layers(module, 1)
        recipe, facts = small(recipe_module), {}
        facts = {"recipe": asdict(recipe), "target": recipe_module.file_sha256(source), "steps": 0, "worth": {}}
        recipe_module.save(draft, tokenizer_from_gguf(source), tmp_path / "draft", facts)
        assert recipe_module.kept(tmp_path / "draft", recipe, source) == json.loads(json.dumps(facts))
        assert recipe_module.kept(tmp_path / "draft", replace(recipe, seed=1), source) is None
        assert recipe_module.kept(tmp_path, recipe, source) is None
        name = f"model:{tmp_path / 'draft'}"
        for settings in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 2}):
            plain = lm.generate(TEXTS, max_tokens=12, **settings)
            drafted = lm.generate(TEXTS, max_tokens=12, drafter=name, draft_budget=4, **settings)
            assert [d.token_ids for d in drafted] == [p.token_ids for p in plain]
            assert sum(d.proposed for d in drafted) > 0
        assert type(lm.drafter(name)).__name__ == "DraftModel"
        same, n = recipe_module.agreement(module, draft, np.arange(32).reshape(2, 16))
        assert 0 <= same <= n == 32
        taus, identical = recipe_module.tokens_per_call(lm, draft, TEXTS, length=3, max_tokens=6)
        assert len(taus) == 2 == identical and min(taus) >= 1


def test_wrong_numbers_of_layers_are_refused(recipe_module, target):
    with pytest.raises(ValueError, match=r"layers must lie in 1\.\.4, got 5"):
        recipe_module.first_layers(target, 5)
