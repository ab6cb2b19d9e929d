"""A causal model becomes a diffusion model: with its mask it is the same, without it trains."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from likely.errors import DataError, ModelError
from likely.runtimes.torch.masked import load_masked
from likely.training.diffusion import AdaptSettings, adapt_causal
from likely.training.diffusion.adapt import annealed_mask, causal_as_masked, next_to_own


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def source(request, tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, kind = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[request.param]
    torch.manual_seed(0)
    model = kind(
        config(
            vocab_size=13, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=request.param == "llama",
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("causal") / request.param
    model.save_pretrained(folder)
    return folder, model.eval()


def test_under_its_causal_mask_it_is_the_model_that_it_was(source):
    folder, model = source
    network = causal_as_masked(folder).eval()
    ids = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = network(ids, attend=annealed_mask(9, 0.0, torch.Generator()))
        torch.testing.assert_close(found[..., :13], model(ids).logits, atol=1e-5, rtol=1e-5)
        mean = network.model.embed_tokens.weight[:13].mean(0)
    torch.testing.assert_close(network.model.embed_tokens.weight[13], mean)
    assert network.shape.mask_id == 13 and network.shape.shift


def test_the_mask_goes_away_and_logits_move_to_their_own_position():
    settings, generator = AdaptSettings(steps=10, anneal=0.5), torch.Generator().manual_seed(0)
    assert [settings.in_sight(step) for step in (0, 1, 5, 9)] == [0.0, 0.2, 1.0, 1.0]
    assert annealed_mask(4, 0.0, generator)[0, 0].tolist() == np.tril(np.ones((4, 4), bool)).tolist()
    assert bool(annealed_mask(4, 1.0, generator).all())
    half = annealed_mask(60, 0.5, generator)[0, 0]
    assert bool(half.tril().sum() == 60 * 61 / 2) and 0.4 < half.triu(1).sum() / (60 * 59 / 2) < 0.6
    assert next_to_own(torch.arange(3.0).view(1, 3, 1)).flatten().tolist() == [0.0, 0.0, 1.0]


def test_it_trains_and_is_read_back(source, tmp_path):
    folder, _ = source
    text = [i % 5 for i in range(300)]
    settings = AdaptSettings(steps=25, batch=4, length=16, lr=1e-2, warmup=2)
    losses = adapt_causal(folder, text, tmp_path / "adapted", settings)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    again = load_masked(tmp_path / "adapted")
    assert again.shape.shift and again.shape.mask_id == 13
    assert adapt_causal(folder, text, tmp_path / "twice", settings) == losses


def test_what_cannot_be_adapted(source, tmp_path):
    folder, _ = source
    with pytest.raises(DataError, match="too short"):
        adapt_causal(folder, [1, 2], tmp_path / "a")
    with pytest.raises(DataError, match="below 13"):
        adapt_causal(folder, [40] * 50, tmp_path / "a", AdaptSettings(length=8))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ModelError, match="no causal model"):
        causal_as_masked(tmp_path)
