"""Masked networks and their predictor: padding, windows beside kept states, and the families' checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from likely.errors import CapabilityError, ModelError
from likely.runtimes.torch.masked import (
    MaskedPredictor,
    MaskedShape,
    MaskedTransformer,
    TinyMaskedLM,
    load_masked,
    save_masked,
)
from likely.runtimes.torch.masked.predictor import PAD

MASK = 0


def predictor(*, block=0, positions="rotary", shift=False, kv_heads=2, seed=0):
    torch.manual_seed(seed)
    shape = MaskedShape(11, MASK, 16, 2, 4, kv_heads, 24, 32, positions=positions, block=block, shift=shift)
    return MaskedPredictor(MaskedTransformer(shape))


def canvases(rows, length, seed=1):
    return np.random.default_rng(seed).integers(0, 11, (rows, length))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("block", [0, 4])
def test_padding_changes_nothing(positions, block):
    model, ids = predictor(block=block, positions=positions), canvases(3, 12)
    padded = np.concatenate([np.full((3, 4), PAD), ids], 1)
    np.testing.assert_allclose(model.logits(padded)[:, 4:], model.logits(ids), atol=2e-6)
    padded[1] = ids[1, [0, 1, 2, 3, *range(12)]]  # another row without padding
    np.testing.assert_allclose(model.logits(padded)[[0, 2], 4:], model.logits(ids)[[0, 2]], atol=2e-6)


def test_rows_do_not_see_each_other():
    model, ids = predictor(), canvases(4, 9)
    alone = np.concatenate([model.logits(row[None]) for row in ids])
    np.testing.assert_allclose(model.logits(ids), alone, atol=2e-6)


def test_every_position_sees_all_others_and_in_blocks_only_earlier_ones():
    for block in (0, 3):
        model, ids = predictor(block=block), canvases(1, 9)
        other = ids.copy()
        other[0, 4] = (ids[0, 4] + 1) % 11
        changed = np.abs(model.logits(ids) - model.logits(other)).max(-1)[0] > 1e-6
        assert changed.tolist() == [True] * 9 if not block else [False] * 3 + [True] * 6


def test_windows_beside_the_states_of_the_same_canvas_are_exact():
    for suffix, stop in ((True, 6), (False, 12)):  # dual; prefix, whose window goes on to the end
        model, ids = predictor(), canvases(3, 12)
        whole, frozen = model.freeze(ids, (3, stop), suffix=suffix)
        np.testing.assert_allclose(whole, model.logits(ids), atol=1e-6)
        found = model.window_logits(ids[:, None, 3:stop], frozen)
        np.testing.assert_allclose(found[:, 0], whole[:, 3:stop], atol=2e-6)
        assert not frozen.exact


def test_a_changed_window_is_an_approximation_unless_the_model_is_block_causal():
    ids = canvases(2, 12)
    later = ids.copy()
    later[:, 5] = (ids[:, 5] + 3) % 11
    both = predictor()
    _, frozen = both.freeze(ids, (4, 8), suffix=True)
    gap = np.abs(both.window_logits(later[:, None, 4:8], frozen)[:, 0] - both.logits(later)[:, 4:8]).max()
    assert gap > 1e-4
    causal = predictor(block=4)
    _, frozen = causal.freeze(ids, (4, 8), suffix=False)
    assert frozen.exact
    found = causal.window_logits(later[:, None, 4:8], frozen)[:, 0]
    np.testing.assert_allclose(found, causal.logits(later)[:, 4:8], atol=2e-6)


@pytest.mark.parametrize(("block", "suffix"), [(0, True), (4, False)])
@pytest.mark.parametrize("padding", [0, 4])
def test_versions_in_one_call_are_those_of_calls_of_their_own(block, suffix, padding):
    model, ids = predictor(block=block, positions="learned"), canvases(2, 16)
    ids[0, :padding] = PAD
    window = (8, 12)
    _, frozen = model.freeze(ids, window, suffix=suffix)
    versions = np.random.default_rng(5).integers(0, 11, (2, 3, 4))
    together = model.window_logits(versions, frozen)
    for row in (0, 1):
        one = frozen.rows(np.array([row, row, row]))
        apart = model.window_logits(versions[row][:, None], one)[:, 0]
        np.testing.assert_allclose(together[row], apart, atol=2e-6)


def test_blocks_that_the_model_does_not_have_cannot_be_kept():
    with pytest.raises(CapabilityError, match="multiples of 4"):
        predictor(block=4).freeze(canvases(1, 12), (5, 9), suffix=False)


def test_wrong_canvases_are_refused():
    model = predictor()
    with pytest.raises(ModelError, match="context of 32"):
        model.logits(canvases(1, 33))
    with pytest.raises(ValueError, match=r"token id 11 is outside 0\.\.10"):
        model.logits(np.full((1, 3), 11))
    with pytest.raises(ValueError, match="at the left"):
        model.logits(np.array([[1, PAD, 2]]))
    with pytest.raises(ValueError, match="shape"):
        model.logits(np.array([1, 2]))
    _, frozen = model.freeze(canvases(1, 8), (2, 4), suffix=True)
    with pytest.raises(ValueError, match="windows of 2"):
        model.window_logits(canvases(1, 3)[None], frozen)


def test_a_tiny_model_is_read_back_bit_for_bit(tmp_path):
    network = TinyMaskedLM(9, 0, context=12, width=16, layers=2, heads=2, block=4)
    save_masked(network, tmp_path)
    again = load_masked(tmp_path)
    ids = torch.randint(0, 9, (2, 12))
    assert again.shape == network.shape and torch.equal(again(ids), network.eval()(ids))


# --- LLaDA and Dream: written with the official names, compared with a plain reference ------------------------------

LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 16, "n_heads": 4, "n_kv_heads": 4,
    "n_layers": 2, "mlp_hidden_size": 24, "vocab_size": 20, "embedding_size": 22, "max_sequence_length": 32,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "mask_token_id": 19, "weight_tying": False, "block_type": "llama",
    "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False, "include_bias": False,
    "include_qkv_bias": False, "input_emb_norm": False, "attention_layer_norm": False, "scale_logits": False,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": 22,
    "max_position_embeddings": 32, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "mask_token_id": 20,
    "tie_word_embeddings": False, "hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None,
}  # fmt: skip


def llada_weights(rng):
    def random(*shape):
        return torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32))

    found = {"wte.weight": random(22, 16), "ln_f.weight": 1 + random(16), "ff_out.weight": random(22, 16)}
    for i in range(2):
        block = f"blocks.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            found[f"{block}{name}.weight"] = random(16, 16)
        for name in ("attn_norm", "ff_norm"):
            found[f"{block}{name}.weight"] = 1 + random(16)
        found[f"{block}ff_proj.weight"], found[f"{block}up_proj.weight"] = random(24, 16), random(24, 16)
        found[f"{block}ff_out.weight"] = random(16, 24)
    return {f"model.transformer.{name}": value for name, value in found.items()}


def dream_weights(rng):
    def random(*shape):
        return torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32))

    found = {"model.embed_tokens.weight": random(22, 16), "model.norm.weight": 1 + random(16),
             "lm_head.weight": random(22, 16)}  # fmt: skip
    for i in range(2):
        layer = f"model.layers.{i}."
        for name, width in (("q", 16), ("k", 8), ("v", 8)):
            found[f"{layer}self_attn.{name}_proj.weight"] = random(width, 16)
            found[f"{layer}self_attn.{name}_proj.bias"] = random(width)
        found[f"{layer}self_attn.o_proj.weight"] = random(16, 16)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{name}.weight"] = 1 + random(16)
        for name, shape in (("gate_proj", (24, 16)), ("up_proj", (24, 16)), ("down_proj", (16, 24))):
            found[f"{layer}mlp.{name}.weight"] = random(*shape)
    return found


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def turned(x, base):
    """Rotary embedding of one head, position by position and pair by pair."""
    out, half = np.empty_like(x), x.shape[1] // 2
    for position, i in np.ndindex(x.shape[0], half):
        angle = position * base ** (-i / half)
        a, b = x[position, i], x[position, i + half]
        out[position, i] = a * np.cos(angle) - b * np.sin(angle)
        out[position, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def reference(ids, w, *, kv_heads, base, eps, embed, norm, head, layer):
    """One canvas through the plain equations, head by head, in float64; layer(i): the tensors of a layer by role."""
    x = w[embed][ids]
    for i in range(2):
        n = layer(i)
        h = rms(x, n["norm"], eps)
        q, k, v = (h @ n[name].T + n.get(f"{name}_bias", 0) for name in ("q", "k", "v"))
        heads = []
        for j in range(4):
            mine, shared = slice(4 * j, 4 * j + 4), slice(4 * (j * kv_heads // 4), 4 * (j * kv_heads // 4) + 4)
            scores = turned(q[:, mine], base) @ turned(k[:, shared], base).T / 2.0
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(heads, 1) @ n["o"].T
        h = rms(x, n["norm2"], eps)
        gate = silu(torch.from_numpy(h @ n["gate"].T)).numpy()
        x = x + (gate * (h @ n["up"].T)) @ n["down"].T
    return rms(x, w[norm], eps) @ w[head].T


def write(folder, config, weights):
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


def test_llada_is_read_by_its_names(tmp_path):
    weights = llada_weights(np.random.default_rng(0))
    write(tmp_path, LLADA, weights)
    model = MaskedPredictor(load_masked(tmp_path))
    w = {name.removeprefix("model.transformer."): value.double().numpy() for name, value in weights.items()}

    def layer(i):
        names = {"norm": "attn_norm", "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "attn_out", "norm2": "ff_norm",
                 "gate": "ff_proj", "up": "up_proj", "down": "ff_out"}  # fmt: skip
        return {role: w[f"blocks.{i}.{name}.weight"] for role, name in names.items()}

    ids = np.array([3, 19, 19, 7, 1, 19])
    wanted = reference(ids, w, kv_heads=4, base=500000.0, eps=1e-5, embed="wte.weight", norm="ln_f.weight",
                       head="ff_out.weight", layer=layer)  # fmt: skip
    np.testing.assert_allclose(model.logits(ids[None])[0], wanted, atol=2e-4)
    assert (model.mask_id, model.vocab_size, model.shift_logits, model.context) == (19, 22, False, 32)


def test_dream_is_read_by_its_names_and_says_that_it_shifts(tmp_path):
    weights = dream_weights(np.random.default_rng(1))
    write(tmp_path, DREAM, weights)
    model = MaskedPredictor(load_masked(tmp_path))
    w = {name: value.double().numpy() for name, value in weights.items()}

    def layer(i):
        at = f"model.layers.{i}."
        found = {"norm": w[at + "input_layernorm.weight"], "norm2": w[at + "post_attention_layernorm.weight"],
                 "o": w[at + "self_attn.o_proj.weight"]}  # fmt: skip
        for name in ("q", "k", "v"):
            found[name] = w[f"{at}self_attn.{name}_proj.weight"]
            found[f"{name}_bias"] = w[f"{at}self_attn.{name}_proj.bias"]
        return found | {name: w[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up", "down")}

    ids = np.array([3, 20, 20, 7, 1, 20])
    wanted = reference(ids, w, kv_heads=2, base=1000000.0, eps=1e-6, embed="model.embed_tokens.weight",
                       norm="model.norm.weight", head="lm_head.weight", layer=layer)  # fmt: skip
    np.testing.assert_allclose(model.logits(ids[None])[0], wanted, atol=2e-4)
    assert (model.mask_id, model.shift_logits) == (20, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "no masked language model"),
        ({"alibi": True}, "alibi is True"),
        ({"mask_token_id": None}, "mask_token_id must be a whole number"),
        ({"mlp_hidden_size": 32}, "has shape"),
        ({"n_layers": 3}, "is missing"),
        ({"n_heads": 5}, "multiple of heads"),
    ],
)
def test_broken_checkpoints_are_refused_in_one_line(tmp_path, change, message):
    write(tmp_path, {**LLADA, **change}, llada_weights(np.random.default_rng(0)))
    with pytest.raises(ModelError, match=message) as error:
        load_masked(tmp_path)
    assert "\n" not in str(error.value)


def test_a_gguf_file_of_another_diffusion_model_is_not_taken_for_a_causal_one(tmp_path):
    import gguf

    from likely.models.load import load_local

    path = tmp_path / "moe.gguf"
    writer = gguf.GGUFWriter(path, "llada-moe")
    writer.add_context_length(32)
    writer.add_tensor("token_embd.weight", np.zeros((22, 32), np.float32))
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    with pytest.raises(CapabilityError, match=r"llada-moe is a diffusion model: likely\.load opens those of llada and"):
        load_local(path, runtime="llamacpp")
