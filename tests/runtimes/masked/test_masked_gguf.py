"""LLaDA and Dream in GGUF files, by llama.cpp: the numbers and texts of the same weights in torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_llama

import likely
from likely.cli.app import run
from likely.decoding.diffusion import FreeDave, diffusion_generate, likelihood_bound
from likely.errors import CapabilityError, ModelError
from likely.formats.families import FAMILIES, change_to_folder, folder_name
from likely.lm.diffusion import DiffusionModel
from likely.runtimes.llamacpp import LlamaCppPredictor
from likely.runtimes.torch.masked import MaskedPredictor, MaskedShape, MaskedTransformer

MASK, VOCAB = 319, 320
LIKE = {"llada": "llama", "dream": "qwen2"}  # the family whose tensors it has


def write(path, arch, **settings):
    return write_tiny_llama(path, arch=arch, **{"dim": 64, "context": 96, "mask_id": MASK, **settings})


def in_torch(path, arch):
    """The network of a file, read by the gguf package."""
    family = next(family for family in FAMILIES if family.gguf == LIKE[arch])
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = np.array(tensor.data, np.float32)
        change = change_to_folder(family, tensor.name, 4, 2)
        state[folder_name(family, tensor.name)] = torch.from_numpy(change(values) if change else values)
    shape = MaskedShape(VOCAB, MASK, 64, 2, 4, 2, 64, 96, qkv_bias=arch == "dream", shift=arch == "dream")
    network = MaskedTransformer(shape)
    network.load_state_dict(state)
    return MaskedPredictor(network)


@pytest.fixture(scope="module", params=LIKE)
def pair(request, tmp_path_factory):
    """(file, predictor of llama.cpp, predictor of torch)"""
    path = write(tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf", request.param)
    found = LlamaCppPredictor(path)
    yield path, found, in_torch(path, request.param)
    found.close()


def canvases(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


def test_logits_are_those_of_torch(pair):
    _, model, other = pair
    for name in ("mask_id", "vocab_size", "context", "shift_logits", "block"):
        assert getattr(model, name) == getattr(other, name), name
    for rows, length in ((3, 17), (1, 96), (2, 1)):  # the context grows, then has room to spare
        ids = canvases(rows, length)
        np.testing.assert_allclose(model.logits(ids), other.logits(ids), rtol=1e-3, atol=1e-4)


def test_every_position_sees_all_others(pair):
    _, model, _ = pair
    ids = canvases(1, 9)
    other = ids.copy()
    other[0, 8] = (ids[0, 8] + 1) % VOCAB
    assert (np.abs(model.logits(ids) - model.logits(other)).max(-1) > 1e-3).all()


@pytest.mark.parametrize("settings", [{}, {"block_length": 4}, {"temperature": 0.7, "seed": 3}, {"guidance": 0.5}])
def test_texts_are_those_of_torch(pair, settings):
    _, model, other = pair
    prompts = canvases(3, 5, seed=1) % MASK
    wanted = diffusion_generate(other, prompts, length=12, **settings)
    found = diffusion_generate(model, prompts, length=12, **settings)
    assert (found.answers == wanted.answers).all() and (found.order == wanted.order).all()


@pytest.mark.parametrize("dtype", ["F32", "Q8_0"])
def test_what_else_is_asked_changes_no_bit_and_drafts_no_text(tmp_path, dtype):
    model = LlamaCppPredictor(write(tmp_path / "a.gguf", "llada", dtype=dtype))
    ids = canvases(4, 24)
    alone = np.concatenate([model.logits(row[None]) for row in ids])
    assert (model.logits(ids) == alone).all()
    prompts = canvases(3, 5, seed=2) % MASK
    plain = diffusion_generate(model, prompts, length=16)
    drafted = diffusion_generate(model, prompts, length=16, accelerator=FreeDave(4))
    assert (drafted.answers == plain.answers).all() and drafted.forward_calls <= plain.forward_calls
    model.close()
    together = LlamaCppPredictor(tmp_path / "a.gguf", sequences=3)
    np.testing.assert_allclose(together.logits(ids), alone, atol=1e-4 if dtype == "F32" else 1.0)
    together.close()


def test_it_is_loaded_as_a_diffusion_model(pair, capsys):
    path, _, other = pair
    with likely.load(path) as lm:
        assert isinstance(lm, DiffusionModel) and lm.info.runtime == "llamacpp" and lm.info.dtype == "f32"
        prompt = lm.tokenizer.encode("the cat")
        wanted = diffusion_generate(other, prompt, length=8)
        made = lm.generate("the cat", max_tokens=8, temperature=0.0)
        assert made.token_ids == wanted.answers[0].tolist()[: len(made.token_ids)] and made.target_calls == 8
        assert "".join(lm.stream("the cat", max_tokens=8, temperature=0.0)) == made.text
        scored = lm.score("the cat", [" sat"])[0]
        bound = likelihood_bound(other, prompt, lm.tokenizer.encode(" sat"))
        assert scored.kind == "lower_bound" and scored.sequence_logprob == pytest.approx(bound.value, abs=1e-3)
        with pytest.raises(CapabilityError, match=r'cache="none".*folder'):
            lm.with_decoding(cache="dual").generate("the cat", max_tokens=8)
    assert run(["diffusion", "generate", "-m", str(path), "the cat", "--max-tokens", "8", "--freedave", "2"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == made.text.rstrip("\n")


def test_what_cannot_be_loaded(tmp_path):
    path = write(tmp_path / "a.gguf", "dream")
    for runtime in ("llamacpp", None):
        with pytest.raises(CapabilityError, match="kv_dtype= is no option of a diffusion model"):
            likely.load(path, runtime=runtime, kv_dtype="f16")
    with pytest.raises(CapabilityError, match=r"known to llama\.cpp alone"):
        likely.load(path, runtime="native")
    with pytest.raises(ModelError, match=r"known to llama\.cpp alone"):
        likely.load(path, runtime="torch")
    with pytest.raises(ModelError, match="no mask token"):
        likely.load(write(tmp_path / "b.gguf", "llada", mask_id=None))
    with likely.load(path, context=16) as lm:
        with pytest.raises(ModelError, match="context of 16"):
            lm.predictor.logits(canvases(1, 17))
        with pytest.raises(ValueError, match=r"token id 320 is outside 0\.\.319"):
            lm.predictor.logits(np.full((1, 3), VOCAB))
        with pytest.raises(ValueError, match="shape"):
            lm.predictor.logits(np.array([1, 2]))
        with pytest.raises(CapabilityError, match="diffusion model"):
            lm.runtime.open()
    with pytest.raises(ValueError, match="shut down"):
        lm.predictor.logits(canvases(1, 3))
